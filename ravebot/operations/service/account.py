"""The account that ravebot runs as: a system user without a shell, in the groups that libvirt and KVM ask for."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from ravebot.errors import RavebotError, Refused
from ravebot.operations.service.files import FileOwner
from ravebot.operations.service.layout import GROUPS, Installation

COMMENT = "ravebot's service"
"""The account's description, by which `ravebot uninstall` knows that it was made here."""
_NO_LOGIN = ("nologin", "false")
_LAST_SYSTEM_UID = 999


class AccountFailed(RavebotError):
    """The user could not be made, changed or removed; the message says what the program said."""


@dataclass(frozen=True)
class Account:
    """A line of /etc/passwd, and the groups that name the user."""

    name: str
    owner: FileOwner
    comment: str
    shell: str
    groups: frozenset[str]

    @property
    def is_ours(self) -> bool:
        return self.comment == COMMENT

    @property
    def can_log_in(self) -> bool:
        system = 0 < self.owner.uid <= _LAST_SYSTEM_UID
        return not system or not self.shell.endswith(_NO_LOGIN)


def find(installation: Installation) -> Account | None:
    """The user, if there is one."""
    for line in _lines(installation, "passwd"):
        if len(line) >= 7 and line[0] == installation.user:
            groups = {group[0] for group in _lines(installation, "group") if installation.user in group[-1].split(",")}
            return Account(
                line[0], FileOwner(int(line[2]), int(line[3])), line[4].split(",")[0], line[6], frozenset(groups)
            )
    return None


def ensure(installation: Installation) -> tuple[Account, tuple[str, ...]]:
    """Make the user, and put it into its groups. Returns it, and what was done. Raises Refused, AccountFailed."""
    known = {line[0] for line in _lines(installation, "group")}
    missing = [name for name in GROUPS if name not in known]
    if missing:
        raise Refused(
            f"there is no group {' or '.join(missing)}, which ravebot's user must be in: install libvirt first"
            " (apt-get install libvirt-daemon-system qemu-system-x86)"
        )
    done: list[str] = []
    account = find(installation)
    if account is None:
        _run(
            "useradd", *_prefix(installation), "--system", "--no-create-home", "--comment", COMMENT,
            *(("--gid", installation.user) if installation.user in known else ("--user-group",)),
            "--home-dir", str(installation.state_dir), "--shell", "/usr/sbin/nologin", "--", installation.user,
        )  # fmt: skip
        account = find(installation)
        done.append(f"user {installation.user}: made")
        if account is None:
            raise AccountFailed(f"useradd made no user {installation.user}: look for it with getent passwd")
    elif account.can_log_in:
        raise Refused(
            f"the user {account.name} (uid {account.owner.uid}, shell {account.shell}) exists already and can log in:"
            " ravebot needs a user of its own, because it gets rights that equal root's. Rename that one or remove it"
        )
    for group in GROUPS:
        if group not in account.groups:
            _run("usermod", *_prefix(installation), "--append", "--groups", group, "--", installation.user)
            done.append(f"user {installation.user}: now in the group {group}")
    return account, tuple(done)


def remove(installation: Installation) -> None:
    """Remove the user and its group. Raises AccountFailed, also while the user has processes."""
    _run("userdel", *_prefix(installation), "--", installation.user)
    for line in _lines(installation, "group"):  # userdel leaves it where login.defs says so
        if line[0] == installation.user and not line[-1]:
            _run("groupdel", *_prefix(installation), "--", installation.user)


def _prefix(installation: Installation) -> tuple[str, ...]:
    return () if installation.is_this_host else ("--prefix", str(installation.root))


def _lines(installation: Installation, name: str) -> list[list[str]]:
    try:
        text = (installation.root / "etc" / name).read_text("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.split(":") for line in text.splitlines()]


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise AccountFailed(f"{command[0]} can't be run ({error.strerror}): install the package passwd") from error
    if done.returncode != 0:
        raise AccountFailed(f"{command[0]} failed: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
