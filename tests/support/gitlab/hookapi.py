"""The endpoints of a project's webhooks (https://docs.gitlab.com/api/project_webhooks/)."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from urllib.parse import urlsplit

from aiohttp import web

from tests.support.gitlab import payloads
from tests.support.gitlab.actions import Actions
from tests.support.gitlab.entities import api_time
from tests.support.gitlab.hooks import Hook, Message
from tests.support.gitlab.paging import page
from tests.support.gitlab.refusal import Refusal, body_of
from tests.support.gitlab.state import Project

Json = dict[str, object]
MOST_HOOKS = 100
_EVENTS = tuple(
    f"{kind}_events"
    for kind in (
        "push", "issues", "confidential_issues", "merge_requests", "tag_push", "note", "confidential_note", "job",
        "pipeline", "wiki_page", "deployment", "feature_flag", "releases", "milestone", "emoji",
        "resource_access_token",
    )
)  # fmt: skip
_TEXTS = ("name", "description", "push_events_branch_filter", "branch_filter_strategy", "custom_webhook_template")
_FLAGS = (*_EVENTS, "enable_ssl_verification")


class HookEndpoints:
    """Handlers over the state; `project` gives the request's project, or refuses who is no Maintainer."""

    def __init__(self, actions: Actions, project: Callable[[web.Request], Project]) -> None:
        self._actions, self._project = actions, project

    def routes(self, base: str) -> list[web.RouteDef]:
        one = base + "/{hook:[0-9]+}"
        return [
            web.get(base, self._list),
            web.post(base, self._create),
            web.get(one, self._get),
            web.put(one, self._edit),
            web.delete(one, self._delete),
            web.get(one + "/events", self._events),
            web.post(one + "/test/{trigger}", self._test),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        with self._actions.state.lock:
            hooks = self._of(self._project(request))
            return page(request, self._actions.url, [self._entity(hook) for hook in hooks])

    async def _get(self, request: web.Request) -> web.Response:
        with self._actions.state.lock:
            return web.json_response(self._entity(self._hook(request)))

    async def _create(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        with self._actions.state.lock:
            project = self._project(request)
            if "url" not in body:
                raise Refusal(400, "url is missing", "error")
            self._check(body)
            if len(self._of(project)) >= MOST_HOOKS:
                raise Refusal(422, f"Maximum number of project hooks ({MOST_HOOKS}) exceeded")
            hook = self._actions.hooks.add(str(body["url"]), project.id, None, None, 0)
            hook.settings = {"push_events": True, "enable_ssl_verification": True}
            self._take(hook, body)
            return web.json_response(self._entity(hook), status=201)

    async def _edit(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        with self._actions.state.lock:
            hook = self._hook(request)
            self._check(body)
            if "url" in body and body["url"] != hook.url:
                hook.url, hook.secret_token = str(body["url"]), None
            self._take(hook, body)
            return web.json_response(self._entity(hook))

    async def _delete(self, request: web.Request) -> web.Response:
        with self._actions.state.lock:
            self._actions.hooks.hooks.remove(self._hook(request))
        return web.Response(status=204)

    async def _events(self, request: web.Request) -> web.Response:
        with self._actions.state.lock:
            hook = self._hook(request)
            attempts = [attempt for attempt in self._actions.deliveries if attempt.message.hook is hook]
        told: list[object] = [
            {"id": number, "url": hook.url, "response_status": str(attempt.status or "internal error")}
            for number, attempt in enumerate(attempts, 1)
        ]
        return page(request, self._actions.url, told[::-1])

    async def _test(self, request: web.Request) -> web.Response:
        with self._actions.state.lock:
            hook, project = self._hook(request), self._project(request)
            if request.match_info["trigger"] != "merge_requests_events":
                raise Refusal(400, "trigger does not have a valid value", "error")
            mrs = [mr for mr in self._actions.state.merge_requests if mr.project is project]
            if not mrs:
                raise Refusal(422, "Ensure the project has merge requests.")
            payload = payloads.merge_request_event(self._actions.url, mrs[-1], mrs[-1].author, "open")
        attributes = payload["object_attributes"]
        assert isinstance(attributes, dict)
        del attributes["action"]  # nothing happened
        message = Message(hook, "Merge Request Hook", json.dumps(payload).encode())
        attempt = await self._actions.hooks.test(message)
        if attempt.status is None or not 200 <= attempt.status < 300:
            raise Refusal(422, attempt.error or attempt.answer.decode(errors="replace"))
        return web.json_response({"message": "201 Created"}, status=201)

    def _of(self, project: Project) -> list[Hook]:
        return [hook for hook in self._actions.hooks.hooks if hook.project_id == project.id]

    def _hook(self, request: web.Request) -> Hook:
        number = int(request.match_info["hook"])
        for hook in self._of(self._project(request)):
            if hook.id == number:
                return hook
        raise Refusal(404, "404 Not found")

    def _check(self, body: Json) -> None:
        if "url" in body and not self._is_allowed(str(body["url"])):
            raise Refusal(422, "Invalid url given", "error")
        for key in _FLAGS:
            if not isinstance(body.get(key, True), bool):
                raise Refusal(400, f"{key} is invalid", "error")

    def _is_allowed(self, url: str) -> bool:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return False
        if self._actions.local_hooks_allowed:
            return True
        try:
            return not ipaddress.ip_address(parts.hostname).is_private
        except ValueError:
            return parts.hostname != "localhost"

    def _take(self, hook: Hook, body: Json) -> None:
        hook.settings |= {key: body[key] for key in (*_FLAGS, *_TEXTS) if key in body}
        if "token" in body:
            hook.secret_token = str(body["token"])
        if "signing_token" in body and self._actions.knows_signing_tokens:
            hook.signing_token = str(body["signing_token"])

    def _entity(self, hook: Hook) -> Json:
        told = {
            "token_present": hook.secret_token is not None,
            "signing_token_present": hook.signing_token is not None,
        }
        return {
            "id": hook.id,
            "url": hook.url,
            "created_at": api_time(hook.created_at),
            **{key: hook.settings.get(key, False) for key in _EVENTS},
            **{key: hook.settings.get(key) for key in _TEXTS},
            "enable_ssl_verification": hook.settings.get("enable_ssl_verification", True),
            "repository_update_events": False,
            "alert_status": hook.alert_status,
            "disabled_until": hook.disabled_until,
            "url_variables": [],
            "custom_headers": [{"key": key} for key in hook.custom_headers],
            "project_id": hook.project_id,
            **(told if self._actions.knows_signing_tokens else {}),
        }
