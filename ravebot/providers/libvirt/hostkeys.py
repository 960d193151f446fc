"""Reading SSH host keys that a guest says it has: nothing but well-formed public keys gets through."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from ravebot.errors import GuestError

_TYPES = frozenset(("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"))
_MOST_KEYS = 8
_LONGEST_LINE = 4096


def parse_host_keys(text: str) -> tuple[str, ...]:
    """The keys in the text of `*.pub` files, one a line, as type and blob in their one canonical form.

    Raises GuestError for anything else.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= _MOST_KEYS:
        raise GuestError(f"the guest shows {len(lines)} SSH host keys: 1 to {_MOST_KEYS} are expected")
    return tuple(dict.fromkeys(_parsed(line) for line in lines))


def _parsed(line: str) -> str:
    words = line.split(maxsplit=2)
    if len(line) > _LONGEST_LINE or len(words) < 2 or words[0] not in _TYPES or not line.isascii():
        raise GuestError("the guest shows something as an SSH host key that is none")
    try:
        # Written anew, because junk between the letters of base64 is read past, and a key has one form only.
        key = load_ssh_public_key(f"{words[0]} {words[1]}".encode())
        return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise GuestError("the guest shows a damaged SSH host key") from error
