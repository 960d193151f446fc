"""The endpoints of a merge request's discussions (https://docs.gitlab.com/api/discussions/#merge-requests).

Every note is in one: an individual note is alone in its own, and becomes the first of a thread when it is replied to.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from tests.support.gitlab import entities
from tests.support.gitlab.actions import Actions
from tests.support.gitlab.paging import page
from tests.support.gitlab.refusal import Refusal, text_in
from tests.support.gitlab.state import MergeRequest, Note, User


class DiscussionEndpoints:
    """Handlers over the state; `mr` gives the request's merge request, or refuses who may not read it."""

    def __init__(self, actions: Actions, mr: Callable[[web.Request], MergeRequest], user: web.RequestKey[User]) -> None:
        self._actions, self._mr, self._user = actions, mr, user

    def routes(self, base: str) -> list[web.RouteDef]:
        one = base + "/{discussion}"
        return [web.get(base, self._list), web.get(one, self._get), web.post(one + "/notes", self._reply)]

    async def _list(self, request: web.Request) -> web.Response:
        with self._actions.state.lock:
            mr = self._mr(request)
            return page(
                request,
                self._actions.url,
                [entities.discussion(self._actions.url, mr, notes) for notes in mr.discussions],
            )

    async def _get(self, request: web.Request) -> web.Response:
        with self._actions.state.lock:
            mr, notes = self._discussion(request)
            return web.json_response(entities.discussion(self._actions.url, mr, notes))

    async def _reply(self, request: web.Request) -> web.Response:
        body = await text_in(request, "body")
        with self._actions.state.lock:
            mr, notes = self._discussion(request)
            note = self._actions.comment(mr, request[self._user], body, reply_to=notes[0])
            if note is None:  # https://gitlab.com/gitlab-org/gitlab/-/issues/505100
                raise Refusal(400, "400 Bad request - Note {}")
            return web.json_response(entities.note(self._actions.url, mr, note), status=201)

    def _discussion(self, request: web.Request) -> tuple[MergeRequest, list[Note]]:
        mr = self._mr(request)
        notes = mr.discussion(request.match_info["discussion"])
        if not notes:
            raise Refusal(404, "404 Discussion Not Found")
        return mr, notes
