"""Writes files of the state folder so that a crash leaves the old one or the new one, on the disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ravebot.store.owner import give_open

_PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")


def write_file(path: Path, content: bytes) -> None:
    """Write or replace a private file, which belongs to the owner of its folder."""
    part = path.with_name(f".{path.name}.{os.urandom(8).hex()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            give_open(descriptor, path.parent)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_parts(folder: Path) -> None:
    """Remove what killed writers left; nobody may write there meanwhile."""
    for path in folder.glob(".*.part"):
        if _PART.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
