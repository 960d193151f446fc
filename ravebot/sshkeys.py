"""SSH public keys as OpenSSH writes them, one a line: type, Base64 and a comment, which is ignored.

Only the form is checked. A library for that would take a third of a second to import, in every command.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping

_Check = Callable[[bytes], bool]


def _is(known: bytes) -> _Check:
    return lambda field: field == known


def _point(size: int) -> _Check:
    """An uncompressed point, the only form that OpenSSH accepts."""
    return lambda field: len(field) == size and field[0] == 4


def _number(field: bytes) -> bool:
    """A positive number in as few bytes as possible (RFC 4251, 5)."""
    return field > b"\0" and field[0] < 128 and (field[0] > 0 or field[1] >= 128)


def _exponent(field: bytes) -> bool:
    return _number(field) and field > b"\1" and field[-1] % 2 == 1


def _modulus(field: bytes) -> bool:
    return _number(field) and len(field) >= 64


_FIELDS: Mapping[str, tuple[_Check, ...]] = {
    "ssh-ed25519": (lambda field: len(field) == 32,),
    "ssh-rsa": (_exponent, _modulus),
    "ecdsa-sha2-nistp256": (_is(b"nistp256"), _point(65)),
    "ecdsa-sha2-nistp384": (_is(b"nistp384"), _point(97)),
    "ecdsa-sha2-nistp521": (_is(b"nistp521"), _point(133)),
    "sk-ssh-ed25519@openssh.com": (lambda field: len(field) == 32, bool),
    "sk-ecdsa-sha2-nistp256@openssh.com": (_is(b"nistp256"), _point(65), bool),
}
"""What follows the type in a key: RFC 8709, 4; RFC 4253, 6.6; RFC 5656, 3.1; OpenSSH's PROTOCOL.u2f."""
HOST_TYPES = frozenset(kind for kind in _FIELDS if not kind.startswith("sk-"))


def parse(line: str) -> str:
    """Type and Base64 of a key, in canonical form. Raises ValueError for anything else."""
    kind, blob = _split(line)
    checks, fields = (_is(kind.encode()), *_FIELDS.get(kind, ())), _fields(blob)
    fits = len(fields) == len(checks) and all(check(field) for check, field in zip(checks, fields, strict=True))
    if kind not in _FIELDS or not fits:
        raise ValueError("not an SSH public key of a known type")
    return f"{kind} {base64.b64encode(blob).decode()}"


def fingerprint(line: str) -> str:
    """`SHA256:…` of a key, as `ssh-keygen -l` prints it. Raises ValueError if it is not a key."""
    digest = hashlib.sha256(_split(line)[1]).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _split(line: str) -> tuple[str, bytes]:
    words = line.split(maxsplit=2)
    if len(words) < 2:
        raise ValueError("not an OpenSSH public key line")
    try:
        return words[0], base64.b64decode(words[1], validate=True)
    except binascii.Error as error:
        raise ValueError("not an OpenSSH public key line") from error


def _fields(blob: bytes) -> list[bytes]:
    """The fields of a key, each preceded by its length (RFC 4251, 5)."""
    fields = []
    while blob:
        end = 4 + int.from_bytes(blob[:4])
        if len(blob) < end:
            raise ValueError("the SSH public key is cut off")
        fields.append(blob[4:end])
        blob = blob[end:]
    return fields
