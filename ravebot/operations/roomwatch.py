"""Tells people once when a configured room can't be used, and once when it can again.

It is told in `matrix.operations_room`. If there is none, or it is the one that can't be used, the admins are told in
their direct chats with ravebot. An encrypted room is never written to.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from ravebot.errors import Forbidden, NotFound, Unavailable
from ravebot.matrix.answers import LoginLost
from ravebot.matrix.cards import render_news
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.content import message, words
from ravebot.matrix.rooms import PROJECT_ROOMS, RoomDirectory, RoomFault, RoomStatus
from ravebot.store import outbox, room_problems
from ravebot.store.database import Database, Transaction
from ravebot.store.room_problems import RoomProblem
from ravebot.store.targets import MATRIX, Kind, RoomLane

log = structlog.get_logger()

_UPGRADED = (
    "This room was upgraded to a newer one: ravebot sends no cards and no answers here any more. "
    "Its configuration names the old room: ask the people who run ravebot to name the newer one in `matrix.rooms`."
)


@dataclass(frozen=True)
class RoomWatch:
    """Compares the rooms with what was told of them. `operations_room` and `admins` are those of the configuration."""

    database: Database
    client: MatrixClient
    rooms: RoomDirectory
    operations_room: str | None
    admins: tuple[str, ...]

    async def look(self, status: RoomStatus) -> None:
        """Tell what changed about a room; what can't be told now is told at a later look. Raises LoginLost."""
        told = await self.database.read(lambda tx: room_problems.told(tx, status.name))
        known = told.problem if told else None
        found = None if status.joined else status.fault or known  # what passes by itself changes nothing
        if found == known:
            return
        try:
            chats = await self._readers(status)
            if chats is not None and status.fault is RoomFault.REPLACED and status.room_id is not None:
                await self._tell_there(status.room_id)
        except LoginLost:
            raise
        except (Unavailable, Forbidden, NotFound) as error:
            log.info("telling of a room is delayed", room=status.name, error=str(error))
        else:
            if chats is not None:
                await self.database.write(lambda tx: self._tell(tx, status, chats))

    def _tell(self, tx: Transaction, status: RoomStatus, chats: tuple[RoomLane, ...]) -> None:
        told = room_problems.told(tx, status.name)
        since = told.since if told else tx.now
        if status.fault is None:
            text = (
                f"{status.name} works again. It did not since {since:%Y-%m-%d %H:%M} UTC; what waited for it is sent."
            )
            room_problems.forget(tx, status.name)
        else:
            waiting = sum(row.count for row in outbox.waiting(tx, MATRIX) if row.name == status.name)
            text = _broken(status, waiting)
            room_problems.save(tx, RoomProblem(status.name, status.fault, since))
        log.warning("a room's state is told", room=status.name, text=text, to=[chat.text for chat in chats])
        for chat in chats:
            if chat.text == self.operations_room:
                outbox.add(tx, chat, Kind.NEWS, body={"text": text})
            else:  # not configured: only replies are sent there
                outbox.add(tx, chat, Kind.REPLY, body={"content": render_news(text)})

    async def _readers(self, status: RoomStatus) -> tuple[RoomLane, ...] | None:
        """Where to tell; None while the room for that can't be used."""
        room = self.operations_room
        if room is None or (status.name == room and not status.joined):
            return tuple([RoomLane(room_id) for room_id in await self._direct_chats()])
        works = any(one.joined for one in self.rooms.statuses() if one.name == room)
        return (RoomLane(room),) if works else None

    async def _direct_chats(self) -> tuple[str, ...]:
        """One room without encryption for each admin who is in a direct chat with us."""
        configured = {status.room_id for status in self.rooms.statuses()}
        found: dict[str, str] = {}
        for room_id in await self.client.joined_rooms():
            try:
                members = await self.client.direct_members(room_id) if room_id not in configured else frozenset()
                admins = (members & {*self.admins}) - {*found}
                if len(members) == 2 and admins and not await self.client.is_encrypted(room_id):
                    found |= dict.fromkeys(admins, room_id)
            except LoginLost:
                raise
            except (Forbidden, NotFound):
                continue  # we were removed meanwhile
        return tuple(found.values())

    async def _tell_there(self, room_id: str) -> None:
        """Tell also in the upgraded room, if its power levels let us: homeservers raise them at an upgrade."""
        transaction = f"rave-{self.database.instance_id}-upgraded-{room_id}"
        try:
            await self.client.send(room_id, message([words(_UPGRADED)]), transaction)
        except LoginLost:
            raise
        except (Forbidden, NotFound) as error:
            log.info("an upgraded room takes no message", room_id=room_id, error=str(error))


def _broken(status: RoomStatus, waiting: int) -> str:
    missing = "no cards and no answers" if status.key == PROJECT_ROOMS else "no news"
    wait = f"; {waiting} message{' waits' if waiting == 1 else 's wait'} for it" if waiting else ""
    return f"ravebot can't use {status.name}: it gets {missing}{wait}.\n{status.problem}"
