"""The sync loop, which reads messages from the rooms: it loses no message, and never repeats requests without a pause.

nio's own loop is not used: it repeats failed requests without a pause, and ends and loses events if a handler raises.
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
from ravebot.matrix.client import MatrixClient, let_write
from ravebot.matrix.hearing import CHANGES, EVENTS, POWER, Hearing, is_limited, objects
from ravebot.matrix.incoming import Heard
from ravebot.matrix.invites import Invites

_log = structlog.get_logger(__name__)

_POLL_MS = 30_000
_NOTHING: dict[str, object] = {"types": []}
_MINIMAL_ROOM: dict[str, object] = dict.fromkeys(("state", "ephemeral", "account_data"), _NOTHING)
_STATE: dict[str, object] = {"types": list(CHANGES)}  # for state events in a gap, which are not in the timeline
_FILTER: dict[str, object] = {
    "presence": _NOTHING,
    "account_data": _NOTHING,
    "room": _MINIMAL_ROOM | {"state": _STATE, "timeline": EVENTS | {"limit": 50}},
}
PAUSES = Backoff.growing(0.5, 60.0)
_QUICK_SECONDS = 0.05
_RANDOM = SystemRandom()


def _ignore(_: str) -> None:
    """The default callback; does nothing."""


class SyncJournal(Protocol):
    """Stores the loop's progress: `save` commits messages and token in one transaction."""

    async def token(self) -> str | None: ...

    async def save(self, messages: tuple[Heard, ...], next_batch: str) -> None: ...


class SyncLoop:
    """Reads messages until it is cancelled.

    A message reaches the journal at least once: after a crash before `save`, or if a room could not be read, it comes
    again with the same id. `on_left` is called with each room that the bot is no longer in, `on_changed` with each room
    that was encrypted or replaced or forbids us to write since, `on_result` with `ok` or `unavailable` after each
    round. `jitter` returns a number from 0 to 1. `invites` has a loop of its own.
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
        """When the last round ended, with or without success."""
        self.problem = ""
        """Why the last round failed; empty if it did not."""

    async def run(self) -> None:
        """Run until cancelled. Raises LoginLost when the homeserver ended the login; retries after any other error."""
        failures = quick = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                idle = await self._round()
            except LoginLost:
                raise
            # A refused or unknown sync comes from a proxy or an update, and a journal that can't be written from a full
            # disk. Both pass; a loop that ended because of them would need a person to start it again.
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
            # A server or proxy that repeatedly answers at once with nothing must not be polled without a pause.
            took = asyncio.get_running_loop().time() - began
            quick = quick + 1 if idle and took < _QUICK_SECONDS else 0
            if quick > 2:
                await self._sleep(PAUSES.after(quick - 2, None, self._jitter()))

    async def _round(self) -> bool:
        """Make one sync and save it in the journal; returns whether it was empty."""
        since = await self._journal.token()
        if since is None or not self._begun:
            await self._begin(since)
            return False
        answer = await self._client.sync(since, _POLL_MS, _FILTER)
        next_batch = next_token(answer)
        joined, invited, left = (_rooms(answer, part) for part in ("join", "invite", "leave"))
        for room_id, room in joined.items():
            if _has_changed(room, self._client.user_id):
                self._on_changed(room_id)
                self.invites.changed(room_id)
        for room_id in left:
            self._hearing.forget(room_id)
            self.invites.forget(room_id)
            self._on_left(room_id)
        self.invites.note(invited)
        await self._journal.save(await self._messages(joined, since), next_batch)
        return not (joined or left or invited)

    async def _messages(self, joined: dict[str, Json], since: str) -> tuple[Heard, ...]:
        """The messages of all rooms. If one room can't be read, the messages of the others are saved without it.

        The token is not advanced then, so that the next round reads that room again and loses nothing. Rooms that may
        take long to read come last, after the messages of the others are saved.
        """
        messages: list[Heard] = []
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
        """Find the invites from before this start, because a sync with a token contains each only once.

        Without a token, reading begins now: earlier messages are left out.
        """
        # Synapse answers a repeated first sync from a cache, up to two minutes old, if the text of the filter is the
        # same. A random limit, which has no other effect here, makes it different.
        room = _MINIMAL_ROOM | {"timeline": _NOTHING | {"limit": _RANDOM.randint(1, 1_000_000)}}
        answer = await self._client.sync(None, 0, _FILTER | {"room": room})
        self.invites.note(_rooms(answer, "invite"))
        if since is None:
            await self._journal.save((), next_token(answer))
        self._begun = True


def next_token(answer: Json) -> str:
    """The token of the next sync. Raises Unavailable if the answer has none."""
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


def _has_changed(room: Json, our_user_id: str) -> bool:
    """Whether a room was encrypted or replaced, or forbids us to write, since the last sync."""
    for part in ("state", "timeline"):
        section = room.get(part)
        for event in objects(section.get("events")) if isinstance(section, dict) else []:
            if event.get("type") in CHANGES and event.get("state_key") == "":
                harmless = event["type"] == POWER and let_write(event.get("content"), our_user_id)
                if not harmless:
                    return True
    return False
