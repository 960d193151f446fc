"""Keeps one built Debian image, of the preset `web` with agents for tests in it, so that only the first who asks waits.

What counts as an input, and so makes a new build: the recipe (packages, guest files, the builder's code), the agents
and the Python packages that they need, and Debian's point release in the host's package lists. The archive's daily
updates do not count: they do not matter to a throwaway guest, and each `apt-get update` would cost a build.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from ravebot.images.build import build
from ravebot.images.recipe import Preset, Recipe
from tests.support.agents import in_image

RECIPE = Recipe(preset=Preset.WEB)
_APT_LISTS = Path("/var/lib/apt/lists")


def cached(cache: Path, recipe: Recipe = RECIPE, lists: Path = _APT_LISTS) -> Path:
    """Where in `cache` the image that these inputs give is, or will be once it is built."""
    releases = [file.read_text().splitlines() for file in lists.glob(f"*_dists_{recipe.suite}_*Release")]
    debians = {line for lines in releases if "Origin: Debian" in lines for line in lines if line.startswith("Version:")}
    inputs = f"{recipe.digest()} {in_image.digest()} {sorted(debians)}"
    return cache / hashlib.sha256(inputs.encode()).hexdigest()[:16] / "image.qcow2"


async def place(cache: Path, target: Path) -> None:
    """Write the image to the file `target`; it is built unless `cache` has it, and one process at a time builds.

    Raises RavebotError when it can't be built, and WheelsMissing when pip can't fetch what the agents need.
    """
    cache.mkdir(parents=True, exist_ok=True)
    async with _locked(cache):
        image = cached(cache)
        if not image.exists():
            image.parent.mkdir(exist_ok=True)
            script = await asyncio.to_thread(in_image.script)
            await build(replace(RECIPE, script=script), image)
            for old in cache.iterdir():
                if old.is_dir() and old != image.parent:
                    await asyncio.to_thread(shutil.rmtree, old)
        # A copy: the lock ends here, and QEMU's user may not get into the cache.
        await asyncio.to_thread(shutil.copyfile, image, target)


@asynccontextmanager
async def _locked(cache: Path) -> AsyncIterator[None]:
    with (cache / "lock").open("w") as file:
        while True:  # polled, so that it can be cancelled
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.5)
        yield
