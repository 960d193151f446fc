"""Writes, marks and removes what is installed: a file whole or not at all, and never through a link."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_MARKED_BYTES = 512


@dataclass(frozen=True)
class FileOwner:
    """A user's numbers."""

    uid: int = 0
    gid: int = 0


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """The folder's descriptor. Raises OSError if it is a link or missing."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write(path: Path, text: str, mode: int, owner: FileOwner | None = None) -> None:
    """Put a file there, in one step: it never has another mode or owner, and a crash leaves the old one or the new."""
    with opened(path.parent) as folder:
        part = f".{path.name}.{secrets.token_hex(8)}"
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            with os.fdopen(file, "wb") as writing:
                if owner is not None:
                    os.fchown(file, owner.uid, owner.gid)
                os.fchmod(file, mode)
                writing.write(text.encode())
                writing.flush()
                os.fsync(file)
            os.replace(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)
            raise
        os.fsync(folder)


def link(path: Path, target: str) -> None:
    """Put a symbolic link there, in one step."""
    with opened(path.parent) as folder:
        part = f".{path.name}.{secrets.token_hex(8)}"
        os.symlink(target, part, dir_fd=folder)
        try:
            os.replace(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(part, dir_fd=folder)
            raise
        os.fsync(folder)


def marked(path: Path, mark: str) -> bool:
    """Whether that is a regular file that has the mark near its start."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as file:
        return stat.S_ISREG(os.fstat(descriptor).st_mode) and mark.encode() in file.read(_MARKED_BYTES)


def set_aside(path: Path) -> Path:
    """Rename what is there, so that nothing of somebody else's is lost. Returns its new name."""
    aside = next(
        one
        for number in range(1000)
        if not os.path.lexists(one := path.with_name(f"{path.name}.before-ravebot{f'-{number}' if number else ''}"))
    )
    path.rename(aside)
    return aside


def hand_over(folder: Path, owner: FileOwner, *, deep: tuple[str, ...] = ()) -> int:
    """Give root's regular files in the folder, and all in its folders `deep`, to that user. Returns how many."""
    given = 0
    with opened(folder) as descriptor:
        for name in sorted(os.listdir(descriptor)):  # noqa: PTH208 - of the opened folder
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode) and name in deep:
                given += hand_over(folder / name, owner)
            elif not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                continue
            if found.st_uid == 0:
                os.chown(name, owner.uid, owner.gid, dir_fd=descriptor, follow_symlinks=False)
                given += 1
    return given


def take_back(folder: Path, uid: int) -> None:
    """Give everything in the folder that belongs to that user, and the folder, to root."""
    for _, names, others, descriptor in os.fwalk(folder):
        for name in (*names, *others):
            if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_uid == uid:
                os.chown(name, 0, 0, dir_fd=descriptor, follow_symlinks=False)
        if os.fstat(descriptor).st_uid == uid:
            os.fchown(descriptor, 0, 0)
