"""Says of JSON that a stranger sent, before it is parsed, whether that takes long. Pure.

Python's parser holds all other threads up until it is done, and what is parsed takes a hundred times the memory of its
text, unless it is mostly texts.
"""

from __future__ import annotations

MOST_STRINGS, MOST_OUTSIDE_BYTES = 100_000, 300_000
"""Texts, and what is not in texts."""


def is_quickly_parsed(raw: bytes) -> bool:
    """No step of this takes long.

    Without escaped backslashes and quotes, every quote begins or ends a text, as far as it is JSON.
    """
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in raw else raw
    return plain.count(b'"') <= 2 * MOST_STRINGS and sum(map(len, plain.split(b'"')[::2])) <= MOST_OUTSIDE_BYTES
