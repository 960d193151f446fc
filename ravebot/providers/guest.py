"""Checks that every provider makes before it sends something to a guest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ravebot.errors import GuestError, ProviderError, Unavailable


def check_target(path: str) -> None:
    """Raise ProviderError unless a file may be copied to or from that path of a guest."""
    if not path.startswith("/") or "\0" in path:
        raise ProviderError("a file can only be copied to or from an absolute path")


def larger_than(path: str, max_bytes: int) -> GuestError:
    """The error for a file of a guest that is larger than may be read."""
    return GuestError(f"{path} in the guest is larger than {max_bytes} bytes, which is the most that is read of it")


def check_authorized_keys(keys: Sequence[str]) -> None:
    """Raise ProviderError for a key that would be more than one line of a guest's authorized keys."""
    if any(not key.isprintable() for key in keys):
        raise ProviderError("an SSH key must be one line of printable characters")


def read_source(source: Path, offset: int = 0, limit: int = -1) -> bytes:
    """A part of a host file that is copied into a guest; by default all of it.

    Raises Unavailable when it can't be read: that is not the guest's fault.
    """
    try:
        with source.open("rb") as file:
            file.seek(offset)
            return file.read(limit)
    except OSError as error:
        raise Unavailable(f"the file {source} can't be read ({error.strerror}) to copy it into a guest") from error
