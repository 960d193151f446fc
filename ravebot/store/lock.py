"""The lock beside the database, which keeps a second process out of the state folder."""

from __future__ import annotations

import fcntl
import os
from datetime import datetime
from pathlib import Path

from ravebot.errors import StoreError
from ravebot.store.owner import give_open


def hold(database: Path, now: datetime) -> int:
    """Take the lock; the caller closes the descriptor to release it. Raises StoreError, which names the holder."""
    descriptor = os.open(database.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
