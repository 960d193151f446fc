"""Reads secrets, each from a file of its own that only its owner may read."""

from __future__ import annotations

import base64
import binascii
import os
import shlex
import stat
import struct
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

MAX_BYTES = 64 * 1024


@dataclass(frozen=True, repr=False)
class Secrets:
    """The secrets that the configuration names; None for those that it does not name."""

    matrix_password: str | None = None
    matrix_access_token: str | None = None
    store_passphrase: str | None = None
    gitlab_token: str = ""
    gitlab_proxy_login: str | None = None
    webhook_secret: str | None = None
    webhook_signing: str | None = None
    previous_webhook_secret: str | None = None
    previous_webhook_signing: str | None = None
    alertmanager_token: str | None = None
    agent_signing: Mapping[str, str] = field(default_factory=dict)  # by the agent's name
    model_keys: Mapping[str, str] = field(default_factory=dict)  # by the name in `models`

    def __repr__(self) -> str:
        return "Secrets(…)"

    def values(self) -> frozenset[str]:
        """All secrets, so that logs can hide them."""
        found = [getattr(self, item.name) for item in fields(self)]
        listed = (value for one in found if isinstance(one, Mapping) for value in one.values())
        return frozenset(value for value in (*found, *listed) if value and isinstance(value, str))


SECRET_KEYS: dict[str, tuple[str, ...]] = {
    "matrix_password": ("matrix", "password_file"),
    "matrix_access_token": ("matrix", "access_token_file"),
    "store_passphrase": ("matrix", "store_passphrase_file"),
    "gitlab_token": ("gitlab", "token_file"),
    "gitlab_proxy_login": ("gitlab", "proxy_login_file"),
    "webhook_secret": ("gitlab", "webhook", "secret_token_file"),
    "webhook_signing": ("gitlab", "webhook", "signing_token_file"),
    "previous_webhook_secret": ("gitlab", "webhook", "previous_secret_token_file"),
    "previous_webhook_signing": ("gitlab", "webhook", "previous_signing_token_file"),
    "alertmanager_token": ("monitoring", "alertmanager_token_file"),
}
"""For each secret, the key of the configuration that names its file."""
LISTED_SECRETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "agent_signing": ("agents", ("webhook", "signing_key_file")),
    "model_keys": ("models", ("key_file",)),
}
"""For each kind of secret that the entries of a list have, the list and the key of an entry that names its file. They
are known by the entries' `name`."""


SIGNING_KEY = "whsec_"
_SHORTEST_KEY, _LONGEST_KEY = 24, 64
"""Bytes, by https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md"""


def signing_key(text: str) -> bytes:
    """The key that signs webhooks to an agent. Raises ValueError; its message says what to do."""
    how = f"write {SIGNING_KEY} and {_SHORTEST_KEY} to {_LONGEST_KEY} random bytes in Base64; docs/agents.md makes one"
    try:
        key = base64.b64decode(text.removeprefix(SIGNING_KEY), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the file holds no signing key: {how}") from error
    if not text.startswith(SIGNING_KEY) or not _SHORTEST_KEY <= len(key) <= _LONGEST_KEY:
        raise ValueError(f"the file holds no signing key of the right length: {how}")
    return key


def read_secret(path: Path, owners: Container[int]) -> str:
    """Read a file of one line that belongs to one of `owners`.

    Raises ValueError; its message says what to do and never contains the secret.
    """
    try:
        # Non-blocking, because opening a named pipe could wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {path}: put the secret in it, then chmod 600 {shlex.quote(str(path))}"
        ) from None
    except OSError as error:
        reason = error.strerror
        raise ValueError(f"{path} can't be read ({reason}): it must belong to ravebot's user") from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            what = "a folder" if stat.S_ISDIR(facts.st_mode) else "not a regular file"
            raise ValueError(f"{path} is {what}: name a file that holds the secret")
        if facts.st_uid not in owners:
            raise ValueError(f"{path} belongs to user {facts.st_uid}, who could change it: chown it to ravebot's user")
        if _open_to_others(descriptor, facts.st_mode, owners):
            raise ValueError(f"others may read or write {path}: chmod 600 {shlex.quote(str(path))}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            raw = file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{path} is larger than 64 KiB: put only the secret in it, in one line")
    try:
        text = raw.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    if not text:
        raise ValueError(f"{path} is empty: put the secret in it")
    if not text.isprintable():
        raise ValueError(f"{path} has more than one line or control characters: put only the secret in it")
    return text


_USER_OBJECT, _USER, _MASK = 0x01, 0x02, 0x10


def _open_to_others(descriptor: int, mode: int, owners: Container[int]) -> bool:
    """Whether anyone but `owners` may read or write the file.

    With an access list, the group's bits of the mode are its mask, so it is read instead: systemd gives a service that
    does not run as root its credentials by such a list. https://man7.org/linux/man-pages/man5/acl.5.html; the form of
    the attribute is that of linux/posix_acl_xattr.h.
    """
    try:
        acl = os.getxattr(descriptor, "system.posix_acl_access")
    except OSError:  # the file or the file system has none
        return bool(mode & (stat.S_IRWXG | stat.S_IRWXO))
    entries = struct.iter_unpack("<HHI", acl[4:])
    return any(
        permissions and tag not in (_USER_OBJECT, _MASK) and not (tag == _USER and who in owners)
        for tag, permissions, who in entries
    )
