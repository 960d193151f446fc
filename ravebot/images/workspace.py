"""Where a build works: temporary folders, which are removed however it ends, room on the disk, and threads."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from ravebot.errors import RavebotError

P = ParamSpec("P")
T = TypeVar("T")

_MIB = 1024**2
_REMOVALS = (0.1, 0.4, 1.5)  # pauses in seconds after attempts that failed


def temporary_folder() -> Path:
    """Where large temporary files go: TMPDIR, or /var/tmp, because /tmp may be kept in memory."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - what is made in it gets a random name


def check_room(*needs: tuple[Path, int]) -> None:
    """Raise RavebotError unless each folder has so many bytes free; those on one file system share its room."""
    together: dict[int, tuple[Path, int]] = {}
    for folder, size in needs:
        first, before = together.get(folder.stat().st_dev, (folder, 0))
        together[folder.stat().st_dev] = (first, before + size)
    for folder, size in together.values():
        if (free := shutil.disk_usage(folder).free) < size:
            raise RavebotError(
                f"{folder} has {free // _MIB} MiB free, and the build needs {size // _MIB} MiB there"
                + ("; TMPDIR can name another folder" if folder == temporary_folder() else "")
            )


@asynccontextmanager
async def new_folder(place: Path, prefix: str) -> AsyncIterator[Path]:
    """A folder that is removed at the end, also if killed processes write their last into it."""
    folder = Path(tempfile.mkdtemp(dir=place, prefix=prefix))
    try:
        yield folder
    finally:
        for pause in _REMOVALS:
            try:
                await in_thread(shutil.rmtree, folder)
                break
            except OSError:
                await asyncio.sleep(pause)
        else:
            await in_thread(shutil.rmtree, folder)


def private(path: Path, text: str) -> Path:
    """Write a file that only its owner can read."""
    path.touch(0o600)
    path.write_text(text)
    return path


async def in_thread(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """In a thread, which is waited for when this is cancelled: it must not write into folders that are removed."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **named))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
