"""The configured rooms: their names, their ids, and whether the bot is in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

import structlog

from ravebot.backoff import Backoff
from ravebot.clock import Clock, Wait
from ravebot.config.model import Room
from ravebot.errors import Forbidden, NotFound, RavebotError, SlowDown, Unavailable
from ravebot.matrix.answers import LoginLost
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.text import one_line

_log = structlog.get_logger(__name__)

NOT_LOOKED_UP = "not looked up yet"
_RETRY = timedelta(seconds=30)
"""Pause after a room could not be joined; an admin's invite ends it at once."""
_AWAY_PAUSES = Backoff.growing(5.0, 60.0)
"""Pauses after the server of a room did not answer."""
_SOON = timedelta(seconds=2)
"""Pause after a room was replaced: the homeserver moves its aliases to the new room shortly afterwards."""
_CHANGED = "The room's encryption, version or permissions changed a moment ago. ravebot looks at them again."

PROJECT_ROOMS = "matrix.rooms"


class RoomFault(StrEnum):
    """What a person must mend before ravebot can use a room."""

    MISSING = "missing"
    ABSENT = "absent"
    ENCRYPTED = "encrypted"
    REPLACED = "replaced"
    MUTED = "muted"


class RoomUnusable(Forbidden):
    """A configured room can't be used before a person acts."""

    def __init__(self, kind: RoomFault, message: str, room_id: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.room_id = room_id


class RoomMissing(RoomUnusable, NotFound):
    """There is no room of a configured name."""


@dataclass(frozen=True)
class RoomStatus:
    """One configured room. `problem` says what is wrong and what to do; empty when nothing is.

    `fault` is set while a person must act; what passes by itself is only a problem.
    """

    name: str
    room_id: str | None = None
    joined: bool = False
    problem: str = NOT_LOOKED_UP
    fault: RoomFault | None = None
    wait: Wait | None = None  # for the next try
    away: int = 0  # how many requests in a row got no answer
    key: str = PROJECT_ROOMS  # of the configuration, which names the room


class RoomDirectory:
    """Resolves and joins the configured rooms when they are needed; retries later if that fails."""

    def __init__(
        self, client: MatrixClient, rooms: tuple[Room, ...], clock: Clock, operations_room: str | None = None
    ) -> None:
        self._client = client
        self._clock = clock
        self._rooms = {room.room: RoomStatus(room.room) for room in rooms}
        if operations_room is not None and operations_room not in self._rooms:
            self._rooms[operations_room] = RoomStatus(operations_room, key="matrix.operations_room")
        self._lost = 0

    async def ensure(self, name: str) -> str:
        """The id of a configured room, which is joined first. Raises Unavailable, NotFound or Forbidden with advice.

        A room that failed a moment ago is not tried again yet: Unavailable says how long to wait.
        """
        status = self._rooms.get(name)
        if status is None:
            raise NotFound(f"{name} is not in matrix.rooms any more: nothing is sent there")
        if status.joined and status.room_id is not None:
            return status.room_id
        now = self._clock.now()
        if status.wait is not None and not status.wait.is_over(now):
            raise Unavailable(f"{name}: {status.problem}", status.wait.left(now).total_seconds())
        lost = self._lost
        try:
            room_id = await self._enter(name, status.key)
            if lost != self._lost:
                raise Unavailable(_CHANGED)  # noqa: TRY301 - noted below
        except LoginLost:
            raise
        except Unavailable as error:
            # A room whose server is away must not delay the other rooms.
            away = status.away + 1
            wait = _AWAY_PAUSES.after(away, error.retry_after_seconds)
            self._failed(name, error, timedelta(seconds=wait), away)
            raise
        except (NotFound, Forbidden) as error:
            self._failed(name, error, _RETRY)
            raise
        self._rooms[name] = replace(status, room_id=room_id, joined=True, problem="", fault=None, wait=None, away=0)
        _log.info("matrix_room_ready", room=name, room_id=room_id)
        return room_id

    def _failed(self, name: str, error: RavebotError, wait: timedelta, away: int = 0) -> None:
        status, fault = self._rooms[name], None
        if status.problem != str(error):
            _log.warning("matrix_room_not_ready", room=name, error=str(error))
        if isinstance(error, RoomUnusable):
            status, fault = replace(status, room_id=error.room_id or status.room_id), error.kind
        self._rooms[name] = replace(status, problem=str(error), fault=fault, wait=self._wait(wait), away=away)

    def _wait(self, span: timedelta) -> Wait:
        now = self._clock.now()
        return Wait(now, now + span)

    async def _enter(self, name: str, key: str) -> str:
        try:
            room_id = await self._client.join(name)
        except LoginLost:
            raise
        except NotFound as error:
            why = f"There is no such room, or its alias is gone. Create it, or correct `{key}` and restart ravebot"
            raise RoomMissing(RoomFault.MISSING, f"{why} ({_said(error)}).") from error
        except Forbidden as error:
            raise RoomUnusable(RoomFault.ABSENT, f"{self._absent} ({_said(error)}).") from error
        if await self._client.is_encrypted(room_id):
            why = "The room is encrypted, which ravebot can't read or write, and encryption can't be switched off."
            advice = f"Create a room without encryption, name it in `{key}` and restart ravebot."
            raise RoomUnusable(RoomFault.ENCRYPTED, f"{why} {advice}", room_id)
        if await self._client.is_replaced(room_id):
            advice = f"Name that one in `{key}`, restart ravebot and invite it there."
            raise RoomUnusable(RoomFault.REPLACED, f"The room was upgraded to a newer one. {advice}", room_id)
        if not await self._client.may_write(room_id):
            why = "The room's permissions forbid ravebot to write."
            advice = f"A moderator must give {self._client.user_id} the power to send messages, in the room's settings."
            raise RoomUnusable(RoomFault.MUTED, f"{why} {advice}", room_id)
        return room_id

    @property
    def _absent(self) -> str:
        return f"ravebot is not in the room. Let one of `matrix.admins` type `/invite {self._client.user_id}` there"

    async def refresh(self) -> AsyncIterator[RoomStatus]:
        """Try every room that is not ready, and yield the status of each room right after it.

        Raises LoginLost, and SlowDown when the homeserver asks for a pause.
        """
        for name in tuple(self._rooms):
            try:
                await self.ensure(name)
            except (LoginLost, SlowDown):
                raise
            except (NotFound, Forbidden, Unavailable):
                pass  # the status says so
            yield self._rooms[name]

    def statuses(self) -> tuple[RoomStatus, ...]:
        """The known status of every room, without a request."""
        return tuple(self._rooms.values())

    def joined(self, room_id: str) -> None:
        """The bot joined a room, which may be a configured one: try those again now."""
        for name, status in self._rooms.items():
            if not status.joined:
                self._rooms[name] = replace(status, wait=None)

    def left(self, room_id: str) -> None:
        """The bot left a room, or was removed from it: it tries to join again."""
        self._lose(room_id, f"{self._absent}.", None)

    def changed(self, room_id: str) -> None:
        """A room was encrypted or replaced, or forbids us to write: it is checked before anything is sent there."""
        self._lose(room_id, _CHANGED, _SOON)

    def _lose(self, room_id: str, why: str, wait: timedelta | None) -> None:
        """Check a room again after `wait`; one that could not be used may have been mended."""
        self._lost += 1
        until_then = None if wait is None else self._wait(wait)
        for name, status in self._rooms.items():
            if status.room_id != room_id:
                continue
            problem = why if status.joined else status.problem
            self._rooms[name] = replace(status, joined=False, problem=problem, wait=until_then)
            _log.warning("matrix_room_lost", room=name, room_id=room_id, why=why)

    def refused(self, name: str, error: RavebotError) -> None:
        """A configured room rejected a message: its name may mean another room by now."""
        status = self._rooms.get(name)
        if status is not None and status.joined:
            self._rooms[name] = replace(status, joined=False)
            self._failed(name, error, _RETRY)

    async def is_configured(self, room_id: str) -> bool:
        """Whether a room is a configured one, even if the bot was never in it.

        Raises LoginLost, and Unavailable when that can't be known now.
        """
        away: Unavailable | None = None
        for name, status in tuple(self._rooms.items()):
            try:
                if room_id == status.room_id or (not status.joined and room_id == await self._client.resolve(name)):
                    return True
            except LoginLost:
                raise
            except Unavailable as error:
                away = error
            except (NotFound, Forbidden) as error:
                _log.info("matrix_alias_not_resolved", room=name, error=str(error))
        if away:
            raise away
        return False


def _said(error: RavebotError) -> str:
    """The homeserver's words; those of a remote one may be anything."""
    return one_line(str(error)).rstrip(".")
