"""Where a build works: temporary folders, which are removed however it ends, room on the disk, and threads."""

from __future__ import annotations

import asyncio
import fcntl
import glob
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


def check_mount(folder: Path) -> None:
    """Raise RavebotError if programs or device files in that folder don't work, as in a hardened /var/tmp."""
    flags = os.statvfs(folder).f_flag
    if flags & (os.ST_NOEXEC | os.ST_NODEV):
        how = "noexec" if flags & os.ST_NOEXEC else "nodev"
        raise RavebotError(
            f"{folder} is mounted {how}, and the build runs programs there: TMPDIR can name another folder"
        )


@asynccontextmanager
async def new_folder(place: Path, prefix: str) -> AsyncIterator[Path]:
    """A locked folder that is removed at the end, also if killed processes write their last into it."""
    folder = Path(tempfile.mkdtemp(dir=place, prefix=prefix))
    lock = _locked(folder)
    try:
        yield folder
    finally:
        if lock is not None:
            os.close(lock)
        for pause in _REMOVALS:
            try:
                await in_thread(shutil.rmtree, folder)
                break
            except OSError:
                await asyncio.sleep(pause)
        else:
            await in_thread(shutil.rmtree, folder)


def remove_dead(place: Path, prefix: str) -> None:
    """Remove our folders that `new_folder` made for processes that were killed: they are not locked any more."""
    for folder in place.glob(f"{glob.escape(prefix)}????????"):
        if folder.lstat().st_uid == os.geteuid() and (lock := _locked(folder)) is not None:
            os.close(lock)
            shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> int | None:
    """A descriptor with a lock on the folder; None if another process has it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # it is gone, or no folder
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


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
