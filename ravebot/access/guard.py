"""Keeps the firewall true for what the database wants, and the access audit that is read from it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime

import structlog

from ravebot.access.rules import Connections, Firewall, Repair, Rules, Service
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
"""A little less than a busy pool's pause: each of its regular passes looks."""


class Guard:
    """One at a time: `ensure` reads what is wanted, makes it so, and reports what others had done."""

    def __init__(self, firewall: Firewall, database: Database, journal: Journal, meter: Meter, web_port: int) -> None:
        self._firewall = firewall
        self._database = database
        self._journal = journal
        self._meter = meter
        self._web_port = web_port
        self._lock = asyncio.Lock()
        self._last: Rules | None = None
        self._going: set[MachineId] = set()
        self._removed = False  # because a person asked; stays so until a machine is wanted again
        self._verified_at: float | None = None  # by the loop's clock; None: look now
        self.looked_at: datetime | None = None
        """When the firewall was looked at last, however that went."""
        self.problem = ""
        """Why it could not be made right then; empty when it could."""

    def alarm(self) -> None:
        """Somebody touched the ruleset: the next pass looks, whenever the last look was."""
        self._verified_at = None

    async def watch(self, state: Wanted) -> None:
        """`ensure`, unless the same was verified a moment ago: a burst of passes need not ask the kernel each time."""
        now = asyncio.get_running_loop().time()
        recent = self._verified_at is not None and now - self._verified_at < LOOK_EVERY_SECONDS
        if not recent or self._wanted(state) != self._last:
            await self.ensure()

    async def let_go(self, machine: Machine) -> None:
        """Take a machine's rules away, for good: its row follows, and no pass in between may bring them back."""
        self._going.add(machine.id)
        await self.ensure()

    async def ensure(self) -> None:
        """Make the firewall true. Raises `Unavailable`."""
        async with self._lock:
            self._verified_at = asyncio.get_running_loop().time()
            state, self.looked_at = await self._database.read(lambda tx: (wanted(tx), tx.now))
            self._going &= {machine.id for machine in state.machines}
            desired = self._wanted(state)
            if self._removed and desired == Rules():
                self.problem = ""
                return
            self._removed = False
            try:
                repair = await self._firewall.ensure(desired)
            except Unavailable as error:
                self.problem = str(error)
                self._verified_at = None
                raise
            self.problem = ""
            ours = desired == self._last
            self._last = desired
        if repair.flushed or (ours and (repair.added or repair.removed)):
            await self._report(repair)

    async def remove(self) -> tuple[str, ...]:
        """Take the firewall away, until a machine is wanted; returns in words what is gone.

        Raises Refused where one is wanted already, and Unavailable.
        """
        async with self._lock:
            state = await self._database.read(wanted)
            if self._wanted(state) != Rules():
                raise Refused("the firewall stays: there are machines (again)")
            self._removed = True  # also when what follows breaks off in the middle
            return await self._firewall.remove()

    def _wanted(self, state: Wanted) -> Rules:
        return rules(state, self._web_port, frozenset(self._going))

    async def _report(self, repair: Repair) -> None:
        log.warning("firewall mended", flushed=repair.flushed, added=repair.added, removed=repair.removed)
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
        """Move what the firewall counted into the database."""
        seen = await self._firewall.connections()
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
            first = connections.add(
                tx,
                Visit(
                    sandbox.id, service, one.source, one.first_seen, one.last_seen,
                    one.connections, one.dropped, one.bytes,
                ),
            )  # fmt: skip
            if one.dropped:
                self._meter.connections_dropped(service, one.dropped)
            if first:
                data: dict[str, object] = {"service": service.value, "source": one.source}
                self._journal.record(tx, EventKind.ACCESS_FIRST, sandbox=sandbox, data=data)
