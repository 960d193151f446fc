"""Installs the service: user, folders, command, manual page, completion and units. Running it again changes nothing."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ravebot.errors import RavebotError, Refused
from ravebot.operations.service import account, files, systemd
from ravebot.operations.service.files import FileOwner
from ravebot.operations.service.layout import FOLDER_MARK, MARK, Installation, Thing, ThingKind, things
from ravebot.operations.service.logs import CONSOLES
from ravebot.store.swap import DATABASE, INSTANCE_ID, LOGIN

Say = Callable[[str], None]
_OURS_DEEP = (CONSOLES, "sources")
"""Folders in the state folder whose files are the bot's own; others may hold disks and images."""

_MAY_BE_THERE = (*_OURS_DEEP, "disks", "images", "backups", "lost+found")
"""Folders that somebody may have made in a state folder before ravebot first ran."""


class InstallFailed(RavebotError):
    """A part could not be installed; the message says which and why."""


@dataclass(frozen=True)
class Installed:
    """What was done. `start` is the command that starts the bot."""

    changed: tuple[str, ...]
    has_systemd: bool
    start: str
    set_aside: tuple[str, ...] = field(default=())  # files of others that were in the way, and now have these names


def install(installation: Installation, say: Say) -> Installed:
    """Install, and say what is done. Raises Refused (nothing was changed) and InstallFailed."""
    if installation.is_this_host and os.geteuid() != 0:
        raise Refused("installing the service needs root: run it with sudo")
    _refuse_odd_program(installation)
    _refuse_shared_folder(installation)
    work = _Work(installation, say)
    for thing in things(installation):
        try:
            work.make(thing)
        except OSError as error:
            raise InstallFailed(
                f"{thing.path} can't be made: {error.strerror}; correct that and run it again"
            ) from error
    work.open_configuration()
    return work.end()


def _refuse_odd_program(installation: Installation) -> None:
    """The service runs what only root can change, and its user must get there."""
    program = installation.program
    if not os.access(program, os.X_OK):
        raise Refused(f"there is no program {program}: install ravebot with pip first, as docs/install.md says")
    if not installation.is_this_host:
        return
    advice = (
        "install ravebot in a folder of root's that everybody can enter, like /opt/ravebot, with the system's Python"
    )
    base = Path(sys.base_prefix)
    for path in dict.fromkeys((program, *program.parents, base, *base.parents)):
        found = path.stat()
        if found.st_uid != 0 or (found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX):
            raise Refused(f"the service can't run {program}, because others than root can change {path}: {advice}")
        if not found.st_mode & stat.S_IXOTH:
            raise Refused(f"the service can't run {program}, because its user can't enter {path}: {advice}")


def _refuse_shared_folder(installation: Installation) -> None:
    """The state folder is given to ravebot's user, so it must be no folder of the system, such as /var/lib."""
    path = installation.at(installation.state_dir)
    if not path.is_dir() or any(os.path.lexists(path / name) for name in (FOLDER_MARK, DATABASE, INSTANCE_ID, LOGIN)):
        return
    others = sorted(one.name for one in path.iterdir() if one.is_dir() and one.name not in _MAY_BE_THERE)
    if others:
        raise Refused(
            f"state_dir: {installation.state_dir} is also used for {', '.join(others[:3])}, and would be given to"
            f" {installation.user}: configure a folder of its own, such as /var/lib/ravebot"
        )


class _Work:
    def __init__(self, installation: Installation, say: Say) -> None:
        self.installation = installation
        self.say = say
        self.owner = FileOwner()
        self.changed: list[str] = []
        self.aside: list[str] = []

    def make(self, thing: Thing) -> None:
        match thing.kind:
            case ThingKind.USER:
                found, done = account.ensure(self.installation)
                self.owner = found.owner
                for line in done:
                    self._did(line)
            case ThingKind.FOLDER:
                self._folder(thing)
            case ThingKind.LINK:
                self._link(thing)
            case ThingKind.FILE | ThingKind.UNIT:
                self._file(thing)

    def _folder(self, thing: Thing) -> None:
        path = self.installation.at(thing.path)
        owner = self.owner if thing.owned else FileOwner()
        if path.is_symlink():
            raise Refused(f"{thing.path} is a link to {path.readlink()}: configure the folder that it leads to")
        if fresh := not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            files.write(path / FOLDER_MARK, f"{MARK}\n", 0o644, owner)
            self._did(f"{thing.path}: made, for {thing.what}")
        with files.opened(path) as folder:
            found = os.fstat(folder)
            if thing.owned and found.st_uid not in (0, owner.uid):
                raise Refused(
                    f"{thing.path} belongs to user {found.st_uid}: give it to root or {self.installation.user}, or"
                    " configure another folder"
                )
            if thing.owned and found.st_uid != owner.uid:
                os.fchown(folder, owner.uid, owner.gid)
                self._did(f"{thing.path}: now belongs to {self.installation.user}")
            if stat.S_IMODE(os.fstat(folder).st_mode) != thing.mode and (fresh or thing.owned):
                os.fchmod(folder, thing.mode)
        if thing.owned and (given := files.hand_over(path, owner, deep=_OURS_DEEP)):
            self._did(f"{thing.path}: {given} files in it now belong to {self.installation.user}")

    def open_configuration(self) -> None:
        """Let the user read the configuration where only root can; it names files with secrets, and holds none."""
        path = self.installation.at(self.installation.config)
        if path.is_symlink() or not path.is_file():
            return
        found = path.stat()
        if not found.st_mode & stat.S_IROTH and found.st_uid != self.owner.uid and found.st_gid != self.owner.gid:
            os.chown(path, -1, self.owner.gid, follow_symlinks=False)
            path.chmod(stat.S_IMODE(found.st_mode) | stat.S_IRGRP)
            self._did(f"{self.installation.config}: {self.installation.user} may read it now")

    def _link(self, thing: Thing) -> None:
        path, target = self.installation.at(thing.path), _text(thing)
        if thing.path == self.installation.program or (path.is_symlink() and str(path.readlink()) == target):
            return
        self._make_way(thing, ours=path.is_symlink() and path.name == path.readlink().name)
        files.link(path, target)
        self._did(f"{thing.path}: {thing.what}, a link to {target}")

    def _file(self, thing: Thing) -> None:
        path, text = self.installation.at(thing.path), _text(thing)
        if files.marked(path, MARK) and path.read_text("utf-8", "replace") == text:
            return
        self._make_way(thing, ours=files.marked(path, MARK))
        files.write(path, text, thing.mode)
        self._did(f"{thing.path}: {thing.what}")

    def _make_way(self, thing: Thing, *, ours: bool) -> None:
        """Make the folder; what is there and not ours gets another name."""
        path = self.installation.at(thing.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and not ours:
            aside = files.set_aside(path)
            self.aside.append(str(aside))
            self.say(f"{thing.path}: what was there is not of this installation, and is now {aside.name}")

    def end(self) -> Installed:
        """Have systemd read the units, or say that there is none."""
        units = [thing for thing in things(self.installation) if thing.kind is ThingKind.UNIT]
        start = "systemctl enable --now ravebot"
        if self.installation.has_systemd:
            systemd.control("daemon-reload")
            for thing in units:
                if thing.is_timer:
                    systemd.control("enable", "--now", "--quiet", thing.path.name)
        else:
            start = by_hand(self.installation)
            self.say(f"No systemd runs here, so nothing starts by itself. Start ravebot by hand: {start}")
        if not self.changed:
            self.say("Everything is installed already.")
        return Installed(tuple(self.changed), self.installation.has_systemd, start, tuple(self.aside))

    def _did(self, line: str) -> None:
        self.changed.append(line)
        self.say(line)


def by_hand(installation: Installation) -> str:
    """The command that starts the bot as the unit does, for root, where no init system runs."""
    user = installation.user
    return shlex.join(
        (
            "setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--no-new-privs",
            "--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin",
            str(installation.program), "run", "--config", str(installation.config),
        )
    )  # fmt: skip


def _text(thing: Thing) -> str:
    assert thing.text is not None
    return thing.text()
