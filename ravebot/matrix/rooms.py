"""Which room is which: the configured names, the ids behind them, and whether we are in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from ravebot.backoff import Backoff
from ravebot.clock import Clock, Wait
from ravebot.config.model import Room
from ravebot.errors import Forbidden, NotFound, RavebotError, SlowDown, Unavailable
from ravebot.matrix.answers import LoginLost
from ravebot.matrix.client import MatrixClient

_log = structlog.get_logger(__name__)

NOT_LOOKED_UP = "not looked up yet"
_RETRY = timedelta(seconds=30)
"""How long a room that could not be joined is left alone; an admin's invite makes it known at once."""
_AWAY_PAUSES = Backoff.growing(5.0, 60.0)
"""How long a room whose server does not answer is left alone."""
_SOON = timedelta(seconds=2)
"""A homeserver moves an upgraded room's aliases right after it has said that the room is replaced."""


PROJECT_ROOMS = "matrix.rooms"


@dataclass(frozen=True)
class RoomStatus:
    """One configured room. `problem` says what is missing and how to mend it; "" when nothing is."""

    name: str
    room_id: str | None = None
    joined: bool = False
    problem: str = NOT_LOOKED_UP
    wait: Wait | None = None  # for the next try
    away: int = 0  # how often in a row nothing answered
    key: str = PROJECT_ROOMS  # of the configuration


class RoomDirectory:
    """Resolves and joins the configured rooms when they are needed, and again later where that failed."""

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
        """The id of a configured room that we are in. Raises Unavailable, and NotFound or Forbidden with advice.

        A room that failed a moment ago is not tried again yet: Unavailable says when.
        """
        status = self._rooms.get(name)
        if status is None:
            raise NotFound(f"{name} is not among matrix.rooms any more")
        if status.joined and status.room_id is not None:
            return status.room_id
        now = self._clock.now()
        if status.wait is not None and not status.wait.is_over(now):
            raise Unavailable(f"{name}: {status.problem}", status.wait.left(now).total_seconds())
        lost = self._lost
        try:
            room_id = await self._enter(name, status.key)
            if lost != self._lost:
                raise Unavailable(f"{name} may have changed while it was looked at")  # noqa: TRY301 - noted below
        except LoginLost:
            raise
        except Unavailable as error:
            # One alias on a server that is away must not hold up the rooms beside it.
            away = status.away + 1
            wait = _AWAY_PAUSES.after(away, error.retry_after_seconds)
            self._failed(name, error, timedelta(seconds=wait), away)
            raise
        except (NotFound, Forbidden) as error:
            self._failed(name, error, _RETRY)
            raise
        self._rooms[name] = replace(status, room_id=room_id, joined=True, problem="", wait=None, away=0)
        _log.info("matrix_room_ready", room=name, room_id=room_id)
        return room_id

    def _failed(self, name: str, error: RavebotError, wait: timedelta, away: int = 0) -> None:
        self._rooms[name] = replace(self._rooms[name], problem=str(error), wait=self._wait(wait), away=away)

    def _wait(self, span: timedelta) -> Wait:
        now = self._clock.now()
        return Wait(now, now + span)

    async def _enter(self, name: str, key: str) -> str:
        try:
            room_id = await self._client.join(name)
        except LoginLost:
            raise
        except NotFound as error:
            advice = f"there is no room {name}, or its alias is gone: correct {key} or create it"
            raise NotFound(f"{advice} ({error})") from error
        except Forbidden as error:
            advice = f"we may not join {name}: invite {self._client.user_id} there, as one of matrix.admins"
            raise Forbidden(f"{advice} ({error})") from error
        if await self._client.is_replaced(room_id):
            raise Forbidden(f"{name} is a room that was upgraded to a newer one: name that one in {key}")
        if await self._client.is_encrypted(room_id):
            raise Forbidden(f"{name} is encrypted, which ravebot can't do yet: name a room without encryption in {key}")
        return room_id

    async def refresh(self) -> AsyncIterator[RoomStatus]:
        """Try every room that is not ready, and tell of each as soon as it was tried.

        Raises LoginLost, and SlowDown when the homeserver wants no more requests now.
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
        """What is known now, without asking."""
        return tuple(self._rooms.values())

    def joined(self, room_id: str) -> None:
        """We came into some room: try the configured ones again now, it may be one of them."""
        for name, status in self._rooms.items():
            if not status.joined:
                self._rooms[name] = replace(status, wait=None)

    def left(self, room_id: str) -> None:
        """We were put out of a room, or left it."""
        self._lose(room_id, f"we were removed: invite {self._client.user_id} again", None)

    def changed(self, room_id: str) -> None:
        """A room was encrypted or replaced: nothing is sent there before it was looked at anew."""
        self._lose(room_id, "it was encrypted or replaced a moment ago, and is looked at anew", _SOON)

    def _lose(self, room_id: str, why: str, wait: timedelta | None) -> None:
        self._lost += 1
        until_then = None if wait is None else self._wait(wait)
        for name, status in self._rooms.items():
            if status.room_id == room_id and status.joined:
                self._rooms[name] = replace(status, joined=False, problem=f"{name}: {why}", wait=until_then)
                _log.warning("matrix_room_lost", room=name, room_id=room_id, why=why)

    def refused(self, name: str, error: RavebotError) -> None:
        """What was sent to a configured room was not taken: its name may mean another room by now."""
        status = self._rooms.get(name)
        if status is not None and status.joined:
            self._rooms[name] = replace(status, joined=False)
            self._failed(name, error, _RETRY)
            _log.warning("matrix_room_refused", room=name, room_id=status.room_id, error=str(error))

    async def is_configured(self, room_id: str) -> bool:
        """Whether a room is one of the configured ones, also one that we were never in. Raises LoginLost."""
        for name, status in tuple(self._rooms.items()):
            try:
                if room_id == (status.room_id if status.joined else await self._client.resolve(name)):
                    return True
            except LoginLost:
                raise
            except (NotFound, Forbidden, Unavailable) as error:
                _log.info("matrix_alias_not_resolved", room=name, error=str(error))
        return False
