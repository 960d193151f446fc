"""What is wrong, or of no use, with the values of several keys."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.config.tree import KeyPath


@dataclass(frozen=True)
class Remark:
    """A problem with the value at a key path, and what to do about it.

    `depends_on`: the keys that it follows from; empty when that is only the key at `path`.
    """

    path: KeyPath
    message: str
    depends_on: tuple[KeyPath, ...] = ()


@dataclass(frozen=True)
class Remarks:
    """`errors` prevent the start; `warnings` are only reported."""

    errors: tuple[Remark, ...]
    warnings: tuple[Remark, ...]
