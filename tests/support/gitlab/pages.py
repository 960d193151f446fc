"""A web page for each merge request, so that a person can look at what a bot posts."""

from __future__ import annotations

from aiohttp import web

from tests.support.gitlab.actions import Actions
from tests.support.gitlab.page import render


class Pages:
    """Handlers for people's browsers; nobody logs in here."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/{path:.+}/-/merge_requests/{iid:[0-9]+}", self._merge_request)

    async def _merge_request(self, request: web.Request) -> web.Response:
        state = self._actions.state
        with state.lock:
            project = state.project_at(request.match_info["path"])
            mr = state.merge_request(project, int(request.match_info["iid"])) if project else None
            if mr is None:
                raise web.HTTPNotFound(text="404: there is no such merge request")
            text = render(mr)
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})
