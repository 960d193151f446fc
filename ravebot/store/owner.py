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
