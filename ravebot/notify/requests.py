"""Requests to GitLab that must not be made twice: each is recorded before it is made, until it is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from ravebot.errors import RavebotError, Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.transport import TIMEOUT_SECONDS, Unanswered
from ravebot.store import outbox
from ravebot.store.database import Database
from ravebot.store.outbox import Message

_LOOK_AGAIN_SECONDS = 3.0
T = TypeVar("T")


class NoteRequests:
    """The time of a request is a column of its row, because the process may have been killed since.

    `limit` is how long GitLab itself works on a request; to it comes the time to connect.
    https://docs.gitlab.com/administration/operations/puma/#change-the-worker-timeout
    """

    def __init__(self, database: Database, gitlab: GitLab, limit: timedelta) -> None:
        self._database = database
        self._gitlab = gitlab
        self._longest = limit + timedelta(seconds=TIMEOUT_SECONDS)

    async def own_id(self) -> int:
        """The bot's user id."""
        return await self._gitlab.own_id()

    def seconds_at_work(self, message: Message) -> float:
        """How long GitLab may still work on a request that it did not answer."""
        waited = message.unanswered_for
        return 0.0 if waited is None else max(0.0, (self._longest - waited).total_seconds())

    async def post(self, message: Message, ask: Callable[[], Awaitable[int]]) -> int:
        """Post a note that was not found; after a request without an answer, only when GitLab can't still work on it.

        The age of that request is measured when the row is read, before the search for the note, so that a note that
        appears during the search is not missed.
        """
        if left := self.seconds_at_work(message):
            raise Unavailable("GitLab may still be working on this note", min(left, _LOOK_AGAIN_SECONDS))
        return await self.make(message, ask)

    async def make(self, message: Message, ask: Callable[[], Awaitable[T]]) -> T:
        """Make a request that GitLab may carry out without answering."""
        await self._database.write(lambda tx: outbox.note_request(tx, message.id))
        try:
            return await ask()
        except Unanswered:
            raise
        except RavebotError:
            await self._database.write(lambda tx: outbox.note_answer(tx, message.id))
            raise
