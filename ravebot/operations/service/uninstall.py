"""Removes what was installed and nothing else: `look` says what that is, `remove` does it and says what stays and why.

A file without ravebot's mark, a folder that was there before and a user that somebody else made stay. Links are removed
but never followed. What fails does not keep the rest from being removed, and running it again goes on.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ravebot.errors import RavebotError, Refused
from ravebot.operations import hostlock
from ravebot.operations.service import account, files, systemd
from ravebot.operations.service.layout import FOLDER_MARK, MARK, Installation, Thing, ThingKind, things
from ravebot.store.database import instance_id_path

Say = Callable[[str], None]


@dataclass(frozen=True)
class StepOutcome:
    """What a step removed, and what it left, each with its reason."""

    removed: Sequence[str]
    left: Sequence[str]


@dataclass(frozen=True)
class RemovalStep:
    """Something beyond this host's files that is removed, too: machines, webhooks. `remove` raises RavebotError if it
    has to be tried again, with the state folder and the configuration."""

    what: str
    remove: Callable[[Say], Awaitable[StepOutcome]]


@dataclass(frozen=True)
class InstalledThings:
    """What is there. `kept` has a sentence for each thing that stays."""

    removed: tuple[Thing, ...]
    kept: tuple[str, ...]
    steps: tuple[RemovalStep, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.removed and not self.steps

    def lines(self) -> list[str]:
        """For people, each thing that would be removed."""
        return [f"{thing.name}: {thing.what}" for thing in self.removed] + [step.what for step in self.steps]


@dataclass(frozen=True)
class Uninstalled:
    """What is gone, what stays and why, and what could not be removed."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[str, ...]


def look(
    installation: Installation, *, purge: bool, steps: Sequence[RemovalStep] = (), others: Sequence[str] = ()
) -> InstalledThings:
    """Find what is installed; changes nothing. `steps` are done besides, and `others` stay, each with its reason.

    Raises Refused if what is installed is of another configuration.
    """
    _refuse_other(installation)
    removed: list[Thing] = []
    kept: list[str] = []
    for thing in reversed(things(installation)):
        if not _is_there(installation, thing):
            continue
        if why := _why_kept(installation, thing, purge):
            kept.append(f"{thing.name}: {why}")
        else:
            removed.append(thing)
    return InstalledThings(tuple(removed), (*kept, *others), tuple(steps))


def _refuse_other(installation: Installation) -> None:
    for thing in things(installation):
        if thing.kind is not ThingKind.UNIT or thing.text is None:
            continue
        path = installation.at(thing.path)
        there = _configuration(path.read_text("utf-8", "replace")) if files.marked(path, MARK) else ""
        if there and there != _configuration(thing.text()):
            raise Refused(
                f"the service on this host uses {there}: nothing was removed; to remove that ravebot, name it with -c"
            )


def _configuration(unit: str) -> str:
    """What a unit starts ravebot with."""
    start = next((line for line in unit.splitlines() if line.startswith("ExecStart=")), "")
    return start.partition(" --config ")[2].partition(" --into ")[0]


def _is_there(installation: Installation, thing: Thing) -> bool:
    if thing.kind is ThingKind.USER:
        return account.find(installation) is not None
    return os.path.lexists(installation.at(thing.path))


def _why_kept(installation: Installation, thing: Thing, purge: bool) -> str:
    """Why it stays; empty if it is ours to remove."""
    if thing.kind is ThingKind.USER:
        found = account.find(installation)
        return "" if found is not None and found.is_ours else "this user was not made by ravebot"
    path = installation.at(thing.path)
    match thing.kind:
        case ThingKind.LINK:
            ours = path.is_symlink() and path.readlink() == installation.program
            return "" if ours else "this is not the link that ravebot made"
        case ThingKind.FOLDER:
            if path.is_symlink() or not files.marked(path / FOLDER_MARK, MARK):
                return "this folder was there before ravebot was installed"
            if not purge:
                return f"{thing.what}; --purge removes them"
            return _others_in(installation, thing) or _foreign(path)
        case ThingKind.FILE | ThingKind.UNIT:
            return "" if files.marked(path, MARK) else "this file was not installed by ravebot, or was replaced since"


def _others_in(installation: Installation, thing: Thing) -> str:
    """Whether other configurations lie beside this one."""
    config = installation.config
    if thing.path != config.parent:
        return ""
    others = sorted(path.name for path in installation.at(thing.path).glob("*.y*ml") if path.name != config.name)
    return f"it holds {', '.join(others)}, too: remove by hand what you don't need" if others else ""


def _foreign(folder: Path) -> str:
    """Whether another file system is mounted in the folder: what is on it is not ravebot's to delete."""
    device = folder.lstat().st_dev
    for parent, names, _ in os.walk(folder):
        for name in names:
            if (found := Path(parent, name).lstat()).st_dev != device and stat.S_ISDIR(found.st_mode):
                return f"{Path(parent, name)} is another file system: unmount it first"
    return ""


def stop(installation: Installation, say: Say) -> None:
    """Stop the bot and its timers. Raises Refused if a bot runs after that, and nothing was removed then."""
    if installation.has_systemd:
        for thing in things(installation):
            if thing.kind is ThingKind.UNIT and files.marked(installation.at(thing.path), MARK):
                try:
                    enabled = thing.is_timer or thing.path.name == "ravebot.service"
                    systemd.control(*(("disable", "--now") if enabled else ("stop",)), thing.path.name)
                except systemd.SystemdFailed as error:
                    raise Refused(f"{thing.path.name} can't be stopped, so nothing was removed: {error}") from error
                say(f"{thing.path.name}: stopped")
    path = instance_id_path(installation.at(installation.state_dir))
    if path.is_file() and (by := hostlock.holder(path.read_text("ascii", "replace").strip())):
        raise Refused(f"ravebot still runs, so nothing was removed: {by}; stop it, then run this again")


async def remove(installation: Installation, found: InstalledThings, say: Say) -> Uninstalled:
    """Remove it; the bot is stopped. The state folder and the configuration stay while a step is not done."""
    work = _Removal(installation, say, list(found.kept))
    for step in found.steps:
        await work.step(step)
    for thing in found.removed:
        work.thing(thing)
    if installation.has_systemd and any(thing.kind is ThingKind.UNIT for thing in found.removed):
        systemd.control("daemon-reload")
    return Uninstalled(tuple(work.removed), tuple(work.kept), tuple(work.failed))


class _Removal:
    def __init__(self, installation: Installation, say: Say, kept: list[str]) -> None:
        self.installation = installation
        self.say = say
        self.removed: list[str] = []
        self.kept = kept
        self.failed: list[str] = []
        self.unfinished = False  # something is left that only the state folder and the configuration know

    async def step(self, step: RemovalStep) -> None:
        self.say(f"Removing {step.what}")
        try:
            outcome = await step.remove(self.say)
        except RavebotError as error:
            self.unfinished = True
            self.failed.append(f"{step.what}: {error}")
        else:
            self.removed += outcome.removed
            self.kept += outcome.left

    def thing(self, thing: Thing) -> None:
        if self.unfinished and (thing.purged or thing.kind in (ThingKind.USER, ThingKind.LINK)):
            self.kept.append(f"{thing.name}: it is needed to remove what is left; run this again later")
            return
        try:
            self._remove(thing)
        except (OSError, RavebotError) as error:
            self.failed.append(f"{thing.name}: {error}")
        else:
            self.removed.append(thing.name)
            self.say(f"{thing.name}: removed")

    def _remove(self, thing: Thing) -> None:
        if thing.kind is ThingKind.USER:
            self._take_back()
            account.remove(self.installation)
            return
        path = self.installation.at(thing.path)
        if thing.kind is ThingKind.FOLDER:
            shutil.rmtree(path)  # it does not follow links
        else:
            path.unlink(missing_ok=True)

    def _take_back(self) -> None:
        """Give what stays to root: the user's number may be given to somebody else."""
        found = account.find(self.installation)
        for thing in things(self.installation):
            if found and thing.kind is ThingKind.FOLDER and thing.owned:
                path = self.installation.at(thing.path)
                if path.is_dir() and not path.is_symlink():
                    files.take_back(path, found.owner.uid)
