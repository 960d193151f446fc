"""Reads one room's messages from a sync, including the gap before it, and finds out whether it is a direct chat.

A room about which requests keep failing is given up after a few tries, because the other rooms wait for it.
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
from ravebot.matrix.incoming import (
    MOST_TEXT,
    Heard,
    our_join,
    read_message,
    read_reaction,
    read_removed,
    since_we_joined,
    slimmed,
    text_of,
)

_log = structlog.get_logger(__name__)

POWER = "m.room.power_levels"
CHANGES = ("m.room.encryption", "m.room.tombstone", POWER)
"""State events after which a room must be checked again before anything is sent there."""
EVENTS: dict[str, object] = {"types": ["m.room.message", "m.reaction", "m.room.redaction", "m.room.member", *CHANGES]}
_MAX_PAGES = 200
"""How far back a gap is read, in pages of 100 events. If a room is flooded with more, the oldest are not read."""
_MOST_TEXT_OF_GAP = 8_000_000
"""Characters of messages that are kept of a gap. Of what was said before that, only commands are kept whole."""
_MAX_FAILURES = 5
_LIMIT_AFTER_FAILURE_SECONDS = 10.0
"""Time limit of a request about a room for which the last one failed."""
_ASSUME_NOT_DIRECT = timedelta(minutes=5)
"""For how long a room counts as not direct after its members could not be read."""


class Hearing:
    """Reads rooms from syncs; remembers for which rooms requests failed, and which are direct chats."""

    def __init__(self, client: MatrixClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._direct: dict[str, bool] = {}
        self._unknown: dict[str, Wait] = {}
        self._failures: dict[str, int] = {}

    def forget(self, room_id: str) -> None:
        """Forget a room that the bot is no longer in."""
        self._direct.pop(room_id, None)
        self._failures.pop(room_id, None)
        self._unknown.pop(room_id, None)

    def failures(self, room_id: str) -> int:
        """How many requests about that room in a row were not answered."""
        return self._failures.get(room_id, 0)

    async def heard(self, room_id: str, room: Json, since: str) -> list[Heard]:
        """What is in one room's part of a sync and in the gap before it, oldest first.

        Raises Unavailable when the room must be read again, from the same token.
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

    async def _messages(self, room_id: str, events: list[Json]) -> list[Heard]:
        if any(event.get("type") == "m.room.member" for event in events):
            self._direct.pop(room_id, None)
        found: list[Heard] = []
        for event in since_we_joined(events, self._client.user_id):
            if redaction := read_removed(event, room_id):
                found.append(redaction)
            for read in (read_message, read_reaction):
                if (heard := read(event, room_id, self._client.user_id)) is not None:
                    found.append(replace(heard, direct=await self._is_direct(room_id)))
        return found

    async def _gap(self, room_id: str, start: str, since: str) -> list[Json]:
        """The events that the sync left out, oldest first."""
        newest_first: list[Json] = []
        text_left = _MOST_TEXT_OF_GAP
        page = start
        for _ in range(_MAX_PAGES):
            try:
                async with self._time_limit(room_id):
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
            for event in events:
                slim = slimmed(event, MOST_TEXT if text_left > 0 else 0)
                text_left -= len(text_of(slim))
                newest_first.append(slim)
            # A page may be empty and not the last, if all its events were filtered out. Only the last page has no `end`
            # (https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3roomsroomidmessages).
            if end is None or end == page or our_join(events, self._client.user_id) is not None:
                break
            page = end
        else:
            _log.warning("matrix_gap_too_long", room_id=room_id, events=len(newest_first))
        return newest_first[::-1]

    async def _is_direct(self, room_id: str) -> bool:
        """Whether the room has exactly two members, one of them the bot."""
        if room_id in self._direct:
            return self._direct[room_id]
        if room_id in self._unknown:
            if not self._unknown[room_id].is_over(self._clock.now()):
                return False
            del self._unknown[room_id]
        try:
            async with self._time_limit(room_id):
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
            self._unknown[room_id] = Wait(now, now + _ASSUME_NOT_DIRECT)
            return False
        self._direct[room_id] = len(members) == 2
        return self._direct[room_id]

    def _gives_up(self, room_id: str, error: Unavailable) -> bool:
        """Count a failure; returns whether to give the room up. SlowDown concerns all rooms, so it does not count."""
        if isinstance(error, SlowDown):
            return False
        self._failures[room_id] = self.failures(room_id) + 1
        return self._failures[room_id] >= _MAX_FAILURES

    @asynccontextmanager
    async def _time_limit(self, room_id: str) -> AsyncIterator[None]:
        """Limit the time of a request about a room for which the last one failed. Raises Unavailable after it."""
        try:
            async with asyncio.timeout(_LIMIT_AFTER_FAILURE_SECONDS if self.failures(room_id) else None):
                yield
        except TimeoutError as error:
            raise Unavailable(f"Matrix takes too long to answer about {room_id}") from error


def is_limited(room: Json) -> bool:
    """Whether the sync left out earlier events of that room."""
    timeline = room.get("timeline")
    return isinstance(timeline, dict) and bool(timeline.get("limited"))


def objects(listed: object) -> list[Json]:
    """The JSON objects in a list; empty if it is no list."""
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
