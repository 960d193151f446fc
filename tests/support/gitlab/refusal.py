"""How a request ends with an error, in GitLab's form."""

from __future__ import annotations

from aiohttp import web


def error(status: int, message: object, key: str = "message") -> web.Response:
    return web.json_response({key: message}, status=status)


class Refusal(Exception):
    """Ends a request with an error answer."""

    def __init__(self, status: int, message: str, key: str = "message") -> None:
        super().__init__(message)
        self.response = error(status, message, key)
