"""Answers as HTTP has them: JSON, problems as RFC 9457 says, pages with Link (RFC 8288)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from urllib.parse import urlencode

from pydantic_core import to_json
from starlette.responses import Response

from ravebot.tools.calls import ToolAnswer
from ravebot.tools.problems import ProblemKind, ToolProblem

_ALWAYS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "ravebot"}


def answer(found: ToolAnswer, headers: Mapping[str, str] | None = None) -> Response:
    more = dict(headers or {})
    if found.retry_after_seconds is not None:
        more["Retry-After"] = str(max(1, math.ceil(found.retry_after_seconds)))
    if found.repeated:
        more["Idempotency-Replayed"] = "true"
    if found.status == ProblemKind.NO_TOKEN.status:
        more["WWW-Authenticate"] = 'Bearer realm="ravebot"'
    kind = "application/json" if found.ok else "application/problem+json"
    return Response(to_json(dict(found.body)), found.status, {**_ALWAYS, **more}, kind)


def problem(kind: ProblemKind, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    return answer(ToolAnswer.of(ToolProblem(kind, detail)), headers)


def page_headers(path: str, query: Mapping[str, str], body: Mapping[str, object]) -> dict[str, str]:
    """What a page of a list says of the others."""
    numbers = {"next": body.get("next_page"), "prev": None, "first": 1}
    here = body.get("page")
    if isinstance(here, int) and here > 1:
        numbers["prev"] = here - 1
    links = [
        f'<{path}?{urlencode({**query, "page": str(number)})}>; rel="{name}"'
        for name, number in numbers.items()
        if number is not None
    ]
    following = body.get("next_page")
    return {
        "Link": ", ".join(links),
        "X-Next-Page": "" if following is None else str(following),
        "X-Total": str(body.get("total", "")),
    }
