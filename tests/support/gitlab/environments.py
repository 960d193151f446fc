"""Environments, deployments and commit statuses over the API, with the checks of GitLab's own code.

https://docs.gitlab.com/api/environments/, https://docs.gitlab.com/api/deployments/,
https://docs.gitlab.com/api/commits/#commit-status
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from aiohttp import web

from tests.support.gitlab import entities
from tests.support.gitlab.actions import Actions
from tests.support.gitlab.entities import Json
from tests.support.gitlab.paging import page
from tests.support.gitlab.refusal import Refusal, body_of, error
from tests.support.gitlab.state import DEVELOPER, Environment, Project, User

_STATES = frozenset({"available", "stopping", "stopped"})
_TIERS = frozenset({"production", "staging", "testing", "development", "other"})
_DEPLOYMENT_STATUSES = ("running", "success", "failed", "canceled")
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/-$.{} ")
_EVENTS = {
    "pending": "enqueue",
    "running": "run",
    "success": "success",
    "failed": "drop",
    "canceled": "cancel",
    "skipped": "skip",
}


class EnvironmentEndpoints:
    """Handlers over the state; `project` gives the request's project, or refuses who may not see it."""

    def __init__(
        self,
        actions: Actions,
        project: Callable[[web.Request], Project],
        user: Callable[[web.Request], User],
    ) -> None:
        self._actions, self._state = actions, actions.state
        self._any_project, self._user = project, user

    def routes(self, base: str) -> list[web.RouteDef]:
        environment, deployment = base + "/environments/{environment:[0-9]+}", base + "/deployments/{deployment:[0-9]+}"
        return [
            web.get(base + "/environments", self._list),
            web.post(base + "/environments", self._create),
            web.get(environment, self._one),
            web.put(environment, self._update),
            web.delete(environment, self._delete),
            web.post(environment + "/stop", self._stop),
            web.get(base + "/deployments", self._deployments),
            web.post(base + "/deployments", self._deploy),
            web.put(deployment, self._set_deployment),
            web.get(base + "/repository/commits/{sha}/statuses", self._statuses),
            web.post(base + "/statuses/{sha}", self._set_status),
        ]

    def _project(self, request: web.Request) -> Project:
        project = self._any_project(request)
        if not project.has_environments and not request.path.rpartition("/statuses")[1]:
            raise Refusal(403, "403 Forbidden")
        return project

    def _allowed(self, request: web.Request) -> Project:
        """The project, for whoever may change environments and statuses there."""
        project = self._project(request)
        if self._state.level(project, self._user(request)) < DEVELOPER:
            raise Refusal(403, "403 Forbidden")
        return project

    def _environment(self, request: web.Request, project: Project) -> Environment:
        found = project.environments.get(int(request.match_info["environment"]))
        if found is None:
            raise Refusal(404, "404 Not found")
        return found

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        if "name" in query and "search" in query:
            raise Refusal(400, "name, search cannot be used together", "error")
        if 0 < len(query.get("search", "")) < 3:
            raise Refusal(400, "400 Bad request - Search query is less than 3 characters")
        if query.get("states", "available") not in _STATES:
            raise Refusal(400, "states does not have a valid value", "error")
        with self._state.lock:
            project = self._project(request)
            found = [
                one
                for one in project.environments.values()
                if one.name == query.get("name", one.name)
                and one.name.lower().startswith(query.get("search", "").lower())
                and one.state == query.get("states", one.state)
            ]
            return page(request, self._actions.url, [entities.environment(self._actions.url, one) for one in found])

    async def _create(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        with self._state.lock:
            project = self._allowed(request)
            name, url = body.get("name"), body.get("external_url")
            if not isinstance(name, str):
                raise Refusal(400, "name is missing", "error")
            if body.get("tier", "other") not in _TIERS:
                raise Refusal(400, "tier does not have a valid value", "error")
            problems = _problems(project, name, url)
            if problems:
                return error(400, problems)
            made = self._state.add_environment(project, name, str(url or ""), str(body.get("tier") or "other"))
            return web.json_response(entities.environment(self._actions.url, made), status=201)

    async def _one(self, request: web.Request) -> web.Response:
        with self._state.lock:
            project = self._project(request)
            found = self._environment(request, project)
            last = [one for one in project.deployments.values() if one.environment is found][-1:]
            told = [entities.deployment(self._actions.url, one) for one in last]
            body = entities.environment(self._actions.url, found)
            return web.json_response(body | {"last_deployment": told[0] if told else None})

    async def _update(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        with self._state.lock:
            found = self._environment(request, self._allowed(request))
            if "external_url" in body:
                if problems := _url_problems(body["external_url"]):
                    return error(400, problems)
                found.external_url = str(body["external_url"] or "")
            found.updated_at = self._state.now()
            return web.json_response(entities.environment(self._actions.url, found))

    async def _delete(self, request: web.Request) -> web.Response:
        """`rule { ~stopped }.prevent(:destroy_environment)` (app/policies/environment_policy.rb)."""
        with self._state.lock:
            project = self._allowed(request)
            found = self._environment(request, project)
            if found.state != "stopped" or found.protected:
                raise Refusal(403, "403 Forbidden")
            self._actions.delete_environment(found)
        return web.Response(status=204)

    async def _stop(self, request: web.Request) -> web.Response:
        """Who may not stop it gets 200 too, and it stays as it is (app/services/environments/stop_service.rb)."""
        force = (await body_of(request)).get("force") is True
        with self._state.lock:
            project = self._project(request)
            found = self._environment(request, project)
            may = self._state.level(project, self._user(request)) >= DEVELOPER and not found.protected
            if may and found.state != "stopped":
                self._actions.stop_environment(found, force=force)
            return web.json_response(entities.environment(self._actions.url, found))

    async def _deployments(self, request: web.Request) -> web.Response:
        query = request.query
        with self._state.lock:
            found = [
                one
                for one in self._project(request).deployments.values()
                if one.environment.name == query.get("environment", one.environment.name)
            ]
            found.sort(key=lambda one: one.id, reverse=query.get("sort", "asc") == "desc")
            return page(request, self._actions.url, [entities.deployment(self._actions.url, one) for one in found])

    async def _deploy(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        with self._state.lock:
            project = self._allowed(request)
            missing = [key for key in ("environment", "sha", "ref", "tag", "status") if key not in body]
            if missing:
                raise Refusal(400, ", ".join(f"{key} is missing" for key in missing), "error")
            if body["status"] not in _DEPLOYMENT_STATUSES:
                raise Refusal(400, "status does not have a valid value", "error")
            name = str(body["environment"])
            found = next((one for one in project.environments.values() if one.name == name), None)
            if found and found.protected:
                raise Refusal(403, "403 Forbidden")
            environment = found or self._state.add_environment(project, name, "", "development")
            user, status = self._user(request), str(body["status"])
            made = self._state.add_deployment(environment, str(body["sha"]), str(body["ref"]), user, status)
            return web.json_response(entities.deployment(self._actions.url, made), status=201)

    async def _set_deployment(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        with self._state.lock:
            project = self._allowed(request)
            found = project.deployments.get(int(request.match_info["deployment"]))
            if found is None:
                raise Refusal(404, "404 Not found")
            status = body.get("status")
            if status not in _DEPLOYMENT_STATUSES:
                raise Refusal(400, "status does not have a valid value", "error")
            if found.environment.protected:
                raise Refusal(403, "403 Forbidden")
            if status in (found.status, "running"):  # one that is not `created` never runs
                event = {"running": "run", "success": "succeed", "failed": "drop", "canceled": "cancel"}[str(status)]
                return error(400, {"status": [f'cannot transition via "{event}"']})
            self._state.move_deployment(found, str(status))
            return web.json_response(entities.deployment(self._actions.url, found))

    async def _statuses(self, request: web.Request) -> web.Response:
        query = request.query
        with self._state.lock:
            project = self._project(request)
            sha = self._commit(project, request)
            found = [one for one in project.statuses if one.sha == sha and one.name == query.get("name", one.name)]
            newest = {(one.name, one.pipeline_id): one for one in found}
            shown = found if query.get("all") == "true" else list(newest.values())
            return page(request, self._actions.url, [entities.commit_status(self._actions.url, one) for one in shown])

    async def _set_status(self, request: web.Request) -> web.Response:
        """app/services/ci/create_commit_status_service.rb: one that is under way is changed, else a new one is made."""
        body = await body_of(request)
        with self._state.lock:
            project, user = self._allowed(request), self._user(request)
            sha = self._commit(project, request)
            state, name = str(body.get("state")), str(body.get("name") or body.get("context") or "default")
            if state not in _EVENTS:
                raise Refusal(400, "state does not have a valid value", "error")
            if len(str(body.get("description") or "")) > 255 or len(str(body.get("target_url") or "")) > 255:
                return error(400, {"description": ["is too long (maximum is 255 characters)"]})
            if "target_url" in body and urlsplit(str(body["target_url"])).scheme not in ("http", "https"):
                return error(400, {"target_url": ["is blocked: Only allowed schemes are http, https"]})
            ref = str(body.get("ref") or self._branch_of(project, sha))
            pipeline_id = body.get("pipeline_id")
            of_it = [one.id for one in project.pipelines if (one.sha, one.ref) == (sha, ref)]
            if pipeline_id is not None and pipeline_id not in of_it:
                raise Refusal(404, "404 Pipeline for pipeline_id, sha and ref Not Found")
            if pipeline_id is None:
                pipeline_id = max(of_it, default=None) or self._state.add_pipeline(project, sha, ref).id
            key = (sha, name, ref, pipeline_id, user)
            running = next(
                (
                    one
                    for one in project.statuses
                    if (one.sha, one.name, one.ref, one.pipeline_id, one.author) == key
                    and one.status in ("pending", "running")
                ),
                None,
            )
            event = _EVENTS[state]
            if running and (running.status == state or state == "pending"):
                why = f'(Reason(s): Status cannot transition via "{event}")'
                raise Refusal(400, f"Cannot transition status via :{event} from :{running.status} {why}")
            assert isinstance(pipeline_id, int)
            told = running or self._state.add_status(project, sha, name, ref, pipeline_id, user)
            told.status, told.updated_at = state, self._state.now()
            told.description = str(body.get("description") or told.description)
            told.target_url = str(body.get("target_url") or told.target_url)
            return web.json_response(entities.commit_status(self._actions.url, told), status=201)

    def _commit(self, project: Project, request: web.Request) -> str:
        sha = request.match_info["sha"]
        if sha not in project.commits:
            raise Refusal(404, "404 Commit Not Found")
        return sha

    def _branch_of(self, project: Project, sha: str) -> str:
        names = ["main", *(mr.branch for mr in self._state.merge_requests if mr.source_project is project)]
        for name in names:
            head = self._state.branch(project, name)
            if head and sha in self._state.history(project, head):
                return name
        raise Refusal(404, "404 References for commit Not Found")


def _problems(project: Project, name: str, url: object) -> Json:
    problems: dict[str, object] = dict(_url_problems(url))
    if any(one.name == name for one in project.environments.values()):
        problems["name"] = ["has already been taken"]
    elif not name or len(name) > 255 or not set(name) <= _NAME_CHARACTERS:
        problems["name"] = ["can contain only letters, digits, '-', '_', '/', '$', '{', '}', '.', and spaces"]
    return problems


def _url_problems(url: object) -> Json:
    if url is None or url == "":
        return {}
    text = str(url)
    if len(text) > 255:
        return {"external_url": ["is too long (maximum is 255 characters)"]}
    parts = urlsplit(text)
    if parts.scheme == "javascript":
        return {"external_url": ["javascript scheme is not allowed"]}
    return {}
