"""The pool's loop: compare what should be with what is, and take one step for each machine and sandbox.

There are no timers: a pass looks at the database, the provider, the firewall and the clock, so a restart
simply continues. Slow work runs beside the loop; a pass never waits for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog

from ravebot.access.guard import Guard
from ravebot.clock import Clock, is_due
from ravebot.config.model import Config
from ravebot.errors import RavebotError, Unavailable
from ravebot.providers.base import Listing, Provider
from ravebot.sandboxes.decide import Do, Happened, MachineFacts, decide_expiry, decide_machine, seen_silent, time_runs
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import Machine, MachineId, MachineState, Sandbox, SandboxId, SandboxState
from ravebot.sandboxes.observation import Wanted, observed, state_of, wanted
from ravebot.sandboxes.pool.actions import Actions
from ravebot.sandboxes.pool.admission import Admission
from ravebot.sandboxes.pool.flights import Flights
from ravebot.sandboxes.pool.moments import any_ahead, bring_back
from ravebot.sandboxes.pool.sweep import Sweep, why_untouched
from ravebot.store import machines, restored, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import POOL

log = structlog.get_logger()

SHORTEST_PAUSE_SECONDS = 0.05
BUSY_PAUSE_SECONDS = 1.0
IDLE_PAUSE_SECONDS = 5.0
CHECK_EVERY = timedelta(seconds=20)
CHECKS_AT_ONCE = 16
"""How many machines are checked at the same time: more would time out while they wait for the provider."""
AUDIT_EVERY = timedelta(seconds=5)
PROGRESS_EVERY = timedelta(seconds=10)
"""How often card and note show the progress of a start, and after what time that of new code."""

_SWEEP = MachineId(0)
"""Key of the sweep's task; it belongs to no machine."""

GUEST_WORK = frozenset({Do.CREATE, Do.START, Do.PROBE, Do.CLAIM, Do.CHECK, Do.GIVE_UP})
"""Actions that are cancelled at once when the machine is not needed any more."""


@dataclass
class Passes:
    """State of the passes; each text says what failed the last time, and is empty when nothing did."""

    began_at: datetime | None = None
    """Start of the current pass; None between two passes."""
    ended_at: datetime | None = None
    broken_off: str = ""
    provider: str = ""
    """Why it could not be opened or listed."""
    admission: str = ""
    """Why no sandbox could be admitted."""
    audit: str = ""
    """Why the firewall's counters could not be read."""


@dataclass
class Pool:
    """Decides which sandboxes and machines there should be, and has it done."""

    config: Config
    clock: Clock
    database: Database
    provider: Provider
    lifecycle: Lifecycle
    actions: Actions
    admission: Admission
    guard: Guard
    sweep: Sweep
    meter: Meter

    def __post_init__(self) -> None:
        self.blocked = ""
        """Why the pool does nothing; empty when it works."""
        self.machines_known = False
        """Whether the last pass could list the provider, without machines that an empty or restored database
        does not know."""
        self.passes = Passes()
        self._opened = False
        self._settled = False
        self._codes: dict[MachineId, str] = {}  # the commit for which the running action was started
        self._checked: dict[MachineId, datetime] = {}
        self._audited: datetime | None = None
        self._swept: datetime | None = None

    async def run(self) -> None:
        """Run passes until cancelled."""
        async with asyncio.TaskGroup() as group:
            flights = Flights(group, lambda: self.database.signals.wake(POOL))
            while True:
                pause = IDLE_PAUSE_SECONDS
                try:
                    pause = await self.one_pass(flights)
                except RavebotError as error:
                    log.warning("pool pass not finished", error=str(error))
                await self.database.signals.wait(POOL, pause)
                await asyncio.sleep(SHORTEST_PAUSE_SECONDS)  # what woke the pool is told to people first

    async def one_pass(self, flights: Flights) -> float:
        """Take every step that is due; returns the seconds until the next pass."""
        self.passes.began_at = self.clock.now()
        try:
            pause = await self._pass(flights)
        except RavebotError as error:
            self.passes.broken_off = str(error)
            raise
        else:
            self.passes.broken_off = ""
            return pause
        finally:
            self.passes.began_at, self.passes.ended_at = None, self.clock.now()

    async def _pass(self, flights: Flights) -> float:
        loop = asyncio.get_running_loop()
        started = loop.time()
        state = await self.database.read(wanted)
        listing = await self._list()
        if why := await self.database.read(lambda tx: why_untouched(tx, listing)):
            self.machines_known = False
            if not self.blocked:
                log.error("nothing is touched or started", why=why)
            self.blocked = why
            return IDLE_PAUSE_SECONDS
        self.blocked = ""
        if listing is not None and not self._settled:
            if await self.database.read(restored.is_unsettled):
                await self.database.write(restored.settle)
                log.info("the restored database knows everything that this instance has on the host")
            self._settled = True
        self.machines_known = listing is not None
        if any_ahead(state, self.clock.now()):
            log.warning("the clock was set back: moments that lie in the future count as now")
            await self.database.write(self._bring_back)
            state = await self.database.read(wanted)
        self.meter.counted(dict(Counter(sandbox.status for sandbox in state.sandboxes)))
        if listing is not None and await self._admit(state):
            state = await self.database.read(wanted)
        busy = await self._step_machines(flights, state, listing)
        # An empty database may be one that was lost: until it is known which machines run, their rules stay.
        if listing is not None or state.machines or await self.database.read(machines.any_ever):
            await self._update_firewall(
                state
            )  # after what was just started, which verifies the firewall before a machine runs
        await self._step_sandboxes(state)
        now = self.clock.now()
        if listing is not None and is_due(self._swept, self.config.pool.orphan_sweep, now):
            self._swept = now
            if flights.may_start(_SWEEP):
                flights.start(_SWEEP, Do.DELETE, self.sweep.run(listing))
        self.meter.pass_done(loop.time() - started)
        return BUSY_PAUSE_SECONDS if busy or flights.any() else IDLE_PAUSE_SECONDS

    async def _list(self) -> Listing | None:
        """What the provider holds; None when that can't be known now."""
        try:
            if not self._opened:
                await self.provider.open()
                self._opened = True
            listing = await self.provider.list()
        except RavebotError as error:
            log.warning("provider could not be asked", error=str(error))
            self.passes.provider = str(error)
            self.meter.provider_failed("list")
            self.meter.provider_seen(False)
            return None
        self.meter.provider_seen(True)
        self.passes.provider = ""
        return listing

    async def _update_firewall(self, state: Wanted) -> None:
        try:
            await self.guard.watch(state)
            now = self.clock.now()
            if is_due(self._audited, AUDIT_EVERY, now):
                self._audited = now
                await self._audit()
        except Unavailable as error:
            log.warning("firewall could not be verified: no machine is started", error=str(error))

    async def _audit(self) -> None:
        try:
            await self.guard.audit()
        except Unavailable as error:
            log.warning("access counters could not be read", error=str(error))
            self.passes.audit = str(error)
        else:
            self.passes.audit = ""

    async def _admit(self, state: Wanted) -> bool:
        try:
            admitted = await self.admission.run(state)
        except RavebotError as error:
            log.warning("no queued sandbox can be admitted now", error=str(error))
            self.passes.admission = str(error)
            return False
        self.passes.admission = ""
        return admitted

    async def _step_machines(self, flights: Flights, state: Wanted, listing: Listing | None) -> bool:
        """Start the action that is due for each machine; whether any machine is in transition."""
        seen = observed(listing)
        by_id = state.by_id
        now = self.clock.now()
        moving = False
        checking = sum(flights.busy(machine.id) is Do.CHECK for machine in state.machines)
        for machine in state.machines:
            sandbox = by_id.get(machine.sandbox_id) if machine.sandbox_id else None
            settled = machine.state is MachineState.LEASED and sandbox and sandbox.state is SandboxState.READY
            moving = moving or not settled
            flying = flights.busy(machine.id)
            if flying in GUEST_WORK and (machine.state is MachineState.STOPPING or self._overtaken(machine, sandbox)):
                flights.cancel(machine.id)
            if not flights.may_start(machine.id):
                continue
            facts = self._facts(machine, sandbox, now)
            do = decide_machine(machine.state, state_of(machine, seen, listing), facts)
            if do is Do.CHECK:
                if not self._check_due(machine, sandbox, now, checking):
                    continue
                checking += 1
            if do is not Do.NOTHING:
                self._codes[machine.id] = sandbox.sha if sandbox else ""
                flights.start(machine.id, do, self.actions.perform(do, machine))
        for forgotten in self._codes.keys() - {machine.id for machine in state.machines}:
            del self._codes[forgotten]
            self._checked.pop(forgotten, None)
        return moving

    def _overtaken(self, machine: Machine, sandbox: Sandbox | None) -> bool:
        """Whether the running action works on outdated code."""
        return sandbox is not None and sandbox.stage is not None and self._codes.get(machine.id) != sandbox.sha

    def _facts(self, machine: Machine, sandbox: Sandbox | None, now: datetime) -> MachineFacts:
        pool = self.config.pool
        return MachineFacts(
            state_age=now - machine.state_since,
            build_timeout=pool.build_timeout,
            grace=pool.shutdown_grace,
            restarts=machine.restarts,
            silent_for=seen_silent(machine, now),
            starting=sandbox is not None and sandbox.stage is not None,
            paused_by_us=machine.paused_by_us,
        )

    def _check_due(self, machine: Machine, sandbox: Sandbox | None, now: datetime, checking: int) -> bool:
        if sandbox is None or sandbox.stage is not None:
            return True
        if checking >= CHECKS_AT_ONCE:
            return False
        if not is_due(self._checked.get(machine.id), CHECK_EVERY, now):
            return False
        self._checked[machine.id] = now
        return True

    async def _step_sandboxes(self, state: Wanted) -> None:
        now = self.clock.now()
        for sandbox in state.sandboxes:
            if self._expiry_due(sandbox, now) or _has_news(sandbox, now):
                await self.database.write(partial(self._tick, sandbox_id=sandbox.id))

    def _bring_back(self, tx: Transaction) -> None:
        for sandbox in bring_back(tx):
            self.lifecycle.refresh(tx, sandbox)  # it shows the moments of before

    def _expiry_due(self, sandbox: Sandbox, now: datetime) -> bool:
        return time_runs(sandbox) and decide_expiry(sandbox, self.config.pool.warn_before, now).is_due

    def _tick(self, tx: Transaction, sandbox_id: SandboxId) -> None:
        """Warn or expire a sandbox or show its progress, decided again by this transaction's data."""
        sandbox = sandboxes.get(tx, sandbox_id)
        if sandbox and self._expiry_due(sandbox, tx.now):
            self.lifecycle.happened(tx, sandbox, Happened.EXPIRED)
        elif sandbox and _has_news(sandbox, tx.now):
            self.lifecycle.refresh(tx, sandbox)


def _has_news(sandbox: Sandbox, now: datetime) -> bool:
    """Whether a step is under way that card and note should show, but don't yet."""
    step_since = sandbox.stage_started_at or sandbox.state_since
    starting = sandbox.state is SandboxState.STARTING
    updating = sandbox.state is SandboxState.READY and sandbox.stage is not None
    shown_since = sandbox.refreshed_at
    if not (starting or updating) or (shown_since is not None and shown_since >= step_since):
        return False
    return is_due(shown_since if starting else step_since, PROGRESS_EVERY, now)
