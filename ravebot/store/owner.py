"""What root makes in the state folder belongs to the folder's owner, so that a bot that is not root can use it."""

from __future__ import annotations

import os
from pathlib import Path


def give(path: Path) -> None:
    """Give a file or folder to the owner of the folder that it is in; only root can, and only root has to."""
    if os.geteuid() == 0:
        folder = path.parent.stat()
        if folder.st_uid != 0:
            os.chown(path, folder.st_uid, folder.st_gid, follow_symlinks=False)


def give_open(descriptor: int, folder: Path) -> None:
    """The same for an open file that is in that folder."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def hand_over(folder: Path, state_dir: Path) -> None:
    """The same for a folder that root made: it gets the owner of the state folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        give_open(descriptor, state_dir)
    finally:
        os.close(descriptor)
