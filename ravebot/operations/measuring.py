"""Measures what waits, what runs and what the host has free, every few seconds, so that a scrape asks nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog

from ravebot.agents import overview
from ravebot.clock import Clock, age
from ravebot.config.model import Config
from ravebot.errors import RavebotError
from ravebot.providers.base import Provider
from ravebot.store import agent_queue, agent_work, figures, outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.figures import Backlog, RunningMachine
from ravebot.store.targets import Target
from ravebot.web.metrics import Metrics
from ravebot.web.metrics.running import written
from ravebot.web.metrics.series import SOURCES

log = structlog.get_logger()

EVERY_SECONDS = 10.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Measuring:
    """Two loops, `run` and `watch_loop`."""

    config: Config
    clock: Clock
    database: Database
    provider: Provider
    metrics: Metrics
    targets: tuple[Target, ...]
    projects: Callable[[], Iterable[tuple[int, str]]] = tuple
    """Ids and paths of those that are served."""
    every_seconds: float = EVERY_SECONDS

    async def run(self) -> None:
        """Update the metrics until cancelled."""
        while True:
            for measure in (self._boxes, self._agents, self._sandboxes, self._files, self._host):
                try:
                    await measure()
                except RavebotError as error:
                    log.debug("not measured", error=str(error))  # the parts that need it report it
            await asyncio.sleep(self.every_seconds)

    async def watch_loop(self) -> None:
        """Measure by how much the event loop is late, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            worst, ends = 0.0, loop.time() + self.every_seconds
            while (began := loop.time()) < ends:
                await asyncio.sleep(_LOOK_SECONDS)
                worst = max(worst, loop.time() - began - _LOOK_SECONDS)
            self.metrics.lagged(worst)

    async def _boxes(self) -> None:
        for target in self.targets:
            count, oldest = await self.database.read(partial(outbox.backlog, target=target))
            self.metrics.outbox_seen(target.name, count, age(oldest, self.clock.now()) if oldest else None)
        for source in SOURCES:
            found = await self.database.read(partial(figures.requests, source=source))
            self.metrics.inbox_seen(source, found.count, self._age(found))

    async def _agents(self) -> None:
        by_state, oldest, ended, agents = await self.database.read(
            lambda tx: (
                agent_queue.count_states(tx),
                agent_work.undelivered_since(tx),
                figures.turns_ended(tx),
                overview.agents(tx, self.config),
            )
        )
        self.metrics.agents_seen(by_state, age(oldest, self.clock.now()) if oldest else None)
        self.metrics.turns_seen(ended)
        for agent in agents:
            self.metrics.worked_seen(agent.name, agent.spent.seconds)
            self.metrics.budget_seen(agent.name, "messages", agent.spent.messages / agent.spent.most)
            if agent.spent.most_tokens:
                self.metrics.budget_seen(agent.name, "tokens", agent.spent.tokens / agent.spent.most_tokens)

    async def _sandboxes(self) -> None:
        self.metrics.projects_served(self.projects())

        def look(tx: Transaction) -> tuple[tuple[RunningMachine, ...], bytes, Backlog, tuple[int, int]]:
            machines = figures.running(tx)
            return machines, written(machines), figures.queue(tx), figures.ports_used(tx)

        running, series, queue, (ssh, web) = await self.database.read(look)
        self.metrics.running_seen(running, ssh, web, series)
        self.metrics.queue_seen(self._age(queue))

    async def _files(self) -> None:
        whole = self.database.path
        for file, path in (("database", whole), ("wal", whole.with_name(f"{whole.name}-wal"))):
            with suppress(OSError):
                self.metrics.database_seen(file, (await asyncio.to_thread(path.stat)).st_size)

    async def _host(self) -> None:
        host = await self.provider.host()
        self.metrics.capacity_seen(host.memory_available_bytes, host.disk_free_bytes, host.disk_promised_bytes)

    def _age(self, found: Backlog) -> timedelta | None:
        return age(found.since, self.clock.now()) if found.since else None
