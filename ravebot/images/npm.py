"""Packages of npm for an image: the host's npm fetches them, so that registry, login and CA stay on the host."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from ravebot.errors import ImageBuildFailed
from ravebot.images import programs
from ravebot.images.layers import NpmPackage

IN_IMAGE = "var/tmp/npm"
INSTALL = f"""#!/bin/sh
# NAME.programs: each line a program's name and its file in the package.
set -eu
cd /{IN_IMAGE}
for list in *.programs; do
    name=${{list%.programs}}
    mkdir -p "/usr/local/lib/npm/$name"
    tar -xzf "$name.tgz" -C "/usr/local/lib/npm/$name" --strip-components=1 --no-same-owner
    while read -r program file; do
        chmod 755 "/usr/local/lib/npm/$name/$file"
        ln -sf "/usr/local/lib/npm/$name/$file" "/usr/local/bin/$program"
    done <"$list"
done
"""
"""Unpacks what `require` has fetched, in the image's chroot: needs no npm there."""
_SECONDS = 240  # for a package, npm's own further attempts included
_LARGEST_MANIFEST_BYTES = 1024**2
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILE = re.compile(r"[A-Za-z0-9@][A-Za-z0-9@._+-]*(?:/[A-Za-z0-9@][A-Za-z0-9@._+-]*)*")


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


async def require(wanted: Iterable[NpmPackage], folder: Path) -> None:
    """Put each package into `folder` as NAME.tgz, with NAME.programs for INSTALL. Raises ImageBuildFailed."""
    work = folder / ".work"
    for package in wanted:
        try:
            archive = await _pack(package, work)
            listed = programs_of(archive)
        except ImageBuildFailed as error:
            raise ImageBuildFailed(f"{package.name}@{package.version}: {error}", error.lines) from error
        (folder / f"{package.short}.programs").write_text("".join(f"{name} {file}\n" for name, file in listed.items()))
        archive.replace(folder / f"{package.short}.tgz")
    shutil.rmtree(work, ignore_errors=True)


def programs_of(archive: Path) -> dict[str, str]:
    """The programs of a package and their files in it: its `bin`, or else what is in its folder `bin`.

    Raises ImageBuildFailed for a package that depends on others, or that has no program.
    """
    try:
        with tarfile.open(archive) as tar:
            files = {member.name.partition("/")[2]: member for member in tar if member.isreg()}
            manifest = files.get("package.json")
            reader = tar.extractfile(manifest) if manifest and manifest.size <= _LARGEST_MANIFEST_BYTES else None
            facts: Any = json.loads(reader.read()) if reader else None
    except (OSError, ValueError, tarfile.TarError) as error:
        raise ImageBuildFailed(f"it can't be read: {error}") from error
    if not isinstance(facts, dict):
        raise ImageBuildFailed("it has no package.json")
    if facts.get("dependencies"):
        raise ImageBuildFailed("it depends on other packages, which --npm does not fetch: install it with --script")
    listed = facts.get("bin")
    if isinstance(listed, str):
        listed = {str(facts.get("name")).rpartition("/")[2]: listed}
    elif not isinstance(listed, dict):
        listed = {name.rpartition("/")[2]: name for name in files if PurePosixPath(name).parent.name == "bin"}
    listed = {str(name): str(PurePosixPath(str(file))) for name, file in listed.items()}
    if not listed:
        raise ImageBuildFailed("it has no program: neither `bin` in its package.json nor a folder bin")
    for name, file in listed.items():
        if not _PROGRAM.fullmatch(name) or not _FILE.fullmatch(file) or file not in files:
            raise ImageBuildFailed(f"its program {name[:80]!r} has no usable file")
    return listed


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
    if package.sha512 and base64.b64encode(digest).decode() != package.sha512:
        raise ImageBuildFailed("npm has another file by this name and version than ravebot knows")
    return archive
