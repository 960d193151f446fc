"""Writes files whole or not at all, never through links, and only into folders that nobody else may change."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ravebot.errors import Refused
from ravebot.operations.service import files
from ravebot.operations.service.files import FileOwner

Ids = tuple[int, int]
"""User and group."""


def check_folder(folder: Path, owners: Collection[int]) -> None:
    """Refuse a folder that others may change, or reach through a link of theirs. It need not exist yet.

    A folder above may have the sticky bit, like /tmp: then nobody else can rename what is ours in it.
    """
    for path in (*reversed(folder.parents), folder):
        try:
            found = path.lstat()
        except FileNotFoundError:
            return
        if stat.S_ISLNK(found.st_mode):
            raise Refused(f"{path} is a link to {path.readlink()}: name the folder that it leads to")
        if not stat.S_ISDIR(found.st_mode):
            raise Refused(f"{path} is no folder: move it away, or name another")
        if found.st_uid not in owners:
            raise Refused(f"{path} belongs to user {found.st_uid}, who could replace what is in it: chown it to root")
        open_to_all = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not _private_group(found)
        if open_to_all and (path == folder or not found.st_mode & stat.S_ISVTX):
            raise Refused(f"others may write to {path}, and so replace what is in it: chmod go-w {path}")


def _private_group(found: os.stat_result) -> bool:
    """A group's right to write is no more than root's if the group is root's."""
    return not found.st_mode & stat.S_IWOTH and found.st_gid == 0


def check_file(path: Path) -> None:
    """Refuse to replace what is no regular file, such as a link."""
    with suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise Refused(f"{path} is a link to {path.readlink()}: name the file that it leads to with -c")
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{path} is no regular file: move it away, or name another")


def make_folder(folder: Path, mode: int, owner: Ids | None, owners: Collection[int]) -> None:
    """Make it with that mode and owner, if it is missing."""
    check_folder(folder, owners)
    if folder.is_dir():
        return
    make_folder(folder.parent, 0o755, None, owners)
    folder.mkdir(mode=0o700)
    with files.opened(folder) as descriptor:
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)


def write_file(path: Path, text: str, mode: int, owner: Ids | None) -> None:
    """Put the file there in one step."""
    files.write(path, text, mode, FileOwner(*owner) if owner is not None else None)


def write_public(path: Path, text: str) -> None:
    """The same for a file that anybody may read; one that is there already keeps its mode and owner."""
    mode, owner = 0o644, None
    with suppress(FileNotFoundError):
        found = path.lstat()
        mode, owner = stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid) if os.geteuid() == 0 else None
    write_file(path, text, mode, owner)


def put_link(path: Path, target: Path) -> None:
    """Put a symbolic link there in one step."""
    files.link(path, str(target))
