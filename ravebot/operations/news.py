"""Sends messages about the whole installation to the room `matrix.operations_room`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ravebot.errors import Forbidden, NotFound, StoreError, Unacceptable
from ravebot.matrix.answers import LoginLost
from ravebot.matrix.cards import render_news
from ravebot.notify.matrix import Directory, RoomClient
from ravebot.store import outbox
from ravebot.store.database import Database
from ravebot.store.targets import Kind, RoomLane


@dataclass(frozen=True)
class Operators:
    """The people in that room; without a room, `room` is None and nothing is sent."""

    room: str | None
    database: Database
    client: RoomClient
    directory: Directory

    async def tell(self, text: str, key: str) -> None:
        """Send a text through the outbox or, if the database can't be written, directly.

        The same `key` makes the same Matrix event. Raises RavebotError if both ways fail: then try again later.
        """
        room = self.room
        if room is None:
            return
        try:
            await self.database.write(lambda tx: outbox.add(tx, RoomLane(room), Kind.NEWS, body={"text": text}))
        except StoreError:
            await self._send(room, render_news(text), key)

    async def _send(self, room: str, content: Mapping[str, object], key: str) -> None:
        room_id = await self.directory.ensure(room)
        try:
            await self.client.send(room_id, content, f"rave-{self.database.instance_id}-{key}")
        except (LoginLost, Unacceptable):
            raise
        except (Forbidden, NotFound) as error:
            self.directory.refused(room, error)
            raise
