"""Carries out what `decide_machine` decided: each action calls the provider and ends in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import structlog

from ravebot.access.guard import Guard
from ravebot.config.model import Config
from ravebot.errors import MachineNotFound, Unavailable
from ravebot.providers.base import Provider
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.decide import Do
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.lifecycle import Lifecycle, take_down
from ravebot.sandboxes.machine_life import BY_HAND, change
from ravebot.sandboxes.model import Machine
from ravebot.sandboxes.pool.builds import Builds
from ravebot.sandboxes.pool.health import Health
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()

_DISK_NEEDED_TO_RESUME = 512 * 1024**2
_PAUSED_SECONDS = 1.0


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
        """Run one action. Raises a RavebotError when it should be retried later."""
        try:
            await self._perform(do, machine)
        except MachineNotFound:
            log.info("machine went away meanwhile", machine=machine.name, action=do.value)
        except Unavailable:
            self.meter.provider_failed(do.value)
            raise

    async def _perform(self, do: Do, machine: Machine) -> None:
        match do:
            case Do.NOTHING:
                pass
            case Do.CREATE:
                await self.builds.build(machine, self.builds.create, self.builds.start)
            case Do.START:
                await self.builds.build(machine, self.builds.start)
            case Do.PROBE | Do.CLAIM:
                await self.builds.build(machine)
            case Do.GIVE_UP:
                await self.builds.give_up(machine)
            case Do.STOP:
                await change(self.database, machine, take_down)
            case Do.LOST | Do.REFILL:
                await self._change(machine, machine_life.lost)
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
                await self.guard.release(machine)
                if machine.sandbox_id is not None:
                    await self.builds.chain.sources.forget(machine.sandbox_id)
                await self._change(machine, machine_life.gone)
                self.health.forget(machine)
                self.builds.chain.sources.drop(machine.sandbox_id)
            case _:
                assert_never(do)

    async def _change(self, machine: Machine, step: Callable[[Transaction, Lifecycle, Machine], None]) -> None:
        await change(self.database, machine, lambda tx, fresh: step(tx, self.lifecycle, fresh))

    async def _restart(self, machine: Machine) -> None:
        """Switch it off; if its sandbox continues, start it from its disk and run the whole claim chain."""
        await self.health.sample(machine)
        await self.provider.destroy(machine.name)
        await self._change(machine, machine_life.restarted)
        self.health.forget(machine)

    async def _destroy(self, machine: Machine) -> None:
        await self.health.sample(machine)
        await self._change(machine, machine_life.forced)
        await self.provider.destroy(machine.name)

    async def _paused(self, machine: Machine) -> None:
        """Report a pause once. After a full disk it resumes by itself; a pause by a person is left to that person."""
        listing = await self.provider.list()
        reason = next((one.pause_reason for one in listing.machines if one.name == machine.name), "")

        if machine.paused_since is None:
            await self._change(machine, partial(machine_life.paused, reason=reason))
        if reason not in BY_HAND and (await self.provider.host()).disk_free_bytes >= _DISK_NEEDED_TO_RESUME:
            await self.provider.resume(machine.name)  # the resume is reported when the agent answers
        await asyncio.sleep(_PAUSED_SECONDS)
