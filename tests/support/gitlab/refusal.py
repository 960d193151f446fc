"""How a request ends with an error, in GitLab's form, and how its texts are read."""

from __future__ import annotations

import json

from aiohttp import web


def error(status: int, message: object, key: str = "message") -> web.Response:
    return web.json_response({key: message}, status=status)


class Refusal(Exception):
    """Ends a request with an error answer."""

    def __init__(self, status: int, message: str, key: str = "message") -> None:
        super().__init__(message)
        self.response = error(status, message, key)


async def body_of(request: web.Request) -> dict[str, object]:
    """The request's JSON object; refuses anything else."""
    try:
        content = json.loads(await request.read() or b"{}")
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise Refusal(400, "400 Bad request - Error parsing JSON")
    return content


async def text_in(request: web.Request, key: str) -> str:
    """A text of the request's JSON body; refuses a missing, empty or too long one."""
    try:
        content = json.loads(await request.read() or b"{}")
    except ValueError:
        raise Refusal(400, "400 Bad request - Error parsing JSON") from None
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise Refusal(400, f"400 Bad request - {key} is missing")
    if len(value) > 1_000_000:
        raise Refusal(400, f"400 Bad request - {key} is too long (maximum is 1000000 characters)")
    return value
