"""Reads fields of GitLab's JSON, and checks their types and limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from ravebot.errors import RavebotError

_MAX_ID = 2**63 - 1
_MAX_LIST = 200  # GitLab allows 200 assignees or reviewers
_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_DISCUSSION = re.compile(r"[0-9A-Za-z]{1,64}")
_STATES = frozenset({"opened", "closed", "merged", "locked"})

Json = Mapping[str, object]


class Malformed(RavebotError):
    """Data that claims to come from GitLab lacks a field or has an invalid one."""


def mapping(body: Json, key: str) -> Json:
    value = body.get(key)
    if not isinstance(value, Mapping):
        raise Malformed(f"{key} is missing or no object")
    return value


def listing(body: Json, key: str) -> Sequence[object]:
    """The list, cut to `_MAX_LIST` items; empty when it is absent."""
    value = body.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Malformed(f"{key} is no list")
    return value[:_MAX_LIST]


def text(body: Json, key: str, limit: int) -> str:
    """The text, cut at `limit` characters; lone surrogates, which can't be stored, become `?`."""
    value = body.get(key)
    if not isinstance(value, str):
        raise Malformed(f"{key} is missing or no text")
    return value[:limit].encode("utf-8", "replace").decode()


def identifier(body: Json, key: str) -> int:
    value = optional_identifier(body, key)
    if value is None:
        raise Malformed(f"{key} is missing")
    return value


def optional_identifier(body: Json, key: str) -> int | None:
    """A positive number, or None where it is absent or null."""
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_ID:
        raise Malformed(f"{key} is no positive number")
    return value


def discussion_id(body: Json, key: str) -> str:
    """A discussion's id, which becomes a part of addresses; "" where it is absent or can't be one."""
    value = body.get(key)
    return value if isinstance(value, str) and _DISCUSSION.fullmatch(value) else ""


def texts(body: Json, key: str, limit: int) -> list[str]:
    """The texts of a list, each cut like `text`; anything else in it is left out."""
    found = [item for item in listing(body, key) if isinstance(item, str)]
    return [item[:limit].encode("utf-8", "replace").decode() for item in found]


def flag(body: Json, key: str) -> bool:
    value = body.get(key, False)
    if value is not None and not isinstance(value, bool):
        raise Malformed(f"{key} is neither true nor false")
    return bool(value)


def sha(body: Json, key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not _SHA.fullmatch(value):
        raise Malformed(f"{key} is no commit id")
    return value


def state(body: Json) -> str:
    value = body.get("state")
    if not isinstance(value, str) or value not in _STATES:
        raise Malformed("state is none of opened, closed, merged, locked")
    return value


def moment(body: Json, key: str) -> datetime | None:
    """The moment as UTC, in whole seconds; None if it is absent or can't be parsed.

    Webhooks (`2026-03-01 12:00:00 UTC`) have only whole seconds. With the API's milliseconds, a webhook of the same
    second would look older than an API answer that was read before it.
    """
    value = body.get(key)
    if not isinstance(value, str) or len(value) > 50:
        return None
    try:
        read = datetime.fromisoformat(value.replace(" UTC", "+00:00"))
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        return None


def web_url(body: Json, key: str) -> str:
    value = text(body, key, 4096)
    if not re.fullmatch(r"https?://[!-~]{1,2000}", value) or re.search(r"[<>\"'`()\\|]", value):
        raise Malformed(f"{key} is no web address")
    return value
