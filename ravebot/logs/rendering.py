"""How an entry looks: what matters first, and nothing in it that could move a terminal's cursor or fake a line."""

from __future__ import annotations

import json
from collections.abc import Callable

from structlog.typing import EventDict, WrappedLogger

MULTILINE = ("exception", "stack")


def drop_record(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event.pop("_record", None)
    event.pop("_from_structlog", None)
    return event


def facts_first(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Puts time, level and event first, where people look."""
    first = {key: event[key] for key in ("timestamp", "level", "event") if key in event}
    return {**first, **event}


def printable(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escapes what could move the cursor, reverse a line or fake another one; tracebacks keep their line breaks."""
    return {key: shown(value, "\n" if key in MULTILINE else "") for key, value in event.items()}


def shown(value: object, also: str = "") -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    if text.isprintable():
        return value
    return "".join(
        char if char.isprintable() or char in also else char.encode("unicode_escape").decode() for char in text
    )


def as_json(event: EventDict, default: Callable[[object], object]) -> str:
    """JSON with the letters of all scripts, but with escapes for what could move the cursor or reverse a line: logs are
    also read in terminals."""
    text = json.dumps(event, ensure_ascii=False, default=default)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
