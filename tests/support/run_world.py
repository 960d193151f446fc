"""Runs in a sandbox whose guest is a `Room`: the store, the loop, and the loop in a process that is killed."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from ravebot.backoff import Backoff
from ravebot.clock import Clock, SystemClock
from ravebot.config.model import Config
from ravebot.providers.base import RunResult
from ravebot.providers.memory import MemoryProvider
from ravebot.sandboxes.chain.guestjobs import GuestJobs
from ravebot.sandboxes.model import CODE_FOLDER, Actor, GuestRun, Machine, MachineState, RunId, Sandbox, SandboxState
from ravebot.sandboxes.runloop import Runs, WhyNot
from ravebot.sandboxes.runs import RunOutput, run_cancel, run_read, run_start
from ravebot.store import machines, merge_requests, runs, sandboxes
from ravebot.store.database import Database, Transaction
from tests.support.agent_world import CrashingDatabase
from tests.support.guest_room import Room
from tests.support.records import a_machine, a_merge_request, make_config

MR = a_merge_request()
ALICE = Actor("token", "alice")
USER = "nobody"


@dataclass
class RunWorld:
    """What tests of runs work with."""

    database: Database
    loop: Runs

    async def sandbox(self) -> Sandbox:
        found = await self.database.read(lambda tx: sandboxes.latest(tx, MR.ref))
        assert found
        return found

    async def change_sandbox(self, **facts: Any) -> None:
        sandbox = await self.sandbox()
        await self.database.write(lambda tx: sandboxes.save(tx, replace(sandbox, **facts)))

    async def change_machine(self, **facts: Any) -> None:
        sandbox = await self.sandbox()

        def step(tx: Transaction) -> None:
            machine = machines.get(tx, sandbox.machine_id)
            assert machine
            machines.save(tx, replace(machine, **facts))

        await self.database.write(step)

    async def another_machine(self) -> Machine:
        return await self.database.write(lambda tx: machines.insert(tx, a_machine(2, state=MachineState.LEASED)))

    async def ask(self, command: str, seconds: float = 20) -> GuestRun:
        sandbox = await self.sandbox()
        return await self.database.write(lambda tx: run_start(tx, sandbox, command, timedelta(seconds=seconds), ALICE))

    async def cancel(self, run: GuestRun) -> GuestRun:
        def step(tx: Transaction) -> GuestRun:
            stored = runs.get(tx, run.id)
            assert stored
            return run_cancel(tx, stored, ALICE)

        return await self.database.write(step)

    async def get(self, run_id: RunId) -> GuestRun:
        found = await self.database.read(lambda tx: runs.get(tx, run_id))
        assert found
        return found

    async def until(self, run: GuestRun, condition: Callable[[GuestRun], object], seconds: float = 20) -> GuestRun:
        until = time.monotonic() + seconds
        while not condition(found := await self.get(run.id)):
            assert time.monotonic() < until, found
            await asyncio.sleep(0.01)
        return found

    async def over(self, run: GuestRun) -> GuestRun:
        return await self.until(run, lambda one: one.state.is_over)

    async def read(self, run: GuestRun, offset: int = 0, most: int = 2_000_000) -> RunOutput:
        stored = await self.get(run.id)
        return await self.database.read(lambda tx: run_read(tx, stored, offset, most))


def _ready(tx: Transaction) -> None:
    merge_requests.observe(tx, MR)
    machine = machines.insert(tx, a_machine(1, state=MachineState.LEASED))
    sandbox = sandboxes.insert(tx, MR.ref, MR.head_sha, ALICE)
    facts: dict[str, Any] = {
        "state": SandboxState.READY,
        "machine_id": machine.id,
        "ready_at": tx.now,
        "running_sha": MR.head_sha,
    }
    sandboxes.save(tx, replace(sandbox, **facts))
    machines.save(tx, replace(machine, sandbox_id=sandbox.id))


def _loop(config: Config, database: Database, provider: MemoryProvider, why_not: WhyNot | None = None) -> Runs:
    return Runs(database, GuestJobs(provider, USER), config, why_not)


@asynccontextmanager
async def a_run_world(
    provider: MemoryProvider,
    folder: Path,
    *,
    works: bool = True,
    clock: Clock | None = None,
    why_not: WhyNot | None = None,
) -> AsyncIterator[RunWorld]:
    """A ready sandbox whose guest is that provider's; `works`: the loop runs here."""
    folder.mkdir(exist_ok=True)
    config = make_config(folder)
    async with Database(folder / "ravebot.db", clock or SystemClock()) as database:
        if not await database.read(lambda tx: sandboxes.latest(tx, MR.ref)):
            await database.write(_ready)
        world = RunWorld(database, _loop(config, database, provider, why_not))
        task = asyncio.create_task(world.loop.run()) if works else None
        try:
            yield world
        finally:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


def with_code(room: Room) -> Room:
    room.sh(f"mkdir -p {CODE_FOLDER} && chown {USER} {CODE_FOLDER}")
    return room


class CrashingRoom(Room):
    """A guest, each of whose commands is a step of the database's, before it and after it."""

    database: CrashingDatabase

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunResult:
        self.database.step()
        result = await super().run(name, argv, timeout=timeout, environment=environment, stdin=stdin)
        self.database.step()
        return result


def run_until_killed(state_dir: Path, holder_pid: int, crash_at: int) -> None:
    """What a process of its own runs: the loop, which is killed at a step; 0: by whoever started it."""

    async def work() -> None:
        database = CrashingDatabase(state_dir / "ravebot.db", SystemClock())
        database.steps, database.crash_at = itertools.count(1), crash_at
        room = CrashingRoom(holder_pid)
        room.database = database
        async with database:
            loop = _loop(make_config(state_dir), database, room)
            await replace(loop, polls=Backoff.growing(0.01, 0.02)).run()

    asyncio.run(work())
