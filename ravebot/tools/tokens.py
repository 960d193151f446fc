"""What a token looks like: `rave_`, 256 random bits, and a checksum by which a mistyped one is known. Pure."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import zlib

PREFIX = "rave_"
_RANDOM_BYTES = 32
_FORM = re.compile(r"rave_([A-Za-z0-9_-]{43})([A-Za-z0-9_-]{6})", re.ASCII)


def new() -> str:
    """A token that nobody can guess."""
    body = _text(secrets.token_bytes(_RANDOM_BYTES))
    return f"{PREFIX}{body}{_checksum(body)}"


def hash_of(token: str) -> str | None:
    """What is stored of a token; None for a text that is none."""
    match = _FORM.fullmatch(token)
    if match is None or match[2] != _checksum(match[1]):
        return None
    return hashlib.sha256(token.encode("ascii")).hexdigest()


def _checksum(body: str) -> str:
    return _text(zlib.crc32(body.encode("ascii")).to_bytes(4, "big"))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
