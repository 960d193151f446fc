"""Parses the SSH host keys that a guest reports: only well-formed public keys are accepted."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from ravebot.errors import GuestError

_TYPES = frozenset(("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"))
_MOST_KEYS = 8
_LONGEST_LINE = 4096


def parse_host_keys(text: str) -> tuple[str, ...]:
    """The keys in the text of `*.pub` files, one a line, as type and blob in canonical form.

    Raises GuestError for anything else.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= _MOST_KEYS:
        raise GuestError(f"the guest reports {len(lines)} SSH host keys: 1 to {_MOST_KEYS} are expected")
    return tuple(dict.fromkeys(_parsed(line) for line in lines))


def _parsed(line: str) -> str:
    words = line.split(maxsplit=2)
    if len(line) > _LONGEST_LINE or len(words) < 2 or words[0] not in _TYPES or not line.isascii():
        raise GuestError("the guest reports an SSH host key that is not one")
    try:
        # Encoded again, because base64 is decoded without regard to junk in it, and each key must have one form.
        key = load_ssh_public_key(f"{words[0]} {words[1]}".encode())
        return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise GuestError("the guest reports a damaged SSH host key") from error
