"""Builds a machine for a sandbox: create, start, wait for its agent, claim it, and begin the chain."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog

from ravebot.access.guard import Guard
from ravebot.clock import Clock, is_due
from ravebot.config.model import Config
from ravebot.errors import ImageError, MachineNotFound, ProviderError, RavebotError
from ravebot.providers.base import MachineSpec, Provider
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.chain.stages import Chain
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.machine_life import BuildFailure, sandbox_on
from ravebot.sandboxes.masking import masked
from ravebot.sandboxes.model import Machine, MachineState
from ravebot.sandboxes.settings import from_pipeline
from ravebot.sandboxes.view import in_words, without_paths
from ravebot.store import machines, pipeline_images
from ravebot.store.database import Database, Transaction, uninterrupted

log = structlog.get_logger()

PING = timedelta(seconds=2)
LOOK_EVERY = timedelta(seconds=10)
"""How long to wait for a boot before the pool checks whether the machine still runs."""
_LINES_SHOWN, _LINE_SHOWN = 3, 120


@dataclass(frozen=True)
class Builds:
    """Builds machines. Every step can be repeated after a restart."""

    config: Config
    clock: Clock
    database: Database
    provider: Provider
    lifecycle: Lifecycle
    chain: Chain
    guard: Guard
    meter: Meter

    async def build(self, machine: Machine, *steps: Callable[[Machine], Awaitable[None]]) -> None:
        """These steps first (`create`, `start`), then on to the end of the chain."""
        ahead = asyncio.create_task(self._fetch_ahead(machine))
        try:
            if await self._boot(machine, steps) and await self._claim(machine) and machine.sandbox_id:
                await self.chain.run(machine.sandbox_id)
        finally:
            ahead.cancel()
            await asyncio.wait({ahead})

    async def create(self, machine: Machine) -> None:
        await self.provider.open()  # the network and storage pool may have been removed since
        await self._know_image(machine)
        # Otherwise a machine could appear after its row was removed, and would belong to nobody.
        await uninterrupted(self.provider.create(self._spec(machine)))

    async def _know_image(self, machine: Machine) -> None:
        """What a pipeline built can be made again when somebody removed the file: nothing is held for that."""
        if not from_pipeline(self.config, machine.image):
            return
        try:
            is_there = await asyncio.to_thread(Path(machine.image).is_file)
        except OSError as error:
            raise ProviderError(f"its image can't be read on the host ({error.strerror})") from error
        if not is_there:
            await self.database.write(lambda tx: pipeline_images.drop_files(tx, [machine.image]))
            raise ProviderError("its image is gone from the host: it is made again")

    async def start(self, machine: Machine) -> None:
        await self.guard.ensure()  # no machine starts before the firewall is verified
        log.info("machine starts", machine=machine.name)
        await uninterrupted(self.provider.start(machine.name))

    async def _boot(self, machine: Machine, steps: Iterable[Callable[[Machine], Awaitable[None]]]) -> bool:
        try:
            for step in steps:
                await step(machine)
            began = self.clock.now()
            while not await self.provider.ping(machine.name, PING):
                if is_due(began, LOOK_EVERY, self.clock.now()):
                    return False  # the next pass continues or gives up
                await asyncio.sleep(0.1)
        except MachineNotFound:
            raise
        except ProviderError as error:
            await self._failed(machine, self._failure(error, machine))
            return False
        return True

    async def _failed(self, machine: Machine, failure: BuildFailure) -> None:
        await machine_life.fail_build(self.database, self.lifecycle, machine, failure)

    def _failure(self, error: ProviderError, machine: Machine) -> BuildFailure:
        """An unusable image is the operators' business, unless a pipeline built it."""
        if not isinstance(error, ImageError):
            return BuildFailure(str(error), without_paths(str(error)))
        if from_pipeline(self.config, machine.image):
            return BuildFailure(str(error), without_paths(str(error)), for_good=True)
        operators = "were told" if self.config.matrix.operations_room else "find the cause in its log"
        told = f"the image of the machines can't be used; ravebot's operators {operators}"
        return BuildFailure(str(error), told, for_good=True)

    async def _claim(self, machine: Machine) -> bool:
        def claim(tx: Transaction) -> bool:
            fresh = machines.get(tx, machine.id)
            if fresh is None or fresh.state is not MachineState.BUILDING:
                return False
            self.meter.stage_done("boot", True, tx.seconds_since(fresh.state_since))
            return machine_life.claim(tx, self.lifecycle, fresh)

        return await self.database.write(claim)

    async def give_up(self, machine: Machine) -> None:
        """Fail the build, which took too long or broke; but not if the agent answers after all."""
        with suppress(ProviderError):
            if await self.provider.ping(machine.name, PING):
                await self._claim(machine)
                return
        limit = in_words(self.config.pool.build_timeout)
        console = await self.provider.console(machine.name)
        lines = _last_lines(console.tail)
        silent = f"the machine did not answer within {limit} of being created"
        # People are shown so little of a text that it may only be one line.
        told = f"{silent}: its console ends with “{lines[-1]}”" if lines else silent
        printed = f"it printed “{' / '.join(lines)}”" if lines else "it printed nothing that can be read"
        why = f"{silent}: {printed}; its whole console is in {console.where}"
        await self._failed(machine, BuildFailure(why, told))

    async def _fetch_ahead(self, machine: Machine) -> None:
        """Download the code while the machine boots; the copy stage repeats and reports a failure."""
        sandbox = await self.database.read(lambda tx: sandbox_on(tx, machine))
        if sandbox is None:
            return
        try:
            await self.chain.sources.archive(sandbox)
        except RavebotError as error:
            log.info("code not fetched ahead", sandbox=sandbox.id, error=str(error))

    def _spec(self, machine: Machine) -> MachineSpec:
        provider = self.config.provider
        named = Path(machine.image)
        known = named in provider.images.values() or from_pipeline(self.config, machine.image)
        if machine.image and not known and named != provider.image:
            raise ProviderError("its image is none of the configured ones any more: another machine gets another")
        image = named if known else provider.image
        direct = image == provider.image
        return MachineSpec(
            name=machine.name,
            uuid=machine.uuid,
            mac=machine.mac,
            address=machine.address,
            tap=machine.tap,
            memory_bytes=machine.memory_bytes,
            vcpus=machine.vcpus or self.config.sandbox.vcpus,
            disk_bytes=machine.disk_bytes,
            image=image,
            kernel=provider.kernel if direct else None,
            initrd=provider.initrd if direct else None,
            cmdline=provider.cmdline if direct else "",
        )


def _last_lines(console: str) -> list[str]:
    """The last lines that a console shows, without terminal codes and secrets, each not too long for a table's row."""
    plain = re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-_])", "", console)
    lines = ("".join(char for char in line if char.isprintable()).strip() for line in masked(plain).splitlines())
    return [line[:_LINE_SHOWN] for line in lines if line][-_LINES_SHOWN:]
