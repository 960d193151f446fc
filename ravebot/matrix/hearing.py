"""What one sync says of one room, made whole: the gap before it is read, and whether the room is a direct chat.

A room whose questions are never answered is given up after a few tries, for the others wait behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import structlog

from ravebot.clock import Clock, Wait
from ravebot.errors import Forbidden, NotFound, SlowDown, Unavailable
from ravebot.matrix.answers import Json, LoginLost
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.incoming import IncomingMessage, our_join, read_message, since_we_joined, slimmed

_log = structlog.get_logger(__name__)

CHANGES = ("m.room.encryption", "m.room.tombstone")
"""State after which a room must be looked at anew before anything is sent there."""
EVENTS: dict[str, object] = {"types": ["m.room.message", "m.room.member", *CHANGES]}
_MAX_PAGES = 200
"""Of 100 events: how far back a gap is read. A room flooded with more than that is not answered in full."""
_MAX_FAILURES = 5
_IMPATIENT_SECONDS = 10.0
"""How long a room may take that failed the last time."""
_UNKNOWN = timedelta(minutes=5)
"""How long a room counts as not direct after it could not be found out who is in it."""


class Hearing:
    """Reads rooms out of syncs; remembers who of them made trouble and which are direct chats."""

    def __init__(self, client: MatrixClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._direct: dict[str, bool] = {}
        self._unknown: dict[str, Wait] = {}
        self._failures: dict[str, int] = {}

    def forget(self, room_id: str) -> None:
        """We are no longer in that room."""
        self._direct.pop(room_id, None)
        self._failures.pop(room_id, None)
        self._unknown.pop(room_id, None)

    def failures(self, room_id: str) -> int:
        """How often in a row our questions about that room were not answered."""
        return self._failures.get(room_id, 0)

    async def heard(self, room_id: str, room: Json, since: str) -> list[IncomingMessage]:
        """The messages of a sync's `join` part for one room, oldest first, and of the gap before them.

        Raises Unavailable when the room must be asked about again, from the same token.
        """
        timeline = room.get("timeline")
        if not isinstance(timeline, dict):
            return []
        events = objects(timeline.get("events"))
        failures = self.failures(room_id)
        start = timeline.get("prev_batch")
        if is_limited(room):
            self._direct.pop(room_id, None)
            if isinstance(start, str) and our_join(events, self._client.user_id) is None:
                events = await self._gap(room_id, start, since) + events
        found = await self._messages(room_id, events)
        if failures == self.failures(room_id):
            self._failures.pop(room_id, None)
        return found

    async def _messages(self, room_id: str, events: list[Json]) -> list[IncomingMessage]:
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
        page = start
        for _ in range(_MAX_PAGES):
            try:
                async with self._patience(room_id):
                    events, end = await self._client.messages(room_id, page, to=since, filter=EVENTS)
            except LoginLost:
                raise
            except (Forbidden, NotFound) as error:
                _log.warning("matrix_gap_unreadable", room_id=room_id, error=str(error))
                break
            except Unavailable as error:
                if not self._gives_up(room_id, error):
                    raise
                _log.warning("matrix_gap_given_up", room_id=room_id, error=str(error))
                break
            newest_first += map(slimmed, events)
            # A page may be empty and not the last: what is there has all been filtered out. Only a missing end ends it
            # (https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3roomsroomidmessages).
            if end is None or end == page or our_join(events, self._client.user_id) is not None:
                break
            page = end
        else:
            _log.warning("matrix_gap_too_long", room_id=room_id, events=len(newest_first))
        return newest_first[::-1]

    async def _is_direct(self, room_id: str) -> bool:
        """Whether nobody but us and one other is in the room."""
        if room_id in self._direct:
            return self._direct[room_id]
        if room_id in self._unknown:
            if not self._unknown[room_id].is_over(self._clock.now()):
                return False
            del self._unknown[room_id]
        try:
            async with self._patience(room_id):
                members = await self._client.direct_members(room_id)
        except LoginLost:
            raise
        except (Forbidden, NotFound):
            return False
        except Unavailable as error:
            if not self._gives_up(room_id, error):
                raise
            _log.warning("matrix_members_unknown", room_id=room_id, error=str(error))
            now = self._clock.now()
            self._unknown[room_id] = Wait(now, now + _UNKNOWN)
            return False
        self._direct[room_id] = len(members) == 2
        return self._direct[room_id]

    def _gives_up(self, room_id: str, error: Unavailable) -> bool:
        """Count a failure, and say whether it is one too many. What the homeserver asks of all is no room's failure."""
        if isinstance(error, SlowDown):
            return False
        self._failures[room_id] = self.failures(room_id) + 1
        return self._failures[room_id] >= _MAX_FAILURES

    @asynccontextmanager
    async def _patience(self, room_id: str) -> AsyncIterator[None]:
        """Less for a room that failed the last time. Raises Unavailable when it is at an end."""
        try:
            async with asyncio.timeout(_IMPATIENT_SECONDS if self.failures(room_id) else None):
                yield
        except TimeoutError as error:
            raise Unavailable(f"Matrix takes too long over {room_id}") from error


def is_limited(room: Json) -> bool:
    """Whether the sync left out what came before in that room."""
    timeline = room.get("timeline")
    return isinstance(timeline, dict) and bool(timeline.get("limited"))


def objects(listed: object) -> list[Json]:
    """The JSON objects of what should be a list of them."""
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
