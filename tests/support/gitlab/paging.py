"""Offset pagination with GitLab's headers (https://docs.gitlab.com/api/rest/#pagination)."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from yarl import URL


def page(request: web.Request, base: str, items: Sequence[object]) -> web.Response:
    """The asked-for page of `items` and where the others are."""
    number, size = _number(request, "page", 1), min(_number(request, "per_page", 20), 100)
    pages = max(1, -(-len(items) // size))
    headers = {
        "X-Page": str(number),
        "X-Per-Page": str(size),
        "X-Total": str(len(items)),
        "X-Total-Pages": str(pages),
        "X-Next-Page": str(number + 1) if number < pages else "",
        "X-Prev-Page": str(number - 1) if number > 1 else "",
        "Link": ", ".join(f'<{_link(request, base, to, size)}>; rel="{name}"' for name, to in _links(number, pages)),
    }
    return web.json_response(items[(number - 1) * size : number * size], headers=headers)


def _links(number: int, pages: int) -> list[tuple[str, int]]:
    links = [("first", 1), ("last", pages)]
    if number > 1:
        links.insert(0, ("prev", number - 1))
    if number < pages:
        links.insert(0, ("next", number + 1))
    return links


def _link(request: web.Request, base: str, number: int, size: int) -> str:
    here = request.rel_url.update_query(page=str(number), per_page=str(size))
    return str(URL(base).join(here))


def _number(request: web.Request, key: str, default: int) -> int:
    text = request.query.get(key, "")
    return max(1, int(text)) if text.isdecimal() else default
