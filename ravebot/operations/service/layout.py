"""All that is installed on a host, in one table: `install`, `uninstall` and the docs go through it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from ravebot.operations.service import completion, manual, units

LINK = Path("/usr/local/bin/ravebot")
MARK = "Installed by ravebot: `ravebot uninstall` removes it."
"""Stands in a comment of every file that is installed. A file without it is somebody else's."""
FOLDER_MARK = ".made-by-ravebot"
"""A file in each folder that was made. A folder without it was there before, and stays."""
_SHARED = Path("/usr/local/share")
_UNITS = Path("/etc/systemd/system")
GROUPS = ("libvirt", "kvm")
"""libvirt: to make machines. kvm: to try KVM out."""


@dataclass(frozen=True)
class Installation:
    """Where ravebot is installed. Below another `root` nothing of the running system is touched."""

    config: Path = units.CONFIG
    state_dir: Path = units.STATE_DIR
    program: Path = Path(sys.executable).parent / "ravebot"
    user: str = units.USER
    root: Path = Path("/")
    images_folder: Path | None = None  # `provider.pipeline_images.folder`

    @property
    def secrets(self) -> Path:
        return self.config.parent / "secrets"

    @property
    def is_this_host(self) -> bool:
        return self.root == Path("/")

    @property
    def has_systemd(self) -> bool:
        """Whether systemd runs: sd_booted(3)."""
        return self.is_this_host and Path("/run/systemd/system").is_dir()

    def at(self, path: Path) -> Path:
        """Where a path of the installation is on this host."""
        return self.root / path.relative_to("/")


class ThingKind(StrEnum):
    """How a thing is made and removed."""

    USER = "user"
    FOLDER = "folder"
    FILE = "file"
    UNIT = "unit"
    LINK = "link"


@dataclass(frozen=True)
class Thing:
    """One thing that is installed. `path` of a user is its name; `text` of a link is its target."""

    kind: ThingKind
    path: Path
    what: str
    mode: int = 0o644
    owned: bool = False  # by ravebot's user; else by root
    text: Callable[[], str] | None = None
    purged: bool = False  # stays, unless everything shall go

    @property
    def name(self) -> str:
        """For people."""
        return f"user {self.path}" if self.kind is ThingKind.USER else str(self.path)

    @property
    def is_timer(self) -> bool:
        return self.path.suffix == ".timer"


def things(installation: Installation) -> tuple[Thing, ...]:
    """Everything, in the order in which it is made; it is removed in the opposite one."""
    config, user = installation.config, Path(installation.user)
    return (
        Thing(ThingKind.USER, user, "the user that ravebot runs as"),
        Thing(ThingKind.FOLDER, config.parent, "the configuration", 0o755, purged=True),
        Thing(ThingKind.FOLDER, installation.secrets, "the files with secrets", 0o700, owned=True, purged=True),
        Thing(ThingKind.FOLDER, installation.state_dir, "the database and the logs", 0o711, owned=True, purged=True),
        Thing(ThingKind.LINK, LINK, "the command", text=partial(str, installation.program)),
        Thing(ThingKind.FILE, _SHARED / "man/man1/ravebot.1", "the manual page", text=_marked('.\\"', manual.page)),
        *(_completion(shell, path) for shell, path in completion.FILES.items()),
        *(_unit(name, installation) for name in units.names()),
    )


def _completion(shell: str, path: Path) -> Thing:
    text = _marked("#", partial(completion.script, shell))
    return Thing(ThingKind.FILE, _SHARED / path, f"completion for {shell}", text=text)


def _unit(name: str, installation: Installation) -> Thing:
    render = partial(
        units.render,
        name,
        program=installation.program,
        config=installation.config,
        state_dir=installation.state_dir,
        user=installation.user,
        images_folder=installation.images_folder,
    )
    return Thing(ThingKind.UNIT, _UNITS / name, _WHAT.get(name, "a unit"), text=_marked("#", render))


_WHAT = {
    "ravebot.service": "the bot",
    "ravebot-logs.service": "lets ravebot read its machines' logs, and removes old ones",
    "ravebot-logs.timer": "starts that every quarter of an hour",
    "ravebot-backup.service": "makes a backup",
    "ravebot-backup.timer": "starts that every day",
}


def _marked(comment: str, make: Callable[[], str]) -> Callable[[], str]:
    """With the mark as the first line, or the second where the first one means something (zsh's `#compdef`)."""

    def text() -> str:
        made = make()
        first, _, rest = made.partition("\n")
        mark = f"{comment} {MARK}"
        return f"{first}\n{mark}\n{rest}" if first.startswith("#compdef") else f"{mark}\n{made}"

    return text
