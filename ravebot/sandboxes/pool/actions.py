"""What `decide_machine` said, carried out: each action does its work at the provider and ends in one transaction."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import structlog

from ravebot.access.guard import Guard
from ravebot.config.model import Config
from ravebot.errors import MachineNotFound, Unavailable
from ravebot.providers.base import Provider
from ravebot.sandboxes.decide import Do
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import EventKind, Machine, MachineState, SandboxState
from ravebot.sandboxes.pool.builds import Builds
from ravebot.sandboxes.pool.health import Health
from ravebot.sandboxes.steps import change, sandbox_on
from ravebot.store import machines, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import POOL

log = structlog.get_logger()

_DISK_NEEDED_TO_RESUME = 512 * 1024**2
_PAUSED_SECONDS = 1.0
_BY_HAND = frozenset({"user", "migration", "save", "dump", "snapshot"})
"""Why libvirt says that a machine is paused, where resuming it is for whoever paused it."""


@dataclass(frozen=True)
class Actions:
    """Carries out what `decide_machine` said."""

    config: Config
    database: Database
    provider: Provider
    lifecycle: Lifecycle
    guard: Guard
    meter: Meter
    builds: Builds
    health: Health

    async def perform(self, do: Do, machine: Machine) -> None:
        """Do it. Raises a RavebotError when it is to be tried again later."""
        try:
            await self._perform(do, machine)
        except MachineNotFound:
            log.info("machine went away meanwhile", machine=machine.name, action=do.value)
        except Unavailable:
            self.meter.provider_failed(do.value)
            raise

    async def _perform(self, do: Do, machine: Machine) -> None:
        match do:
            case Do.CREATE | Do.START | Do.PROBE | Do.CLAIM:
                await self.builds.build(do, machine)
            case Do.GIVE_UP:
                await self.builds.give_up(machine)
            case Do.STOP:
                await change(self.database, machine, self.lifecycle.take_down)
            case Do.LOST | Do.REFILL:
                await self._lost(machine)
            case Do.RESTART:
                await self._restart(machine)
            case Do.CHECK:
                await self.health.check(machine)
            case Do.RESUME:
                await self.provider.resume(machine.name)
            case Do.FREE_SPACE:
                await self._paused(machine)
            case Do.SHUT_DOWN:
                await self.health.sample(machine)
                await self.provider.shutdown(machine.name)
                await asyncio.sleep(1)
            case Do.DESTROY:
                await self._destroy(machine)
            case Do.DELETE | Do.FORGET:
                await self.provider.delete(machine.name)
                await self.guard.audit()  # who connected last, while the ports are still known as this sandbox's
                await self.guard.let_go(machine)
                if machine.sandbox_id is not None:
                    await self.builds.chain.sources.forget(machine.sandbox_id)
                await change(self.database, machine, self.lifecycle.machine_gone)
                self.health.forget(machine)
                self.builds.chain.sources.drop(machine.sandbox_id)
            case Do.NOTHING:
                pass

    async def _lost(self, machine: Machine) -> None:
        def lost(tx: Transaction, fresh: Machine) -> None:
            sandbox = sandbox_on(tx, fresh)
            if sandbox:
                self.lifecycle.machine_lost(tx, sandbox, fresh, "its machine is gone")
            else:
                self.lifecycle.take_down(tx, fresh)

        await change(self.database, machine, lost)

    async def _restart(self, machine: Machine) -> None:
        """Switch it off and build it up again from its disk: the whole claim chain runs anew."""

        def counted(tx: Transaction, fresh: Machine) -> None:
            sandbox = sandbox_on(tx, fresh)
            if sandbox is None or sandbox.state not in (SandboxState.STARTING, SandboxState.READY):
                return
            machines.save(
                tx,
                replace(
                    fresh,
                    state=MachineState.BUILDING,
                    state_since=tx.now,
                    restarts=fresh.restarts + 1,
                    silent_since=None,
                    silent_seen_at=None,
                    unhealthy_told=False,
                    paused_since=None,
                    cpu_before_restart=fresh.cpu_seconds,
                ),
            )
            again = replace(
                sandbox,
                state=SandboxState.STARTING,
                state_since=tx.now,
                ports_open=False,
                stage=None,
                stage_started_at=None,
            )
            sandboxes.save(tx, again)
            data: dict[str, object] = {"why": "it was off or did not answer"}
            self.lifecycle.journal.record(
                tx, EventKind.MACHINE_RESTARTED, sandbox=again, machine_id=fresh.id, data=data
            )
            tx.wake(POOL)

        await self.health.sample(machine)
        await self.provider.destroy(machine.name)
        await change(self.database, machine, counted)
        self.health.forget(machine)

    async def _destroy(self, machine: Machine) -> None:
        await self.health.sample(machine)

        def tell(tx: Transaction, fresh: Machine) -> None:
            sandbox = sandbox_on(tx, fresh)
            if sandbox and "switched off" not in sandbox.end_detail:
                detail = "; ".join(filter(None, [sandbox.end_detail, "switched off after the grace"]))
                forced = replace(sandbox, end_detail=detail)
                sandboxes.save(tx, forced)
                data: dict[str, object] = {"grace": self.config.pool.shutdown_grace.total_seconds()}
                self.lifecycle.journal.record(
                    tx, EventKind.MACHINE_FORCED, sandbox=forced, machine_id=fresh.id, data=data
                )

        await change(self.database, machine, tell)
        await self.provider.destroy(machine.name)

    async def _paused(self, machine: Machine) -> None:
        """Told once; a full disk is waited out, what somebody suspended on purpose is theirs to resume."""
        listing = await self.provider.list()
        reason = next((one.pause_reason for one in listing.machines if one.name == machine.name), "")

        def tell(tx: Transaction, fresh: Machine) -> None:
            sandbox = sandbox_on(tx, fresh)
            if sandbox is None or fresh.paused_since is not None:
                return
            machines.save(tx, replace(fresh, paused_since=tx.now))
            journal = self.lifecycle.journal
            if reason == "ioerror":
                why: dict[str, object] = {"why": "the host's disk is full"}
                journal.record(tx, EventKind.MACHINE_DISK_FULL, sandbox=sandbox, machine_id=fresh.id, data=why)
            else:
                data: dict[str, object] = {"why": "on the host" if reason in _BY_HAND else reason}
                journal.record(tx, EventKind.MACHINE_SUSPENDED, sandbox=sandbox, machine_id=fresh.id, data=data)

        if machine.paused_since is None:
            await change(self.database, machine, tell)
        if reason not in _BY_HAND and (await self.provider.host()).disk_free_bytes >= _DISK_NEEDED_TO_RESUME:
            await self.provider.resume(machine.name)  # that it goes on is told when it answers
        await asyncio.sleep(_PAUSED_SECONDS)
