"""Packages of npm for an image: the host's npm fetches them, so that registry, login and CA stay on the host."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ravebot.errors import ImageBuildFailed
from ravebot.images import programs
from ravebot.images.layers import NpmPackage

IN_IMAGE = "var/tmp/npm"
_SECONDS = 240  # for a package, npm's own further attempts included


async def fetch(wanted: Iterable[NpmPackage], folder: Path) -> tuple[str, ...]:
    """Put each package into the empty `folder` as NAME.tgz, or NAME.failed with a reason for people with the image.

    The reason names nothing of the host. Returns what npm said, for who builds; a package that is missing is no error.
    """
    said: list[str] = []
    work = folder / ".work"
    for package in wanted:
        try:
            archive = await _pack(package, work)
        except ImageBuildFailed as error:
            (folder / f"{package.short}.failed").write_text(f"{error}\n")
            said += [f"{package.name} {package.version}: {error}", *error.lines]
        else:
            archive.replace(folder / f"{package.short}.tgz")
    shutil.rmtree(work, ignore_errors=True)
    return tuple(said)


async def _pack(package: NpmPackage, work: Path) -> Path:
    """The package's archive; ImageBuildFailed if it can't be had or is another one than is known."""
    if not shutil.which("npm"):
        raise ImageBuildFailed("the host that built the image has no npm")
    command = ["timeout", str(_SECONDS), "npm", "pack", "--loglevel=error", "--ignore-scripts"]
    settings = {"npm_config_cache": str(work / "cache"), "npm_config_update_notifier": "false"}
    archives = work / package.short
    archives.mkdir(parents=True)
    try:
        await programs.run(
            [*command, f"--pack-destination={archives}", f"{package.name}@{package.version}"],
            {**os.environ, **settings},
        )
    except ImageBuildFailed as error:
        code = next((line.split()[-1] for line in error.lines if " code E" in line), "no error code")
        raise ImageBuildFailed(f"npm could not fetch it when the image was built ({code})", error.lines) from error
    [archive] = archives.iterdir()
    digest = hashlib.sha512(archive.read_bytes()).digest()
    if base64.b64encode(digest).decode() != package.sha512:
        raise ImageBuildFailed("npm has another file by this name and version than ravebot knows")
    return archive
