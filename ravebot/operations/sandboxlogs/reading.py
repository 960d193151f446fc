"""Reads the end of a machine's log, which a hostile guest may have written, in a folder that is not root's.

Root runs this, too: it follows no link, opens regular files only, and reads a bounded part.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ravebot.operations.service import files
from ravebot.sandboxes.view import without_terminal_codes

_MOST_BYTES = 4 * 1024**2
_MOST_ROTATED = 5
_LONGEST_LINE = 2000


@dataclass(frozen=True)
class LogEnd:
    """The last lines of a log; `why` says why there are none."""

    path: str
    lines: tuple[str, ...] = ()
    why: str = ""


def end_of(folder: Path, machine: str, lines: int) -> LogEnd:
    """The last lines of the machine's log there; also from files that were rotated away, if the newest has too few."""
    path = folder / f"{machine}.log"
    if "/" in machine or machine.startswith("."):
        return LogEnd(str(folder), why=f"{machine} is no machine's name: the database was altered")
    try:
        with files.opened(folder) as descriptor:
            data = _read(descriptor, path.name, _MOST_BYTES)
            for number in range(_MOST_ROTATED):
                if data.count(b"\n") > lines or len(data) >= _MOST_BYTES:
                    break
                try:
                    data = _read(descriptor, f"{path.name}.{number}", _MOST_BYTES - len(data)) + data
                except FileNotFoundError:
                    break
    except FileNotFoundError:
        return LogEnd(str(path), why="there is no such file")
    except OSError as error:
        return LogEnd(str(path), why=_why(error))
    found = readable(data.decode(errors="replace"))[-lines:]
    return LogEnd(str(path), tuple(found), "" if found else "it is empty")


def readable(text: str) -> list[str]:
    """Its lines as a terminal shows them at the end, without terminal codes, each bounded."""
    lines = without_terminal_codes(text).replace("\r\n", "\n").split("\n")
    if lines and not lines[-1].strip():
        lines.pop()
    return [_shown(line) for line in lines]


def _shown(line: str) -> str:
    line = line.rstrip("\r \t").rpartition("\r")[2].expandtabs()
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} …"


def _read(folder: int, name: str, most: int) -> bytes:
    """The last so many bytes of a file, from the beginning of a line if one begins there."""
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(file, "rb") as reading:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        skipped = max(0, found.st_size - most)
        reading.seek(skipped)
        data = reading.read(most)
    return data.partition(b"\n")[2] or data if skipped else data


def _why(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "it can't be read as this user"
    if error.errno == errno.ELOOP:
        return "it is a link, which is not followed"
    return error.strerror or str(error)
