"""Our presence in Matrix: logged in, in the configured rooms, hearing and telling, whatever goes wrong there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

import structlog

from ravebot.errors import Forbidden, RavebotError
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.rooms import RoomDirectory
from ravebot.matrix.sync import SyncLoop
from ravebot.notify.delivery import Delivery
from ravebot.store import outbox
from ravebot.store.database import Database
from ravebot.web.metrics import Metrics

log = structlog.get_logger()

_MOST_SECONDS = 15.0
_REFUSED_SECONDS = 60.0
_ROOMS_SECONDS = 10.0


@dataclass
class Chat:
    """The loops that speak Matrix. `problem`: why they don't at the moment; empty when they do."""

    client: MatrixClient
    rooms: RoomDirectory
    sync: SyncLoop
    delivery: Delivery
    database: Database
    metrics: Metrics
    problem: str = "not connected yet"

    async def run(self) -> None:
        """Until cancelled. A login that is refused is tried again now and then: an operator may mend it."""
        await self._log_in()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_rooms())
            group.create_task(self.delivery.run())
            while True:
                try:
                    await self.sync.run()
                except Forbidden as error:
                    self.problem = str(error)
                    self.metrics.synced("refused")
                    log.warning("matrix refuses our login", error=str(error), in_s=_REFUSED_SECONDS)
                    await asyncio.sleep(_REFUSED_SECONDS)
                    await self._log_in()

    async def _log_in(self) -> None:
        pause = 0.5
        while True:
            try:
                await self.client.open()
            except RavebotError as error:
                self.problem = str(error)
                pause = _REFUSED_SECONDS if isinstance(error, Forbidden) else min(_MOST_SECONDS, pause * 2)
                log.warning("matrix login failed", error=str(error), in_s=pause)
                await asyncio.sleep(pause)
            else:
                self.problem = ""
                return

    async def _keep_rooms(self) -> None:
        """Be in the configured rooms, and remember their ids."""
        while True:
            try:
                known = await self.database.read(outbox.rooms)
                for status in await self.rooms.refresh():
                    if status.joined and status.room_id and known.get(status.name) != status.room_id:
                        await self.database.write(partial(outbox.set_room, name=status.name, room_id=status.room_id))
            except RavebotError as error:
                log.warning("rooms could not be looked up", error=str(error))
            await asyncio.sleep(_ROOMS_SECONDS)
