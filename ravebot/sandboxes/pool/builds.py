"""Builds a machine for a sandbox: create, start, wait for its agent, claim it, and begin the chain."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from ravebot.access.guard import Guard
from ravebot.clock import Clock, is_due
from ravebot.config.model import Config
from ravebot.errors import ImageError, MachineNotFound, ProviderError, RavebotError
from ravebot.providers.base import MachineSpec, Provider
from ravebot.sandboxes.chain.stages import Chain
from ravebot.sandboxes.decide import Do
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import Machine, MachineState, Sandbox
from ravebot.sandboxes.steps import change, sandbox_on
from ravebot.sandboxes.view import in_words
from ravebot.store import machines
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()

PING = timedelta(seconds=2)
LOOK_EVERY = timedelta(seconds=10)
"""How long a boot is waited for at a time: then the pool looks whether the machine still runs."""


@dataclass(frozen=True)
class Builds:
    """Every step may be entered again, wherever an earlier process left it."""

    config: Config
    clock: Clock
    database: Database
    provider: Provider
    lifecycle: Lifecycle
    chain: Chain
    guard: Guard
    meter: Meter

    async def build(self, do: Do, machine: Machine) -> None:
        """From `do` (create, start or probe) to the end of the chain."""
        ahead = asyncio.create_task(self._fetch_ahead(machine))
        try:
            if await self._boot(do, machine) and (sandbox := await self._claim(machine)):
                await self.chain.run(sandbox.id)
        finally:
            ahead.cancel()
            await asyncio.wait({ahead})

    async def _boot(self, do: Do, machine: Machine) -> bool:
        try:
            if do is Do.CREATE:
                await change(self.database, machine, _note_attempt)
                await self.provider.open()  # whatever all machines share may have been taken away since
                await _to_its_end(self.provider.create(self._spec(machine)))
            if do in (Do.CREATE, Do.START):
                await self.guard.ensure()  # no machine starts before the firewall is verified
                log.info("machine starts", machine=machine.name)
                await _to_its_end(self.provider.start(machine.name))
            began = self.clock.now()
            while not await self.provider.ping(machine.name, PING):
                if is_due(began, LOOK_EVERY, self.clock.now()):
                    return False  # the next pass goes on, or gives it up
                await asyncio.sleep(0.1)
        except MachineNotFound:
            raise
        except ProviderError as error:
            await self._failed(machine, error)
            return False
        return True

    async def _failed(self, machine: Machine, error: ProviderError) -> None:
        why, for_good = str(error), isinstance(error, ImageError)
        await change(
            self.database, machine, lambda tx, fresh: self.lifecycle.build_failed(tx, fresh, why, for_good=for_good)
        )

    async def _claim(self, machine: Machine) -> Sandbox | None:
        def claim(tx: Transaction) -> Sandbox | None:
            fresh = machines.get(tx, machine.id)
            if fresh is None or fresh.state is not MachineState.BUILDING:
                return None
            self.meter.stage_done("boot", True, tx.seconds_since(fresh.state_since))
            return self.lifecycle.claim(tx, fresh)

        return await self.database.write(claim)

    async def give_up(self, machine: Machine) -> None:
        """It took too long, or broke; unless it answers now, having come up while nobody looked."""
        with suppress(ProviderError):
            if await self.provider.ping(machine.name, PING):
                await self._claim(machine)
                return
        why = f"the machine did not answer within {in_words(self.config.pool.build_timeout)} of being created"
        await change(
            self.database, machine, lambda tx, fresh: self.lifecycle.build_failed(tx, fresh, why, for_good=False)
        )

    async def _fetch_ahead(self, machine: Machine) -> None:
        """While the machine boots, get the code; a failure here shows again, and is told, at its own stage."""
        sandbox = await self.database.read(lambda tx: sandbox_on(tx, machine))
        if sandbox is None:
            return
        try:
            await self.chain.sources.archive(sandbox)
        except RavebotError as error:
            log.info("code not fetched ahead", sandbox=sandbox.id, error=str(error))

    def _spec(self, machine: Machine) -> MachineSpec:
        provider = self.config.provider
        return MachineSpec(
            name=machine.name,
            uuid=machine.uuid,
            mac=machine.mac,
            address=machine.address,
            tap=machine.tap,
            memory_bytes=machine.memory_bytes,
            vcpus=self.config.sandbox.vcpus,
            disk_bytes=machine.disk_bytes,
            image=provider.image,
            kernel=provider.kernel,
            initrd=provider.initrd,
            cmdline=provider.cmdline,
        )


async def _to_its_end(call: Coroutine[object, object, None]) -> None:
    """Await a call that can't be broken off: what is cancelled goes on in its thread, and a machine that appeared after
    its row had gone would belong to nobody."""
    task = asyncio.ensure_future(call)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    task.result()


def _note_attempt(tx: Transaction, machine: Machine) -> None:
    machines.save(tx, replace(machine, create_attempted_at=tx.now))
