"""Working a stand-in that runs as a process of its own: JSON over a second loopback port, never the API's.

POST /<method> with the arguments as a JSON object; users and projects go by name, merge requests as `group/app!1`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import TypeVar

from aiohttp import web

from tests.support.gitlab.server import GitLabServer
from tests.support.gitlab.state import MergeRequest, Note, Project, User

T = TypeVar("T")
_METHODS = frozenset(
    {
        "add_hook", "add_key", "add_project", "add_user", "assign", "close", "comment", "delete_branch", "drop", "fail",
        "hang_up", "mark_ready", "merge", "notes", "open_merge_request", "protect", "push", "rate_limit", "redeliver",
        "reopen", "resolve", "restore", "retitle", "set_role", "token_for", "truncate_archives",
    }
)  # fmt: skip
_USERS = frozenset({"user", "author", "by"})
_PROJECTS = frozenset({"project", "fork_of"})


def control_app(gitlab: GitLabServer) -> web.Application:
    """An application that does to `gitlab` what it is told."""

    async def call(request: web.Request) -> web.Response:
        name = request.match_info["method"]
        if name not in _METHODS:
            return web.json_response({"error": f"there are {', '.join(sorted(_METHODS))}"}, status=404)
        method: Callable[..., object] = getattr(gitlab, name)
        try:
            given = json.loads(await request.read() or b"{}")
            arguments = {key: _argument(gitlab, key, value) for key, value in given.items()}
            inspect.signature(method).bind(**arguments)
            result = method(**arguments)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(_described(gitlab, result))

    handler: Callable[[web.Request], Awaitable[web.StreamResponse]] = call
    app = web.Application()
    app.router.add_post("/{method}", handler)
    return app


def _argument(gitlab: GitLabServer, key: str, value: object) -> object:
    state = gitlab.state
    if key in _USERS and isinstance(value, str):
        return _found(state.user_named(value), f"there is no user {value}")
    if key in _PROJECTS and isinstance(value, str):
        return _found(state.project_at(value), f"there is no project {value}")
    if key == "mr" and isinstance(value, str):
        path, _, iid = value.rpartition("!")
        project = _found(state.project_at(path), f"there is no project {path}")
        return _found(state.merge_request(project, int(iid)), f"there is no merge request {value}")
    if key in {"note", "reply_to"} and isinstance(value, int):
        found = (mr.notes[value] for mr in state.merge_requests if value in mr.notes)
        return _found(next(found, None), f"there is no note {value}")
    if key in {"assignees", "reviewers"} and isinstance(value, list):
        return tuple(_found(state.user_named(name), f"there is no user {name}") for name in value)
    return value


def _found(value: T | None, otherwise: str) -> T:
    if value is None:
        raise LookupError(otherwise)
    return value


def _described(gitlab: GitLabServer, result: object) -> object:
    if isinstance(result, MergeRequest):
        url = f"{gitlab.url}/{result.project.path}/-/merge_requests/{result.iid}"
        return {"ref": f"{result.project.path}!{result.iid}", "sha": result.sha, "state": result.state, "url": url}
    if isinstance(result, Note):
        return {"id": result.id, "author": result.author.username, "body": result.body, "emoji": gitlab.emoji(result)}
    if isinstance(result, User | Project):
        return {"id": result.id, "name": result.username if isinstance(result, User) else result.path}
    if isinstance(result, list):
        return [_described(gitlab, item) for item in result]
    if is_dataclass(result) and not isinstance(result, type):
        return {key: value for key, value in asdict(result).items() if isinstance(value, str | int | None)}
    return result if isinstance(result, str | int | Mapping | None) else str(result)
