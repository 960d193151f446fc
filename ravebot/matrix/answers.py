"""Turns a homeserver's answer into JSON or an error; pure, so that unusual answers can be tested without a server."""

from __future__ import annotations

import json
import re
from typing import Any

from ravebot.errors import Forbidden, NotFound, SlowDown, Unacceptable, Unavailable

Json = dict[str, Any]

_LONGEST_WAIT_SECONDS = 3600.0
_DEAD_LOGIN = frozenset(
    {"M_UNKNOWN_TOKEN", "M_MISSING_TOKEN", "M_USER_DEACTIVATED", "M_USER_LOCKED", "M_USER_SUSPENDED"}
)


class LoginLost(Forbidden):
    """The homeserver no longer accepts our login: nothing works before a new one."""


def judge(status: int, retry_after: str | None, raw: bytes) -> Json:
    """Return the answer's JSON object, or raise the error that it stands for.

    Errors: client-server API (https://spec.matrix.org/latest/client-server-api/#standard-error-response).
    """
    body = _parsed(raw)
    if 200 <= status < 300 and body is not None:
        return body
    code = str((body or {}).get("errcode", ""))[:100]
    text = " ".join(str((body or {}).get("error", "")).split())[:300]
    said = f"{status} {code} {text}".strip()
    if status == 429 or code == "M_LIMIT_EXCEEDED":
        raise SlowDown(f"Matrix asks us to slow down: {said}", _wait_seconds(body, retry_after))
    if code in _DEAD_LOGIN:
        raise LoginLost(said)
    if not code.startswith("M_") or status >= 500 or status < 400:
        # An answer without an errcode is from a proxy, whatever its status: the homeserver is not there.
        raise Unavailable(f"Matrix answered {said}", _wait_seconds(body, retry_after))
    if status == 404:
        raise NotFound(f"Matrix does not find it: {said}")
    raise (Unacceptable if status in (400, 413) else Forbidden)(f"Matrix refused: {said}")


def _parsed(raw: bytes) -> Json | None:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _wait_seconds(body: Json | None, header: str | None) -> float | None:
    """How long to wait: the longer of the body's `retry_after_ms` and the header's seconds."""
    waits: list[float] = []
    in_body = (body or {}).get("retry_after_ms")
    if isinstance(in_body, int | float) and not isinstance(in_body, bool):
        waits.append(in_body / 1000)
    if header is not None and re.fullmatch(r"\d{1,9}", header.strip(), re.ASCII):
        waits.append(float(header))
    return min(max(0.0, *waits, 0.0), _LONGEST_WAIT_SECONDS) if waits else None
