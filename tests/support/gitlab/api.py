"""The part of GitLab's REST API that a bot on merge requests needs, with its checks, paging and errors.

https://docs.gitlab.com/api/rest/ ; roles: https://docs.gitlab.com/user/permissions/
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from datetime import datetime

from aiohttp import web

from tests.support.gitlab import entities
from tests.support.gitlab.actions import Actions
from tests.support.gitlab.archive import tar_gz
from tests.support.gitlab.discussions import DiscussionEndpoints
from tests.support.gitlab.environments import EnvironmentEndpoints
from tests.support.gitlab.faults import Faults
from tests.support.gitlab.hookapi import HookEndpoints
from tests.support.gitlab.jobs import JobEndpoints
from tests.support.gitlab.paging import page
from tests.support.gitlab.refusal import Refusal, error, text_in
from tests.support.gitlab.repository import RepositoryEndpoints
from tests.support.gitlab.state import MAINTAINER, Award, MergeRequest, Note, Project, User

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_USER = web.RequestKey("user", User)
_NOTES_PER_MINUTE = 300


def _token(request: web.Request) -> str:
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    return request.headers.get("PRIVATE-TOKEN") or (bearer if scheme.lower() == "bearer" else "")


class Api:
    """Handlers over the state; everything below `/api/v4`."""

    def __init__(self, actions: Actions, faults: Faults) -> None:
        self._actions = actions
        self._state = actions.state
        self._faults = faults
        self._note_times: defaultdict[int, deque[datetime]] = defaultdict(deque)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._outer, self._inner], client_max_size=16 * 1024**2)
        project, mr = "/projects/{project}", "/projects/{project}/merge_requests/{iid:[0-9]+}"
        note = mr + "/notes/{note:[0-9]+}"
        app.add_routes(
            [
                web.get("/version", self._version),
                web.get("/user", self._me),
                web.get("/users", self._users),
                web.get("/personal_access_tokens/self", self._own_token),
                web.get("/users/{id:[0-9]+}", self._one_user),
                web.get("/users/{id:[0-9]+}/keys", self._keys),
                web.get("/projects", self._projects),
                web.get(project, self._one_project),
                web.get(project + "/members/all/{id:[0-9]+}", self._member),
                web.get(project + "/repository/archive{format:(?:\\.tar\\.gz)?}", self._archive),
                web.get("/merge_requests", self._all_merge_requests),
                web.get("/groups/{group}/merge_requests", self._group_merge_requests),
                web.get(project + "/merge_requests", self._merge_requests),
                web.get(mr, self._one_merge_request),
                web.get(mr + "/notes", self._notes),
                web.post(mr + "/notes", self._create_note),
                web.get(note, self._one_note),
                web.put(note, self._edit_note),
                web.delete(note, self._delete_note),
                web.get(note + "/award_emoji", self._awards),
                web.post(note + "/award_emoji", self._award),
                web.delete(note + "/award_emoji/{award:[0-9]+}", self._take_award_back),
                *DiscussionEndpoints(self._actions, self._mr, _USER).routes(mr + "/discussions"),
                *HookEndpoints(self._actions, self._hooks_project).routes(project + "/hooks"),
                *RepositoryEndpoints(self._actions, self._code_project, lambda request: request[_USER]).routes(project),
                *JobEndpoints(self._actions, self._faults, self._code_project).routes(project),
                *EnvironmentEndpoints(self._actions, self._code_project, lambda request: request[_USER]).routes(
                    project
                ),
            ]
        )
        return app

    @web.middleware
    async def _outer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await self._faults.apply(request, handler)

    @web.middleware
    async def _inner(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        token = _token(request)
        with self._state.lock:
            user = self._state.tokens.get(token)
            facts = self._state.token_facts.get(token)
        if user is None or not user.active:
            return error(401, "401 Unauthorized")
        if request.method not in {"GET", "HEAD"} and facts is not None and "api" not in facts.scopes:
            return error(403, "insufficient_scope", "error")
        request[_USER] = user
        try:
            return await handler(request)
        except Refusal as refusal:
            return refusal.response
        except web.HTTPException as problem:
            return error(problem.status, f"{problem.status} {problem.reason}", "error")

    @property
    def _base(self) -> str:
        return self._actions.url

    def _project(self, request: web.Request) -> Project:
        name = request.match_info["project"]
        found = self._state.projects.get(int(name)) if name.isdecimal() else self._state.project_at(name)
        if found is None or not self._state.can_see(found, request[_USER]):
            raise Refusal(404, "404 Project Not Found")
        return found

    def _hooks_project(self, request: web.Request) -> Project:
        project = self._project(request)
        if self._state.level(project, request[_USER]) < MAINTAINER:
            raise Refusal(403, "403 Forbidden")
        return project

    def _code_project(self, request: web.Request) -> Project:
        project = self._project(request)
        if not self._state.can_read_code(project, request[_USER]):
            raise Refusal(403, "403 Forbidden")
        return project

    def _mr(self, request: web.Request) -> MergeRequest:
        project = self._code_project(request)
        found = self._state.merge_request(project, int(request.match_info["iid"]))
        if found is None:
            raise Refusal(404, "404 Not found")
        return found

    def _note(self, request: web.Request) -> tuple[MergeRequest, Note]:
        mr = self._mr(request)
        found = mr.notes.get(int(request.match_info["note"]))
        if found is None:
            raise Refusal(404, "404 Note Not Found")
        return mr, found

    def _own_note(self, request: web.Request) -> tuple[MergeRequest, Note]:
        mr, note = self._note(request)
        user = request[_USER]
        if note.system or (note.author is not user and self._state.level(mr.project, user) < MAINTAINER):
            raise Refusal(403, "403 Forbidden")
        return mr, note

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": "18.0.0-ee", "revision": "0123456789a"})

    async def _me(self, request: web.Request) -> web.Response:
        return web.json_response(entities.profile(self._base, request[_USER]))

    async def _own_token(self, request: web.Request) -> web.Response:
        """https://docs.gitlab.com/api/personal_access_tokens/#self-inform"""
        facts = self._state.token_facts[_token(request)]
        person = request[_USER]
        return web.json_response(
            {
                "id": 1,
                "name": "ravebot",
                "revoked": False,
                "created_at": "2026-01-01T00:00:00.000Z",
                "scopes": list(facts.scopes),
                "user_id": person.id,
                "active": True,
                "expires_at": facts.expires_at,
            }
        )

    async def _users(self, request: web.Request) -> web.Response:
        with self._state.lock:
            people = list(self._state.users.values())
        if "username" in request.query:
            people = [person for person in people if person.username.lower() == request.query["username"].lower()]
        return page(request, self._base, [entities.user(self._base, person) for person in people])

    async def _one_user(self, request: web.Request) -> web.Response:
        return web.json_response(entities.profile(self._base, self._person(request)))

    async def _keys(self, request: web.Request) -> web.Response:
        return page(request, self._base, [entities.ssh_key(key) for key in self._person(request).keys])

    def _person(self, request: web.Request) -> User:
        person = self._state.users.get(int(request.match_info["id"]))
        if person is None:
            raise Refusal(404, "404 User Not Found")
        return person

    async def _projects(self, request: web.Request) -> web.Response:
        user = request[_USER]
        with self._state.lock:
            seen = [project for project in self._state.projects.values() if self._state.can_see(project, user)]
            if request.query.get("membership") in {"true", "1", "True"}:
                seen = [project for project in seen if self._state.level(project, user)]
            if request.query.get("archived") == "false":
                seen = [project for project in seen if not project.archived]
            least = int(request.query.get("min_access_level", "0"))
            if least:
                seen = [project for project in seen if self._state.level(project, user) >= least]
        return page(request, self._base, [entities.project(self._base, project) for project in reversed(seen)])

    async def _one_project(self, request: web.Request) -> web.Response:
        with self._state.lock:
            project = self._project(request)
            level = self._state.level(project, request[_USER])
        access = {"access_level": level, "notification_level": 3} if level else None
        permissions = {"project_access": access, "group_access": None}
        return web.json_response({**entities.project(self._base, project), "permissions": permissions})

    async def _member(self, request: web.Request) -> web.Response:
        with self._state.lock:
            project = self._project(request)
            person = self._state.users.get(int(request.match_info["id"]))
            level = self._state.level(project, person) if person else 0
        if person is None or not level:
            raise Refusal(404, "404 Not found")
        return web.json_response(entities.member(self._base, person, level))

    async def _archive(self, request: web.Request) -> web.StreamResponse:
        with self._state.lock:
            project = self._project(request)
            if not self._state.can_read_code(project, request[_USER]):
                raise Refusal(403, "403 Forbidden")
            sha = request.query.get("sha", project.head)
            files = project.commits.get(sha)
        if files is None:
            raise Refusal(404, "404 File Not Found")
        content = tar_gz(f"{project.name}-{sha}-{sha}", files, project.facts[sha].executable)
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Disposition": f'attachment; filename="{project.name}-{sha}.tar.gz"',
            }
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        if self._faults.truncate_archives:
            await response.write(content[: len(content) // 2])
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(content)
        await response.write_eof()
        return response

    async def _all_merge_requests(self, request: web.Request) -> web.Response:
        user = request[_USER]
        with self._state.lock:
            found = [mr for mr in self._state.merge_requests if self._state.can_read_code(mr.project, user)]
            if request.query.get("scope", "created_by_me") == "created_by_me":
                found = [mr for mr in found if mr.author is user]
            return self._mr_page(request, found)

    async def _group_merge_requests(self, request: web.Request) -> web.Response:
        """https://docs.gitlab.com/api/merge_requests/#list-group-merge-requests"""
        user, inside = request[_USER], f"{request.match_info['group']}/"
        with self._state.lock:
            projects = [project for project in self._state.projects.values() if project.path.startswith(inside)]
            if not any(self._state.can_see(project, user) for project in projects):
                raise Refusal(404, "404 Group Not Found")
            found = [mr for mr in self._state.merge_requests if mr.project in projects and not mr.project.archived]
            found = [mr for mr in found if self._state.can_read_code(mr.project, user)]
            if request.query.get("scope", "created_by_me") == "created_by_me":
                found = [mr for mr in found if mr.author is user]
            return self._mr_page(request, found)

    async def _merge_requests(self, request: web.Request) -> web.Response:
        with self._state.lock:
            project = self._project(request)
            if not self._state.can_read_code(project, request[_USER]):
                raise Refusal(403, "403 Forbidden")
            return self._mr_page(request, [mr for mr in self._state.merge_requests if mr.project is project])

    def _mr_page(self, request: web.Request, found: list[MergeRequest]) -> web.Response:
        state = request.query.get("state", "all")
        if state not in {"all", "opened", "closed", "merged", "locked"}:
            raise Refusal(400, "state does not have a valid value")
        found = [mr for mr in found if state in {"all", mr.state}]
        if "source_branch" in request.query:
            found = [mr for mr in found if mr.branch == request.query["source_branch"]]
        if "updated_after" in request.query:
            try:
                after = datetime.fromisoformat(request.query["updated_after"])
            except ValueError:
                raise Refusal(400, "updated_after is invalid") from None
            found = [mr for mr in found if mr.updated_at > after]
        by_update = request.query.get("order_by") == "updated_at"
        found.sort(
            key=lambda mr: mr.updated_at if by_update else mr.created_at,
            reverse=request.query.get("sort") != "asc",
        )
        return page(request, self._base, [entities.merge_request(self._base, mr) for mr in found])

    async def _one_merge_request(self, request: web.Request) -> web.Response:
        with self._state.lock:
            return web.json_response(entities.whole_merge_request(self._base, self._mr(request)))

    async def _notes(self, request: web.Request) -> web.Response:
        with self._state.lock:
            mr = self._mr(request)
            notes = sorted(mr.notes.values(), key=lambda note: note.id, reverse=request.query.get("sort") != "asc")
            wanted = request.query.get("activity_filter", "all_notes")
            if wanted != "all_notes":
                notes = [note for note in notes if note.system == (wanted == "only_activity")]
            return page(request, self._base, [entities.note(self._base, mr, note) for note in notes])

    async def _one_note(self, request: web.Request) -> web.Response:
        with self._state.lock:
            return web.json_response(entities.note(self._base, *self._note(request)))

    async def _create_note(self, request: web.Request) -> web.Response:
        body = await text_in(request, "body")
        user = request[_USER]
        with self._state.lock:
            mr = self._mr(request)
            times, now = self._note_times[user.id], self._state.now()
            while times and (now - times[0]).total_seconds() > 60:
                times.popleft()
            if len(times) >= _NOTES_PER_MINUTE:
                message = {"error": "This endpoint has been requested too many times. Try again later."}
                return web.json_response({"message": message}, status=429, headers={"Retry-After": "60"})
            times.append(now)
            note = self._actions.comment(mr, user, body)
            if note is None:
                return web.json_response({"commands_changes": {}, "summary": ["Commands applied"]}, status=202)
            return web.json_response(entities.note(self._base, mr, note), status=201)

    async def _edit_note(self, request: web.Request) -> web.Response:
        body = await text_in(request, "body")
        with self._state.lock:
            mr, note = self._own_note(request)
            self._actions.edit(mr, note, request[_USER], body)
            return web.json_response(entities.note(self._base, mr, note))

    async def _delete_note(self, request: web.Request) -> web.Response:
        with self._state.lock:
            self._actions.delete_note(*self._own_note(request))
        return web.Response(status=204)

    async def _awards(self, request: web.Request) -> web.Response:
        with self._state.lock:
            _mr, note = self._note(request)
            return page(request, self._base, [entities.award(self._base, note, award) for award in note.awards])

    async def _award(self, request: web.Request) -> web.Response:
        name = request.query.get("name") or await text_in(request, "name")
        user = request[_USER]
        with self._state.lock:
            _mr, note = self._note(request)
            if any(award.user is user and award.name == name for award in note.awards):
                raise Refusal(404, "404 Award Emoji Name has already been taken Not Found")
            award = Award(self._state.next_id(), user, name, self._state.now())
            note.awards.append(award)
            note.updated_at = award.created_at  # `bump_updated_at` in GitLab's app/models/note.rb
            return web.json_response(entities.award(self._base, note, award), status=201)

    async def _take_award_back(self, request: web.Request) -> web.Response:
        with self._state.lock:
            _mr, note = self._note(request)
            number = int(request.match_info["award"])
            award = next((one for one in note.awards if one.id == number), None)
            if award is None:
                raise Refusal(404, "404 Award Emoji Not Found")
            if award.user is not request[_USER]:
                raise Refusal(401, "401 Unauthorized")
            note.awards.remove(award)
        return web.Response(status=204)
