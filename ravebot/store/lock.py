"""The lock beside the database, which keeps a second process out of the state folder."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from datetime import datetime
from pathlib import Path

from ravebot.errors import StoreError
from ravebot.store.owner import give_open


def hold(database: Path, now: datetime) -> int:
    """Take the lock; the caller closes the descriptor to release it. Raises StoreError, which names the holder.

    Whoever owns the folder may have put a link there, and root would change what it leads to.
    """
    descriptor = open_plain(database.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "an unknown process"
        os.close(descriptor)
        raise StoreError(
            f"another ravebot uses {database.parent}: {holder}; stop it first, or give this one another state_dir"
        ) from None
    give_open(descriptor, database.parent)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()}, started {now:%Y-%m-%d %H:%M:%S} UTC\n".encode(), 0)
    return descriptor


def open_plain(path: Path, flags: int) -> int:
    """Open a regular file that has no other name. Raises StoreError for a link, and OSError."""
    problem = f"{path} is a link or no regular file: remove it, or move what it leads to there"
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise StoreError(problem) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise StoreError(problem)
    return descriptor
