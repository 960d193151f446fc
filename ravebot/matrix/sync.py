"""The loop that hears what is said in the rooms: it loses nothing, takes nothing twice and never runs hot.

nio's own loop is not used: it hammers the server on errors and dies, with its events, when a handler raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from random import SystemRandom
from typing import Protocol

import structlog

from ravebot.clock import Clock
from ravebot.errors import Forbidden, NotFound, Unavailable
from ravebot.matrix.answers import Json, LoginLost
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.incoming import IncomingMessage, our_join, read_message, since_we_joined
from ravebot.matrix.invites import Invites

_log = structlog.get_logger(__name__)

_POLL_MS = 30_000
_EVENTS: dict[str, object] = {"types": ["m.room.message", "m.room.member"]}
_NOTHING: dict[str, object] = {"types": []}
_QUIET_ROOM: dict[str, object] = dict.fromkeys(("state", "ephemeral", "account_data"), _NOTHING)
_FILTER: dict[str, object] = {
    "presence": _NOTHING,
    "account_data": _NOTHING,
    "room": _QUIET_ROOM | {"timeline": _EVENTS | {"limit": 50}},
}
_MAX_PAGES = 200
"""Of 100 events: how far back a gap is read. A room flooded with more than that is not answered in full."""
_LONGEST_PAUSE_SECONDS = 60.0
_QUICK_SECONDS = 0.05
_RANDOM = SystemRandom()


def _ignore(_: str) -> None:
    """Nobody wants to know."""


class Journal(Protocol):
    """Where the loop's progress is kept: `save` commits messages and token in one transaction."""

    async def token(self) -> str | None: ...

    async def save(self, messages: tuple[IncomingMessage, ...], next_batch: str) -> None: ...


class SyncLoop:
    """Hears messages until it is cancelled; `on_left` is told of each room that we are no longer in.

    A message reaches the journal at least once: after a crash before `save` it comes again with the same
    id. `on_result` is told how each round went: `ok` or `unavailable`. `jitter` is a number from 0 to 1.
    """

    def __init__(
        self,
        client: MatrixClient,
        journal: Journal,
        clock: Clock,
        *,
        admins: tuple[str, ...] = (),
        on_left: Callable[[str], None] = _ignore,
        on_joined: Callable[[str], None] = _ignore,
        on_result: Callable[[str], None] = _ignore,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self._client = client
        self._journal = journal
        self._clock = clock
        self._on_left = on_left
        self._on_result = on_result
        self._sleep = sleep
        self._jitter = jitter
        self._invites = Invites(client, admins, clock, on_joined)
        self._direct: dict[str, bool] = {}
        self._begun = False
        self.last_success: datetime | None = None
        self.problem = ""
        """Why the last round failed; empty when it did not."""

    async def run(self) -> None:
        """Runs for ever. Raises Forbidden when our login is refused for good, and what the journal raises."""
        failures = quick = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                idle = await self._round()
                await self._invites.answer()
            except Unavailable as error:
                failures += 1
                self.problem = str(error)
                self._on_result("unavailable")
                pause = pause_seconds(failures, error.retry_after_seconds, self._jitter())
                _log.warning("matrix_sync_failed", error=str(error), failures=failures, pause_seconds=pause)
                await self._sleep(pause)
                continue
            failures, self.problem = 0, ""
            self.last_success = self._clock.now()
            self._on_result("ok")
            # A server or proxy that answers at once with nothing, again and again, must not be polled hot.
            took = asyncio.get_running_loop().time() - began
            quick = quick + 1 if idle and took < _QUICK_SECONDS else 0
            if quick > 2:
                await self._sleep(pause_seconds(quick - 2, None, self._jitter()))

    async def _round(self) -> bool:
        """One sync, journalled. Returns whether there was nothing in it."""
        since = await self._journal.token()
        if since is None or not self._begun:
            await self._begin(since)
            return False
        answer = await self._client.sync(since, self._poll_ms(), _FILTER)
        next_batch = next_token(answer)
        joined, invited, left = (_rooms(answer, part) for part in ("join", "invite", "leave"))
        messages: list[IncomingMessage] = []
        for room_id, room in joined.items():
            messages += await self._heard(room_id, room, since)
        for room_id in left:
            self._direct.pop(room_id, None)
            self._invites.forget(room_id)
            self._on_left(room_id)
        self._invites.note(invited)
        await self._journal.save(tuple(messages), next_batch)
        return not (joined or left or invited)

    async def _begin(self, since: str | None) -> None:
        """Find the invites of before this start: a sync by token names each only once.

        Without a token, listening begins now: what was said before was not said to us.
        """
        # Synapse answers a repeated first sync from a cache, up to two minutes old, as long as the filter is the
        # same text; a limit that changes nothing makes it another.
        room = _QUIET_ROOM | {"timeline": _NOTHING | {"limit": _RANDOM.randint(1, 1_000_000)}}
        answer = await self._client.sync(None, 0, _FILTER | {"room": room})
        self._invites.note(_rooms(answer, "invite"))
        if since is None:
            await self._journal.save((), next_token(answer))
        self._begun = True

    def _poll_ms(self) -> int:
        due = self._invites.next_try()
        if due is None:
            return _POLL_MS
        return min(_POLL_MS, max(0, round((due - self._clock.now()).total_seconds() * 1000)))

    async def _heard(self, room_id: str, room: Json, since: str) -> list[IncomingMessage]:
        timeline = room.get("timeline")
        if not isinstance(timeline, dict):
            return []
        events = _objects(timeline.get("events"))
        start = timeline.get("prev_batch")
        if timeline.get("limited"):
            self._direct.pop(room_id, None)
            if isinstance(start, str) and our_join(events, self._client.user_id) is None:
                events = await self._gap(room_id, start, since) + events
        if any(event.get("type") == "m.room.member" for event in events):
            self._direct.pop(room_id, None)
        found: list[IncomingMessage] = []
        for event in since_we_joined(events, self._client.user_id):
            message = read_message(event, room_id, self._client.user_id)
            if message is not None:
                found.append(replace(message, direct=await self._is_direct(room_id)))
        return found

    async def _gap(self, room_id: str, start: str, since: str) -> list[Json]:
        """What the sync left out, oldest first."""
        newest_first: list[Json] = []
        page: str | None = start
        for _ in range(_MAX_PAGES):
            if page is None:
                break
            try:
                events, page = await self._client.messages(room_id, page, to=since, filter=_EVENTS)
            except LoginLost:
                raise
            except (Forbidden, NotFound) as error:
                _log.warning("matrix_gap_unreadable", room_id=room_id, error=str(error))
                break
            newest_first += events
            if not events or our_join(events, self._client.user_id) is not None:
                break
        else:
            _log.warning("matrix_gap_too_long", room_id=room_id, events=len(newest_first))
        return newest_first[::-1]

    async def _is_direct(self, room_id: str) -> bool:
        """Whether nobody but us and one other is in the room."""
        if room_id not in self._direct:
            try:
                members = await self._client.direct_members(room_id)
            except LoginLost:
                raise
            except (Forbidden, NotFound):
                return False
            self._direct[room_id] = len(members) == 2
        return self._direct[room_id]


def pause_seconds(failures: int, retry_after_seconds: float | None, jitter: float) -> float:
    """The wait after so many failures in a row: what the server asks, else doubling, up to a minute."""
    grown = min(_LONGEST_PAUSE_SECONDS, 0.5 * 2.0 ** min(failures - 1, 16))
    return max(retry_after_seconds or 0.0, grown * (0.5 + jitter / 2))


def next_token(answer: Json) -> str:
    """Where the next sync starts. Raises Unavailable when the answer has no such thing."""
    token = answer.get("next_batch")
    if not isinstance(token, str) or not token:
        raise Unavailable("Matrix answered a sync without next_batch: is matrix.homeserver a Matrix homeserver?")
    return token


def _rooms(answer: Json, part: str) -> dict[str, Json]:
    rooms = answer.get("rooms")
    listed = rooms.get(part) if isinstance(rooms, dict) else None
    if not isinstance(listed, dict):
        return {}
    return {room_id: room for room_id, room in listed.items() if isinstance(room, dict)}


def _objects(listed: object) -> list[Json]:
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
