"""Web pages of merge requests and environments, so that a person can look at what a bot posts, and stop it."""

from __future__ import annotations

from aiohttp import web

from tests.support.gitlab.actions import Actions
from tests.support.gitlab.environmentpage import render_environments
from tests.support.gitlab.page import render
from tests.support.gitlab.state import Project

_POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"}


class Pages:
    """Handlers for people's browsers; nobody logs in here."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/{path:.+}/-/merge_requests/{iid:[0-9]+}", self._merge_request)
        app.router.add_get("/{path:.+}/-/environments", self._environments)
        app.router.add_get("/{path:.+}/-/environments/{id:[0-9]+}", self._environments)
        app.router.add_post("/{path:.+}/-/environments/{id:[0-9]+}/stop", self._stop)

    async def _merge_request(self, request: web.Request) -> web.Response:
        state = self._actions.state
        with state.lock:
            project = state.project_at(request.match_info["path"])
            mr = state.merge_request(project, int(request.match_info["iid"])) if project else None
            if mr is None:
                raise web.HTTPNotFound(text="404: there is no such merge request")
            text = render(mr)
        return web.Response(text=text, content_type="text/html", headers=_POLICY)

    async def _environments(self, request: web.Request) -> web.Response:
        number = request.match_info.get("id")
        with self._actions.state.lock:
            project = self._project(request)
            if number is not None and int(number) not in project.environments:
                raise web.HTTPNotFound(text="404: there is no such environment")
            text = render_environments(project, int(number) if number else None)
        return web.Response(text=text, content_type="text/html", headers=_POLICY)

    async def _stop(self, request: web.Request) -> web.Response:
        with self._actions.state.lock:
            project = self._project(request)
            found = project.environments.get(int(request.match_info["id"]))
            if found is None:
                raise web.HTTPNotFound(text="404: there is no such environment")
            if found.state == "available":
                self._actions.stop_environment(found)
        raise web.HTTPSeeOther(f"/{project.path}/-/environments")

    def _project(self, request: web.Request) -> Project:
        project = self._actions.state.project_at(request.match_info["path"])
        if project is None:
            raise web.HTTPNotFound(text="404: there is no such project")
        return project
