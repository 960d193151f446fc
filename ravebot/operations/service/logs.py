"""Looks after the logs of machines that root owns: ravebot's user may read them, and they expire.

A timer runs it as root. It deals only with regular files that have the name of a machine of this instance, and follows
no link: the folder with the consoles belongs to ravebot's user.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path

from ravebot.config.model import Config
from ravebot.operations.service import files
from ravebot.operations.service.files import FileOwner
from ravebot.sandboxes import naming

QEMU_LOGS = Path("/var/log/libvirt/qemu")
"""Where libvirt writes a log of each machine; it never deletes them."""
CONSOLES = "console"
"""The folder of the machines' consoles, in the state folder."""


@dataclass(frozen=True)
class Tended:
    """What was done in one folder, by the files' names."""

    removed: tuple[str, ...]
    given: tuple[str, ...]


def tend(config: Config, say: Callable[[str], None], folders: Collection[Path] | None = None) -> None:
    """Do it for this installation, whose user is the owner of its state folder."""
    if not config.state_dir.is_dir():
        say(f"There is no {config.state_dir} yet: nothing to do.")
        return
    found = config.state_dir.stat()
    owner = FileOwner(found.st_uid, found.st_gid)
    live = _live(config.provider.uri, say)
    for folder in folders or (QEMU_LOGS, config.state_dir / CONSOLES):
        if folder.is_dir():
            done = tend_folder(folder, f"{naming.pattern(config.instance)}.log*", owner, live, config.keep.consoles)
            say(f"{folder}: {len(done.removed)} old logs removed, {len(done.given)} made readable for ravebot")


def tend_folder(folder: Path, pattern: str, owner: FileOwner, live: Collection[str] | None, keep: timedelta) -> Tended:
    """Give root's logs to that user, and remove those of machines that are gone. `live` None: it is not known which."""
    oldest = time.time() - keep.total_seconds()
    removed: list[str] = []
    given: list[str] = []
    with files.opened(folder) as descriptor:
        for name in sorted(os.listdir(descriptor)):  # noqa: PTH208 - of the opened folder
            if not fnmatchcase(name, pattern):
                continue
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                    continue
                if live is not None and name.partition(".")[0] not in live and found.st_mtime < oldest:
                    os.unlink(name, dir_fd=descriptor)
                    removed.append(name)
                elif found.st_uid == 0 != owner.uid and _give(descriptor, name, owner):
                    given.append(name)
    return Tended(tuple(removed), tuple(given))


def _give(folder: int, name: str, owner: FileOwner) -> bool:
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:  # it became a link, or is gone
        return False
    try:
        found = os.fstat(file)  # the name may lead to another file by now
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != 0:
            return False
        os.fchown(file, owner.uid, owner.gid)
        return True
    finally:
        os.close(file)


def _live(uri: str, say: Callable[[str], None]) -> frozenset[str] | None:
    """The names of all machines that libvirt has."""
    import libvirt

    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # which would print it, too
    try:
        connection = libvirt.openReadOnly(uri)
        try:
            return frozenset(domain.name() for domain in connection.listAllDomains())
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        say(f"libvirt does not answer, so no log is removed this time: {error}")
        return None
