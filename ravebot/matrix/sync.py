"""The loop that hears what is said in the rooms: it loses nothing, takes nothing twice and never runs hot.

nio's own loop is not used: it hammers the server on errors and dies, with its events, when a handler raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from random import SystemRandom
from typing import Protocol

import structlog

from ravebot.backoff import Backoff, jitter
from ravebot.clock import Clock
from ravebot.errors import RavebotError, SlowDown, Unavailable
from ravebot.matrix.answers import Json, LoginLost
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.hearing import CHANGES, EVENTS, Hearing, is_limited, objects
from ravebot.matrix.incoming import IncomingMessage
from ravebot.matrix.invites import Invites

_log = structlog.get_logger(__name__)

_POLL_MS = 30_000
_NOTHING: dict[str, object] = {"types": []}
_QUIET_ROOM: dict[str, object] = dict.fromkeys(("state", "ephemeral", "account_data"), _NOTHING)
_STATE: dict[str, object] = {"types": list(CHANGES)}  # what of it fell into a gap comes apart from the timeline
_FILTER: dict[str, object] = {
    "presence": _NOTHING,
    "account_data": _NOTHING,
    "room": _QUIET_ROOM | {"state": _STATE, "timeline": EVENTS | {"limit": 50}},
}
PAUSES = Backoff.growing(0.5, 60.0)
_QUICK_SECONDS = 0.05
_RANDOM = SystemRandom()


def _ignore(_: str) -> None:
    """Nobody wants to know."""


class SyncJournal(Protocol):
    """Where the loop's progress is kept: `save` commits messages and token in one transaction."""

    async def token(self) -> str | None: ...

    async def save(self, messages: tuple[IncomingMessage, ...], next_batch: str) -> None: ...


class SyncLoop:
    """Hears messages until it is cancelled; `on_left` is told of each room that we are no longer in.

    A message reaches the journal at least once: after a crash before `save`, or a room that could not be read, it
    comes again with the same id. `on_changed` is told of each room that was encrypted or replaced, `on_result` how
    each round went: `ok` or `unavailable`. `jitter` is a number from 0 to 1. `invites` has a loop of its own.
    """

    def __init__(
        self,
        client: MatrixClient,
        journal: SyncJournal,
        clock: Clock,
        invites: Invites,
        *,
        on_left: Callable[[str], None] = _ignore,
        on_changed: Callable[[str], None] = _ignore,
        on_result: Callable[[str], None] = _ignore,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = jitter,
    ) -> None:
        self._client = client
        self._journal = journal
        self._clock = clock
        self.invites = invites
        self._on_left = on_left
        self._on_changed = on_changed
        self._on_result = on_result
        self._sleep = sleep
        self._jitter = jitter
        self._hearing = Hearing(client, clock)
        self._begun = False
        self.last_success: datetime | None = None
        self.looked_at: datetime | None = None
        """When the last round ended, however it went."""
        self.problem = ""
        """Why the last round failed; empty when it did not."""

    async def run(self) -> None:
        """Runs for ever. Raises LoginLost when the homeserver ended our login; any other trouble is waited out."""
        failures = quick = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                idle = await self._round()
            except LoginLost:
                raise
            # A sync that is refused or unknown is a proxy's or an update's doing, and a journal that can't be written
            # a full disk's: both pass, and whoever stops hearing because of them would need a person to start again.
            except RavebotError as error:
                failures += 1
                self.problem, self.looked_at = str(error), self._clock.now()
                self._on_result("unavailable")
                asked = error.retry_after_seconds if isinstance(error, Unavailable) else None
                pause = PAUSES.after(failures, asked, self._jitter())
                _log.warning("matrix_sync_failed", error=str(error), failures=failures, pause_seconds=pause)
                await self._sleep(pause)
                continue
            failures, self.problem = 0, ""
            self.last_success = self.looked_at = self._clock.now()
            self._on_result("ok")
            # A server or proxy that answers at once with nothing, again and again, must not be polled hot.
            took = asyncio.get_running_loop().time() - began
            quick = quick + 1 if idle and took < _QUICK_SECONDS else 0
            if quick > 2:
                await self._sleep(PAUSES.after(quick - 2, None, self._jitter()))

    async def _round(self) -> bool:
        """One sync, journalled. Returns whether there was nothing in it."""
        since = await self._journal.token()
        if since is None or not self._begun:
            await self._begin(since)
            return False
        answer = await self._client.sync(since, _POLL_MS, _FILTER)
        next_batch = next_token(answer)
        joined, invited, left = (_rooms(answer, part) for part in ("join", "invite", "leave"))
        for room_id, room in joined.items():
            if _has_changed(room):
                self._on_changed(room_id)
        for room_id in left:
            self._hearing.forget(room_id)
            self.invites.forget(room_id)
            self._on_left(room_id)
        self.invites.note(invited)
        await self._journal.save(await self._heard(joined, since), next_batch)
        return not (joined or left or invited)

    async def _heard(self, joined: dict[str, Json], since: str) -> tuple[IncomingMessage, ...]:
        """What was said in all rooms. While one can't be read, what the others said is journalled without it.

        The token stays where it is then, so that the next round tries that room again, and loses nothing. The rooms
        whose reading may take long come last, after the others' words are safe.
        """
        messages: list[IncomingMessage] = []
        trouble: Unavailable | None = None
        slow = {room_id: self._hearing.failures(room_id) + is_limited(room) for room_id, room in joined.items()}
        for room_id in sorted(joined, key=slow.__getitem__):
            if messages and slow[room_id]:
                await self._journal.save(tuple(messages), since)
                messages = []
            try:
                messages += await self._hearing.heard(room_id, joined[room_id], since)
            except Unavailable as error:
                _log.warning("matrix_room_not_heard", room_id=room_id, error=str(error))
                trouble = error
                if isinstance(error, SlowDown):
                    break
        if trouble is None:
            return tuple(messages)
        if messages:
            await self._journal.save(tuple(messages), since)
        raise trouble

    async def _begin(self, since: str | None) -> None:
        """Find the invites of before this start: a sync by token names each only once.

        Without a token, listening begins now: what was said before was not said to us.
        """
        # Synapse answers a repeated first sync from a cache, up to two minutes old, as long as the filter is the
        # same text; a limit that changes nothing makes it another.
        room = _QUIET_ROOM | {"timeline": _NOTHING | {"limit": _RANDOM.randint(1, 1_000_000)}}
        answer = await self._client.sync(None, 0, _FILTER | {"room": room})
        self.invites.note(_rooms(answer, "invite"))
        if since is None:
            await self._journal.save((), next_token(answer))
        self._begun = True


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


def _has_changed(room: Json) -> bool:
    """Whether a room of the sync was encrypted or replaced since the last one."""
    for part in ("state", "timeline"):
        section = room.get(part)
        events = objects(section.get("events")) if isinstance(section, dict) else []
        if any(event.get("type") in CHANGES and event.get("state_key") == "" for event in events):
            return True
    return False
