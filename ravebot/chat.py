"""The connection to Matrix: logs in, joins the configured rooms, runs sync and delivery, and recovers from errors."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

import structlog

from ravebot.backoff import Backoff
from ravebot.errors import Forbidden, RavebotError, Unavailable
from ravebot.matrix.answers import LoginLost
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.rooms import RoomDirectory, RoomStatus
from ravebot.matrix.sync import SyncLoop
from ravebot.notify.delivery import Delivery
from ravebot.operations.roomwatch import RoomWatch
from ravebot.store import outbox
from ravebot.store.database import Database
from ravebot.web.metrics import Metrics

log = structlog.get_logger()

NOT_CONNECTED = "not connected yet"
_LOGIN_PAUSES = Backoff.growing(1.0, 15.0)
_REFUSED_SECONDS = 60.0
_ROOMS_SECONDS = 10.0


@dataclass
class Chat:
    """Runs the Matrix loops. `problem`: why ravebot is not logged in; empty when it is."""

    client: MatrixClient
    rooms: RoomDirectory
    room_watch: RoomWatch
    sync: SyncLoop
    delivery: Delivery
    database: Database
    metrics: Metrics
    problem: str = NOT_CONNECTED

    async def run(self) -> None:
        """Run until cancelled. A refused login is retried at intervals, because the account may be unlocked.

        Password and token are read once, at the start: a new one needs a restart.
        """
        await self._log_in()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_rooms())
            group.create_task(self.sync.invites.run())
            group.create_task(self.delivery.run())
            await self._listen()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        renewed = -_REFUSED_SECONDS
        while True:
            try:
                await self.sync.run()
            except LoginLost as error:
                self.problem = str(error)
                self.metrics.synced("refused")
                # Perhaps somebody only ended our session, so log in again at once. If that login is lost soon after,
                # the server accepts logins and refuses everything else: wait.
                pause = max(0.0, renewed + _REFUSED_SECONDS - loop.time())
                log.warning("matrix ended our login", error=str(error), in_s=round(pause, 1))
                await asyncio.sleep(pause)
                await self._log_in()
                renewed = loop.time()

    async def _log_in(self) -> None:
        failures = 0
        while True:
            try:
                await self.client.open()
            except RavebotError as error:
                self.problem = str(error)
                refused = isinstance(error, Forbidden)
                failures = len(_LOGIN_PAUSES.steps) if refused else failures + 1
                asked = error.retry_after_seconds if isinstance(error, Unavailable) else None
                wait = _REFUSED_SECONDS if refused else _LOGIN_PAUSES.after(failures, asked)
                log.warning("matrix login failed", error=str(error), in_s=wait)
                await asyncio.sleep(wait)
            else:
                self.problem = ""
                return

    async def _keep_rooms(self) -> None:
        """Join the configured rooms, store their ids, and tell people which of them can't be used."""
        while True:
            try:
                async for status in self.rooms.refresh():
                    await self._remember(status)
                    await self.room_watch.look(status)
            except RavebotError as error:
                log.warning("rooms could not be looked up", error=str(error))
            await asyncio.sleep(_ROOMS_SECONDS)

    async def _remember(self, status: RoomStatus) -> None:
        room_id = status.room_id
        if not status.joined or room_id is None:
            return
        known = await self.database.read(outbox.rooms)
        if known.get(status.name) != room_id:
            await self.database.write(partial(outbox.set_room, name=status.name, room_id=room_id))
