"""Keeps the firewall in line with the database, and stores the connections that the firewall counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime

import structlog

from ravebot.access.rules import Connections, Firewall, Repair, Rules, Service
from ravebot.clock import age
from ravebot.errors import Refused, Unavailable
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.journal import Journal
from ravebot.sandboxes.model import RAVEBOT, EventKind, Machine, MachineId, Sandbox, SandboxState
from ravebot.sandboxes.observation import Wanted, rules, wanted
from ravebot.store import connections, events, sandboxes
from ravebot.store.connections import Visit
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()


LOOK_EVERY_SECONDS = 0.9
"""Slightly less than the pause of a busy pool, so that each of its regular passes checks the firewall."""


class Guard:
    """Applies the rules that the database wants and reports what others changed; one call at a time."""

    def __init__(self, firewall: Firewall, database: Database, journal: Journal, meter: Meter, web_port: int) -> None:
        self._firewall = firewall
        self._database = database
        self._journal = journal
        self._meter = meter
        self._web_port = web_port
        self._lock = asyncio.Lock()
        self._last: Rules | None = None
        self._released: set[MachineId] = set()
        self._removed = False  # True: a person had it removed; until a machine is wanted again
        self._verified_at: float | None = None  # by the event loop's clock; None: check at the next pass
        self.looked_at: datetime | None = None
        """When the firewall was last checked, whether or not that worked."""
        self.problem = ""
        """Why that failed; empty when it worked."""

    def alarm(self) -> None:
        """Make the next pass check the firewall, however recent the last check is: someone changed the ruleset."""
        self._verified_at = None

    async def watch(self, state: Wanted) -> None:
        """`ensure`, unless the same rules were verified a moment ago: in a burst of passes, not every one asks."""
        now = asyncio.get_running_loop().time()
        recent = self._verified_at is not None and now - self._verified_at < LOOK_EVERY_SECONDS
        if not recent or self._wanted(state) != self._last:
            await self.ensure()

    async def release(self, machine: Machine) -> None:
        """Remove a machine's rules for good: no pass may restore them before its row is marked as gone."""
        self._released.add(machine.id)
        await self.ensure()

    async def ensure(self) -> None:
        """Make the firewall match the database. Raises `Unavailable`."""
        async with self._lock:
            self._verified_at = asyncio.get_running_loop().time()
            state, now = await self._database.read(lambda tx: (wanted(tx), tx.now))
            self._released &= {machine.id for machine in state.machines}
            desired = self._wanted(state)
            if self._removed and desired == Rules():
                self.looked_at, self.problem = now, ""
                return
            self._removed = False
            try:
                repair = await self._firewall.ensure(desired)
            except Unavailable as error:
                self.looked_at, self.problem = now, str(error)
                self._verified_at = None
                raise
            self.looked_at, self.problem = now, ""
            ours = desired == self._last
            self._last = desired
        if repair.flushed or (ours and (repair.added or repair.removed)):
            await self._report(repair)

    async def remove(self) -> tuple[str, ...]:
        """Remove the firewall until a machine is wanted again. Raises Unavailable, and Refused if one is wanted now."""
        async with self._lock:
            state = await self._database.read(wanted)
            if self._wanted(state) != Rules():
                raise Refused("the firewall was not removed, because a machine was started: run the command again")
            self._removed = True  # before removing, which may fail half-way
            return await self._firewall.remove()

    def _wanted(self, state: Wanted) -> Rules:
        return rules(state, self._web_port, frozenset(self._released))

    async def _report(self, repair: Repair) -> None:
        log.warning("firewall repaired", flushed=repair.flushed, added=repair.added, removed=repair.removed)
        self._meter.firewall_repaired(repair.flushed)

        def tell(tx: Transaction) -> None:
            data: dict[str, object] = {
                "flushed": repair.flushed, "added": repair.added, "removed": repair.removed
            }  # fmt: skip
            open_ones = [sandbox for sandbox in sandboxes.live(tx) if sandbox.ports_open]
            told: set[str] = set()
            for sandbox in open_ones:
                told |= self._journal.record(tx, EventKind.FIREWALL_REPAIRED, sandbox=sandbox, data=data, not_in=told)
            if not open_ones:
                events.append(tx, EventKind.FIREWALL_REPAIRED, RAVEBOT, data=data)

        await self._database.write(tell)

    async def audit(self) -> None:
        """Add the connections that the firewall counted to the database, and all attempts to the metrics."""
        seen = await self._firewall.connections()
        for service, attempts in self._firewall.attempts().items():
            self._meter.attempted(service, attempts.passed, attempts.refused)
        if seen:
            await self._database.write(lambda tx: self._keep(tx, seen))

    def _keep(self, tx: Transaction, seen: Iterable[Connections]) -> None:
        by_port: dict[int | None, tuple[Sandbox, Service]] = {}
        for sandbox in sandboxes.live(tx):
            if sandbox.state is not SandboxState.QUEUED:
                by_port[sandbox.ssh_port] = (sandbox, Service.SSH)
                by_port[sandbox.web_port] = (sandbox, Service.WEB)
        for one in seen:
            if one.port not in by_port:
                continue
            sandbox, service = by_port[one.port]
            ready_at = sandbox.ready_at
            if (
                ready_at and one.last_seen >= ready_at and (one.connections or one.bytes)
                and not connections.visited_since(tx, sandbox.id, service, ready_at)
            ):  # fmt: skip
                self._meter.first_access(service, age(ready_at, one.first_seen))
            first = connections.add(
                tx,
                Visit(
                    sandbox.id, service, one.source, one.first_seen, one.last_seen,
                    one.connections, one.dropped, one.bytes,
                ),
            )  # fmt: skip
            self._meter.connected(service, one.connections, one.dropped)
            if first:
                data: dict[str, object] = {"service": service.value, "source": one.source}
                self._journal.record(tx, EventKind.ACCESS_FIRST, sandbox=sandbox, data=data)
