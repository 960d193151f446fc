"""The running bot: every loop in one task group, from the database's opening to a clean end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog
from aiohttp import web as aiohttp_web

from ravebot.access.firewall import NftFirewall
from ravebot.access.rules import Firewall
from ravebot.audit import database_path
from ravebot.clock import Clock, SystemClock
from ravebot.config import Config
from ravebot.configfile import LoadedConfig
from ravebot.errors import ConfigError, Forbidden, RavebotError
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.reachable import Reachable
from ravebot.gitlab.receiver import webhook_handler
from ravebot.gitlab.webhook import Delivery as WebhookDelivery
from ravebot.gitlab.webhook import WebhookSecrets, signing_key
from ravebot.intake.gitlab import GitLabIntake
from ravebot.intake.loop import Intake
from ravebot.intake.matrix import MatrixIntake, MatrixJournal
from ravebot.intake.people import People
from ravebot.intake.poll import Poller
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.rooms import RoomDirectory
from ravebot.matrix.sync import SyncLoop
from ravebot.notify.delivery import Delivery
from ravebot.notify.gitlab import GitLabSender
from ravebot.notify.matrix import MatrixSender
from ravebot.operator import Operator
from ravebot.parts import Core, make_core, make_firewall, make_gitlab, make_provider
from ravebot.providers.base import Provider
from ravebot.store import events, inbox, outbox, sandboxes
from ravebot.store.database import Database
from ravebot.store.outbox import GITLAB, MATRIX
from ravebot.store.signals import OUTBOX_GITLAB, OUTBOX_MATRIX, POOL
from ravebot.web import admin
from ravebot.web.metrics import Metrics
from ravebot.web.server import Check, Checks, make_app, serve

log = structlog.get_logger()

_KEEP_HANDLED = timedelta(days=14)
_KEEP_OUTPUT = timedelta(days=7)
_MATRIX_SILENT = timedelta(seconds=120)
_OUTBOX_OLD = timedelta(minutes=5)
_REFUSED_PAUSE_SECONDS = 60.0


@dataclass
class Bot:
    """The parts of a running bot."""

    config: Config
    clock: Clock
    database: Database
    metrics: Metrics
    provider: Provider
    firewall: Firewall
    gitlab: GitLab
    matrix: MatrixClient
    rooms: RoomDirectory
    core: Core
    poller: Poller
    sync: SyncLoop
    secrets: WebhookSecrets

    def __post_init__(self) -> None:
        self.matrix_problem = "not connected yet"
        self.reachable = Reachable(self.gitlab)

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.to_thread(self.core.sources.clear)
        people = People(self.config, self.database, self.gitlab)
        intake = Intake(
            self.database,
            {
                "gitlab": GitLabIntake(self.config, self.gitlab, people, self.core.intents),
                "matrix": MatrixIntake(
                    self.config, self.gitlab, people, self.core.intents, self.core.views, self.database
                ),
            },
        )
        to_gitlab = Delivery(
            self.database,
            GITLAB,
            OUTBOX_GITLAB,
            GitLabSender(self.database, self.core.views, self.gitlab),
            self.metrics.delivery_tried,
        )
        operator = Operator(self.config, self.database, self.core, self.provider)
        async with AsyncExitStack() as doors, asyncio.TaskGroup() as group:
            await doors.enter_async_context(serve(self._http_app(), *self.config.http.address))
            await doors.enter_async_context(
                admin.serve(admin.make_app(operator), admin.socket_path(self.config.state_dir))
            )
            log.info("ravebot runs", instance=self.config.instance, instance_id=self.database.instance_id)
            for loop in (
                self.core.pool.run(),
                intake.run(),
                to_gitlab.run(),
                self.poller.run(),
                self._matrix(),
                self._watch_provider(),
                self._watch_firewall(),
                self._housekeeping(),
                self._gauges(),
            ):
                group.create_task(loop)

    def _http_app(self) -> aiohttp_web.Application:
        async def accept(delivery: WebhookDelivery) -> bool:
            return await self.database.write(
                lambda tx: inbox.add(
                    tx,
                    source="gitlab",
                    key=delivery.key,
                    lane=delivery.lane,
                    kind=delivery.kind,
                    body=delivery.body,
                )
            )

        handler = webhook_handler(self.secrets, self.clock, accept, self.metrics.webhook_answered)
        return make_app(handler, self._checks(), self.metrics)

    async def _matrix(self) -> None:
        """Log in, then hear and tell; refused for good, try again now and then: an operator may mend it."""
        to_matrix = Delivery(
            self.database,
            MATRIX,
            OUTBOX_MATRIX,
            MatrixSender(self.config.matrix, self.database, self.core.views, self.matrix, self.rooms),
            self.metrics.delivery_tried,
        )
        pause = 0.5
        while True:
            try:
                await self.matrix.open()
                break
            except RavebotError as error:
                self.matrix_problem = str(error)
                pause = _REFUSED_PAUSE_SECONDS if isinstance(error, Forbidden) else min(15.0, pause * 2)
                log.warning("matrix login failed", error=str(error), in_s=pause)
                await asyncio.sleep(pause)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_rooms())
            group.create_task(to_matrix.run())
            while True:
                try:
                    self.matrix_problem = ""
                    await self.sync.run()
                except Forbidden as error:
                    self.matrix_problem = str(error)
                    self.metrics.synced("refused")
                    log.warning("matrix refuses our login", error=str(error))
                    await asyncio.sleep(_REFUSED_PAUSE_SECONDS)

    async def _keep_rooms(self) -> None:
        """Be in the configured rooms, and remember their ids."""
        while True:
            try:
                for status in await self.rooms.refresh():
                    if status.room_id and status.joined:
                        name, room_id = status.name, status.room_id
                        known = await self.database.read(outbox.rooms)
                        if known.get(name) != room_id:
                            await self.database.write(partial(outbox.set_room, name=name, room_id=room_id))
            except RavebotError as error:
                log.warning("rooms could not be looked up", error=str(error))
            await asyncio.sleep(10)

    async def _watch_provider(self) -> None:
        async for event in self.provider.events():
            log.debug("provider event", machine=event.name, what=event.what)
            self.database.signals.wake(POOL)

    async def _watch_firewall(self) -> None:
        async for _ in self.firewall.changes():
            self.database.signals.wake(POOL)

    async def _housekeeping(self) -> None:
        while True:
            await self.database.write(lambda tx: inbox.forget_handled(tx, _KEEP_HANDLED))
            await self.database.write(lambda tx: outbox.forget_delivered(tx, _KEEP_HANDLED))
            await self.database.write(lambda tx: sandboxes.forget_output(tx, _KEEP_OUTPUT))
            await asyncio.to_thread(_forget_consoles, self.config.state_dir / "console", _KEEP_OUTPUT)
            log.info("event log", head=await self.database.read(events.head))
            await asyncio.sleep(24 * 3600)

    async def _gauges(self) -> None:
        while True:
            for target in (MATRIX, GITLAB):
                count, oldest = await self.database.read(partial(outbox.backlog, target=target))
                self.metrics.outbox_seen(target, count, self.clock.now() - oldest if oldest else None)
            await asyncio.sleep(10)

    def _checks(self) -> Checks:
        return {
            "matrix": self._check_matrix,
            "gitlab": self._check_gitlab,
            "provider": self._check_provider,
            "firewall": self._check_firewall,
            "outbox": self._check_outbox,
        }

    async def _check_matrix(self) -> Check:
        if problem := self.matrix_problem or self.sync.problem:
            return Check(False, problem)
        last = self.sync.last_success
        if last is None or self.clock.now() - last > _MATRIX_SILENT:
            return Check(False, f"last synced {last or 'never'}: is the homeserver up?")
        problems = [status.problem for status in self.rooms.statuses() if status.problem]
        return Check(not problems, "; ".join(problems) or f"synced {last:%H:%M:%S}")

    async def _check_gitlab(self) -> Check:
        if problem := await self.reachable.problem():
            return Check(False, problem)
        if self.poller.last_success is None and self.poller.last_error:
            return Check(False, self.poller.last_error)
        last = self.poller.last_success
        return Check(last is not None, f"looked at {last:%H:%M:%S}" if last else "not looked at yet")

    async def _check_provider(self) -> Check:
        if self.core.pool.blocked:
            return Check(False, self.core.pool.blocked)
        good = await self.provider.connected()
        return Check(good, "" if good else "libvirt does not answer")

    async def _check_firewall(self) -> Check:
        if self.core.guard.problem:
            return Check(False, self.core.guard.problem)
        if isinstance(self.firewall, NftFirewall):
            conflicts = await self.firewall.find_conflicts()
            return Check(not conflicts, "; ".join(conflicts))
        return Check(True)

    async def _check_outbox(self) -> Check:
        for target in (MATRIX, GITLAB):
            count, oldest = await self.database.read(partial(outbox.backlog, target=target))
            if oldest and self.clock.now() - oldest > _OUTBOX_OLD:
                return Check(False, f"{count} messages wait for {target}, the oldest since {oldest:%H:%M:%S}")
        return Check(True)


def _forget_consoles(folder: Path, older_than: timedelta) -> None:
    """Remove what machines of long ago wrote to their consoles; one that still writes is never that old."""
    oldest = time.time() - older_than.total_seconds()
    for path in folder.glob("*.log*"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)


@asynccontextmanager
async def assembled(loaded: LoadedConfig, clock: Clock) -> AsyncIterator[Bot]:
    """Open the database and make every part; closes them all at the end."""
    config, secrets = loaded.config, loaded.secrets
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(database_path(config.state_dir), clock))
        provider = make_provider(config, database.instance_id)
        stack.push_async_callback(provider.close)
        firewall = make_firewall(config, database.instance_id, clock)
        stack.push_async_callback(firewall.close)
        gitlab = make_gitlab(config, secrets.gitlab_token, clock)
        stack.push_async_callback(gitlab.close)
        password = secrets.matrix_password or secrets.matrix_access_token
        if not password:
            raise ConfigError("matrix.password_file or matrix.access_token_file holds nothing")
        matrix = MatrixClient(config.matrix, password, config.state_dir)
        stack.push_async_callback(matrix.close)
        core = make_core(config, database, clock, provider, firewall, gitlab, metrics)
        rooms = RoomDirectory(matrix, config.matrix.rooms, clock)
        yield Bot(
            config=config,
            clock=clock,
            database=database,
            metrics=metrics,
            provider=provider,
            firewall=firewall,
            gitlab=gitlab,
            matrix=matrix,
            rooms=rooms,
            core=core,
            poller=Poller(config, database, gitlab, core.intents, clock, metrics.polled),
            sync=SyncLoop(
                matrix,
                MatrixJournal(database, config.matrix.command_prefix),
                clock,
                admins=config.matrix.admins,
                on_left=rooms.left,
                on_joined=rooms.joined,
                on_result=lambda result: metrics.synced("ok" if result == "ok" else "failed"),
            ),
            secrets=WebhookSecrets(
                secret_token=secrets.webhook_secret,
                signing_key=signing_key(secrets.webhook_signing) if secrets.webhook_signing else None,
            ),
        )


async def run(loaded: LoadedConfig, clock: Clock | None = None) -> None:
    """Run until cancelled; sandboxes go on without us."""
    async with assembled(loaded, clock or SystemClock()) as bot:
        await bot.run()
