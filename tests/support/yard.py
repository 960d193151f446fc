"""A pool at work: our own parts over a database, with a provider and a firewall of the test's choice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ravebot.parts import Core, make_core
from ravebot.providers.base import RunResult
from ravebot.providers.memory import MemoryProvider
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.model import MachineId, MergeRequest
from ravebot.sandboxes.pool.flights import Flights
from ravebot.store import events
from ravebot.store.database import Database
from ravebot.web.metrics import Metrics
from tests.support.clock import ManualClock
from tests.support.edges import Code, Fence, Web
from tests.support.records import World, make_config

# What `sandboxes.chain.guestjobs` asks guests: how a job goes, and which commands are there.
HOW_A_JOB_GOES, WHICH_ARE_THERE = 'if [ -f "$1/status" ]', "n=$((n + 1))"


def job_ended(code: int, output: str = "its output\n") -> RunResult:
    """What a guest answers when a job has ended."""
    return RunResult(0, f"{code}\n{output}")


@dataclass
class Yard(World):
    """A world with its pool."""

    core: Core
    provider: MemoryProvider
    fence: Fence
    code: Code
    flights: Flights

    async def go(self) -> float:
        """Run one pass, and wait for everything that it started."""
        pause = await self.core.pool.one_pass(self.flights)
        await self.land()
        return pause

    async def land(self, seconds: float = 5) -> None:
        async with asyncio.timeout(seconds):
            while self.flights.any():
                await asyncio.sleep(0.001)

    async def until(self, condition: Callable[[], Any], passes: int = 30) -> None:
        """Pass after pass, a second apart, until the condition (plain or async) holds."""
        for _ in range(passes):
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await self.go()
            self.pass_by(seconds=1)
        raise AssertionError(f"not after {passes} passes; events: {await self.kinds()}")

    async def is_in(self, mr: MergeRequest, state: str) -> bool:
        return (await self.latest(mr)).state.value == state

    async def make_ready(self, mr: MergeRequest) -> None:
        await self.told(mr)
        await self.until(lambda: self.is_in(mr, "ready"))

    async def log(self, kind: str) -> list[dict[str, object]]:
        """The data of every event of that kind."""
        return [event.data for event in await self.read(lambda tx: events.newest(tx, 1000)) if event.kind == kind]


@asynccontextmanager
async def a_yard(
    folder: Path,
    machines: MemoryProvider | None = None,
    /,
    *,
    own_keys: tuple[str, ...] = (),
    opens: type[Database] = Database,
    **changes: Any,
) -> AsyncIterator[Yard]:
    """A pool that is run pass by pass; running actions are cancelled at the end, as by a crash. Guest jobs succeed."""
    folder.mkdir(exist_ok=True)
    config, clock, metrics = make_config(folder, **changes), ManualClock(), Metrics()
    fence, code, provider = Fence(), Code(), machines or MemoryProvider()
    provider.answers.setdefault(HOW_A_JOB_GOES, job_ended(0))
    provider.answers.setdefault(WHICH_ARE_THERE, RunResult(0, "0\n"))
    async with opens(folder / "ravebot.db", clock) as database:
        core = make_core(config, database, clock, provider, fence, code, metrics, own_keys=own_keys, web=Web())
        core.sources.clear()
        async with asyncio.TaskGroup() as group:
            flights = Flights(group, lambda: None)
            yield Yard(config, clock, database, core.lifecycle, core.intents, Views(config), metrics,
                       core, provider, fence, code, flights)  # fmt: skip
            for number in range(100):
                flights.cancel(MachineId(number))
