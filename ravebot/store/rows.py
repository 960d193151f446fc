"""Frozen dataclasses as rows: a field is stored in the column of its name, unless the caller stores it otherwise.

A moment is a number of microseconds, a boolean 0 or 1, a tuple a JSON list.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ravebot.clock import from_us, to_us
from ravebot.store.database import Value, dump_json

T = TypeVar("T")


def load(kind: Callable[..., T], row: Mapping[str, Any] | sqlite3.Row, **others: object) -> T:
    """The `kind` that a row holds; `others` are the fields that are not in a column of their name."""
    readers = _readers(kind)
    stored = {
        name: read(row[name]) if row[name] is not None else None for name, read in readers.items() if name not in others
    }
    return kind(**stored, **others)


def dump(value: Any, *, without: tuple[str, ...] = ()) -> dict[str, Value]:
    """The columns of a dataclass, but for the fields that the caller stores otherwise."""
    names = (one.name for one in fields(value) if one.name not in without)
    return {name: _column(getattr(value, name)) for name in names}


def _column(value: Any) -> Value:
    if isinstance(value, datetime):
        return to_us(value)
    if isinstance(value, bool):
        return int(value)
    return dump_json(list(value)) if isinstance(value, tuple) else value


@cache
def _readers(kind: Callable[..., object]) -> Mapping[str, Callable[[Any], object]]:
    return {name: _reader(hint) for name, hint in get_type_hints(kind).items()}


def _reader(hint: Any) -> Callable[[Any], object]:
    """How to read a column that is not NULL as a field of this type."""
    if isinstance(hint, UnionType):  # X | None
        hint = get_args(hint)[0]
    if get_origin(hint) is tuple:
        return lambda text: tuple(json.loads(text))
    if hint is datetime:
        return from_us
    return hint if hint is bool or (isinstance(hint, type) and issubclass(hint, Enum)) else lambda value: value
