"""Branches, commits and files over the API, with Gitaly's checks of what a commit does.

https://docs.gitlab.com/api/commits/, https://docs.gitlab.com/api/branches/, https://docs.gitlab.com/api/repository_files/
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping

from aiohttp import web

from tests.support.gitlab.actions import Actions
from tests.support.gitlab.entities import api_time
from tests.support.gitlab.paging import page
from tests.support.gitlab.refusal import Refusal
from tests.support.gitlab.state import DEVELOPER, Project, User

Json = dict[str, object]
_ACTIONS = frozenset({"create", "update", "delete", "move", "chmod"})
_GUARDED = frozenset({"update", "delete", "move"})  # UPDATE_FILE_ACTIONS in app/services/files/multi_service.rb


class RepositoryEndpoints:
    """Handlers over the state; `project` gives the request's project, or refuses who may not read its code."""

    def __init__(
        self,
        actions: Actions,
        project: Callable[[web.Request], Project],
        user: Callable[[web.Request], User],
    ) -> None:
        self._actions, self._state = actions, actions.state
        self._project, self._user = project, user

    def routes(self, base: str) -> list[web.RouteDef]:
        repository = base + "/repository"
        return [
            web.get(repository + "/branches/{branch}", self._branch),
            web.get(repository + "/commits", self._commits),
            web.post(repository + "/commits", self._commit),
            web.head(repository + "/files/{path}", self._file),
            web.get(repository + "/files/{path}/raw", self._raw),
            web.get(base + "/merge_requests/{iid:[0-9]+}/commits", self._merge_request_commits),
        ]

    async def _branch(self, request: web.Request) -> web.Response:
        name = request.match_info["branch"]
        with self._state.lock:
            project = self._project(request)
            head = self._state.branch(project, name)
            if head is None:
                raise Refusal(404, "404 Branch Not Found")
            return web.json_response(
                {
                    "name": name,
                    "commit": self._entity(project, head),
                    "merged": False,
                    "protected": name in project.protected,
                    "developers_can_push": project.protected.get(name, DEVELOPER) <= DEVELOPER,
                    "developers_can_merge": False,
                    "can_push": self._can_push(project, name, self._user(request)),
                    "default": name == "main",
                    "web_url": f"{self._actions.url}/{project.path}/-/tree/{name}",
                }
            )

    async def _commits(self, request: web.Request) -> web.Response:
        """`ref_name` is a branch, a commit, or a range of two."""
        with self._state.lock:
            project = self._project(request)
            since, dots, until = request.query.get("ref_name", "main").rpartition("..")
            head = self._resolved(project, until)
            behind = set(self._state.history(project, self._resolved(project, since))) if dots else set()
            shown = [sha for sha in self._state.history(project, head) if sha not in behind]
            return page(request, self._actions.url, [self._entity(project, sha) for sha in shown])

    async def _merge_request_commits(self, request: web.Request) -> web.Response:
        with self._state.lock:
            project = self._project(request)
            mr = self._state.merge_request(project, int(request.match_info["iid"]))
            if mr is None:
                raise Refusal(404, "404 Not found")
            target = set(self._state.history(project, project.head))
            shown = [sha for sha in self._state.history(mr.source_project, mr.sha) if sha not in target]
            return page(request, self._actions.url, [self._entity(mr.source_project, sha) for sha in shown])

    async def _file(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        if not request.query.get("ref"):
            raise Refusal(400, "ref is missing, ref is empty", "error")
        with self._state.lock:
            project = self._project(request)
            sha = self._resolved(project, request.query["ref"])
            content = project.commits[sha].get(path)
            if content is None:
                raise Refusal(404, "404 File Not Found")
            last = self._state.last_commit(project, sha, path)
            executable = path in project.facts[sha].executable
        return web.Response(
            headers={
                "X-Gitlab-Commit-Id": sha,
                "X-Gitlab-Execute-Filemode": str(executable).lower(),
                "X-Gitlab-Last-Commit-Id": last,
                "X-Gitlab-Ref": request.query["ref"],
                "X-Gitlab-Size": str(len(content)),
            }
        )

    async def _raw(self, request: web.Request) -> web.Response:
        """https://docs.gitlab.com/api/repository_files/ ; of a symbolic link it is the name of its target."""
        with self._state.lock:
            project = self._project(request)
            name = request.query.get("ref", "HEAD")
            try:
                sha = project.head if name == "HEAD" else self._resolved(project, name)
            except Refusal:
                raise Refusal(404, "404 Commit Not Found") from None
            content = project.commits[sha].get(request.match_info["path"])
        if content is None:
            raise Refusal(404, "404 File Not Found")
        return web.Response(
            body=content,
            content_type="text/plain",
            headers={"X-Gitlab-Size": str(len(content)), "X-Gitlab-Ref": name, "X-Content-Type-Options": "nosniff"},
        )

    async def _commit(self, request: web.Request) -> web.Response:
        body = _body(await request.read())
        with self._state.lock:
            project, user = self._project(request), self._user(request)
            missing = [key for key in ("branch", "commit_message", "actions") if not body.get(key)]
            if missing:
                raise Refusal(400, ", ".join(f"{key} is missing" for key in missing), "error")
            branch, actions = str(body["branch"]), body["actions"]
            if not isinstance(actions, list) or not all(isinstance(action, dict) for action in actions):
                raise Refusal(400, "actions is invalid", "error")
            for index, action in enumerate(actions):
                if action.get("action") not in _ACTIONS:
                    raise Refusal(400, f"actions[{index}][action] does not have a valid value", "error")
            if not self._can_push(project, branch, user):
                raise Refusal(403, "403 Forbidden - You are not allowed to push into this branch")
            head = self._state.branch(project, branch)
            if head is None:
                raise Refusal(400, "You can only create or edit files when you are on a branch")
            for action in actions:
                self._check_last_commit(project, head, action)
            files, executable = dict(project.commits[head]), set(project.facts[head].executable)
            for action in actions:
                _carry_out(files, executable, action)
            sha = self._state.commit(
                project,
                files,
                parent=head,
                message=str(body["commit_message"]),
                author=str(body.get("author_name") or user.name),
                executable=frozenset(executable),
            )
            self._actions.move_branch(project, branch, sha, user)
            return web.json_response(self._entity(project, sha), status=201)

    def _check_last_commit(self, project: Project, head: str, action: Mapping[str, object]) -> None:
        path, known = str(action.get("previous_path") or action.get("file_path")), action.get("last_commit_id")
        if action["action"] not in _GUARDED or not known or path not in project.commits[head]:
            return
        if self._state.last_commit(project, head, path) != known:
            raise Refusal(400, f"The file has changed since you started editing it: {path}")

    def _can_push(self, project: Project, branch: str, user: User) -> bool:
        return self._state.level(project, user) >= max(DEVELOPER, project.protected.get(branch, 0))

    def _resolved(self, project: Project, name: str) -> str:
        found = self._state.branch(project, name.removeprefix("refs/heads/"))
        sha = found or (name if name in project.commits else None)
        if sha is None:
            raise Refusal(404, "404 Reference Not Found")
        return sha

    def _entity(self, project: Project, sha: str) -> Json:
        facts = project.facts[sha]
        when = api_time(facts.at)
        return {
            "id": sha,
            "short_id": sha[:8],
            "created_at": when,
            "parent_ids": [facts.parent] if facts.parent else [],
            "title": facts.message.split("\n", 1)[0],
            "message": facts.message,
            "author_name": facts.author,
            "author_email": "[REDACTED]",
            "authored_date": when,
            "committer_name": facts.author,
            "committer_email": "[REDACTED]",
            "committed_date": when,
            "trailers": {},
            "extended_trailers": {},
            "web_url": f"{self._actions.url}/{project.path}/-/commit/{sha}",
        }


def _body(text: bytes) -> Json:
    try:
        body = json.loads(text or b"{}")
    except ValueError:
        raise Refusal(400, "400 Bad request - Error parsing JSON") from None
    return body if isinstance(body, dict) else {}


def _carry_out(files: dict[str, bytes], executable: set[str], action: Mapping[str, object]) -> None:
    """One action, in Gitaly's words where it can't be done (internal/gitaly/service/operations/commit_files.go)."""
    path = str(action.get("file_path") or "")
    names = path.split("/")
    if not path:
        raise Refusal(400, "You must provide a file path")
    if ".." in names:
        raise Refusal(400, "Path cannot include directory traversal")
    if ".git" in [name.lower() for name in names] or "" in names:
        raise Refusal(400, f"invalid path: '{path}'")
    kind, there = action["action"], path in files
    if kind == "create":
        if there:
            raise Refusal(400, "A file with this name already exists")
        if any(name.startswith(f"{path}/") for name in files):
            raise Refusal(400, "A directory with this name already exists")
    elif not there:
        raise Refusal(400, "A file with this name doesn't exist")
    match kind:
        case "create" | "update":
            files[path] = _content(action)
        case "delete":
            del files[path]
            executable.discard(path)
        case "chmod":
            (executable.add if action.get("execute_filemode") else executable.discard)(path)
        case _:
            raise Refusal(400, "this stand-in moves no files")


def _content(action: Mapping[str, object]) -> bytes:
    content = str(action.get("content") or "")
    if action.get("encoding", "text") != "base64":
        return content.encode()
    try:
        return base64.b64decode(content, validate=True)
    except ValueError:
        raise Refusal(400, "content is no Base64") from None
