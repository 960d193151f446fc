"""Conversations with an agent in a guest that is reached by real SSH: the store, the desk and the runner."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ravebot.agents.desk import Addressed, Desk
from ravebot.agents.model import AgentDoor, Approval, ApprovalState, Turn, TurnId
from ravebot.agents.progress import TurnProgress
from ravebot.agents.runner import AgentRunner
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.transports.acp.control import CONTROL_KEY, ControlConnections, Destination, RemoteForward, SshClient
from ravebot.agents.transports.acp.doors.sandbox_doors import SandboxDoors
from ravebot.agents.transports.acp.driver import IDLE_SECONDS, AcpDriver, Authorize
from ravebot.agents.transports.contract import DoorServer
from ravebot.backoff import Backoff
from ravebot.clock import SystemClock
from ravebot.config.model import AgentConfig, Budgets, Config, ModelConfig, PersonBudget
from ravebot.sandboxes.model import Actor, Machine, MachineState, MergeRequest, SandboxState
from ravebot.store import approvals, conversations, machines, merge_requests, sandboxes
from ravebot.store.database import Database, Transaction
from tests.support.records import a_machine, a_merge_request, make_config
from tests.support.sshd import SshGuest

T = TypeVar("T")
ALICE_IN_ROOM = Actor("matrix", "@alice:example.org")
AGENT_SOURCE = Path(__file__).with_name("scripted_agent.py")


@contextmanager
def a_guest_with_the_agent(folder: Path) -> Iterator[SshGuest]:
    """A guest that has the scripted agent as the program `agent`."""
    (folder / "state").mkdir()
    with SshGuest(folder, folder / "state") as running:
        running.program("agent", AGENT_SOURCE.read_text())
        yield running


def agents_config(state_dir: Path, command: Sequence[str], **agent: Any) -> Config:
    known: dict[str, Any] = {
        "name": "coder", "owner": "alice", "projects": ["group/*"], "approve": ["edit"], "acp": {"command": command},
    }  # fmt: skip
    return make_config(state_dir, sandbox={"user": "agent"}).model_copy(
        update={
            "agents": (AgentConfig.model_validate({**known, **agent}),),
            "budgets": Budgets(person=PersonBudget(messages_per_day=1_000_000)),
        }
    )


@dataclass
class AgentWorld:
    """What tests of conversations work with."""

    config: Config
    database: Database
    desk: Desk
    guest: SshGuest
    driver: AcpDriver
    mr: MergeRequest

    async def say(self, text: str, thread: str = "$root", key: str = "") -> TurnId:
        """A person says something to the agent; returns the turn."""
        return await self.database.write(lambda tx: self.accept(tx, text, thread, key))

    def accept(self, tx: Transaction, text: str, thread: str = "$root", key: str = "") -> TurnId:
        said = Addressed("coder", AgentDoor.MATRIX, "!room:example.org", thread, True, self.mr.ref,
                         key or f"${time.monotonic_ns()}", ALICE_IN_ROOM, text)  # fmt: skip
        outcome = self.desk.accept(tx, said)
        assert outcome.accepted, outcome
        row = tx.one("SELECT MAX(id) AS id FROM agent_turns")
        assert row
        return TurnId(row["id"])

    async def turn(self, turn_id: TurnId) -> Turn:
        found = await self.database.read(lambda tx: conversations.turn(tx, turn_id))
        assert found
        return found

    async def until(self, condition: Callable[[Turn], object], turn_id: TurnId, seconds: float = 60) -> Turn:
        """Wait until it is so with a turn."""
        until = time.monotonic() + seconds
        while not condition(turn := await self.turn(turn_id)):
            assert time.monotonic() < until, turn
            await asyncio.sleep(0.01)
        return turn

    async def over(self, turn_id: TurnId, seconds: float = 60) -> Turn:
        return await self.until(lambda turn: turn.state.is_over, turn_id, seconds)

    async def question(self, turn_id: TurnId, seconds: float = 60) -> Approval:
        """The open question of a turn, once it is there."""
        until = time.monotonic() + seconds
        while True:
            for one in await self.database.read(lambda tx: approvals.of_turn(tx, turn_id)):
                if one.state is ApprovalState.OPEN:
                    return one
            assert time.monotonic() < until, await self.turn(turn_id)
            await asyncio.sleep(0.01)

    async def decide(self, approval: Approval, state: ApprovalState) -> None:
        def step(tx: Transaction) -> None:
            assert approvals.decide(tx, approval, state, ALICE_IN_ROOM)
            tx.wake("agents")

        await self.database.write(step)

    async def cancel(self, turn_id: TurnId) -> None:
        def step(tx: Transaction) -> None:
            turn = conversations.turn(tx, turn_id)
            assert turn
            conversations.save_turn(tx, replace(turn, cancelled_by="@alice:example.org"))

        await self.database.write(step)

    async def folders(self) -> list[str]:
        """The folders of all processes, the oldest first."""
        rows = await self.database.read(lambda tx: tx.all("SELECT folder FROM agent_processes ORDER BY id"))
        return [row["folder"] for row in rows]

    async def prompts(self) -> list[int]:
        """The turns whose prompts the agents were given, in that order."""
        given = [json.loads(line) for folder in await self.folders() for line in self.guest.lines(folder)]
        return [line["id"] - 1000 for line in given if line.get("method") == "session/prompt"]

    async def machine(self) -> Machine:
        sandbox = await self.database.read(lambda tx: sandboxes.latest(tx, self.mr.ref))
        assert sandbox
        found = await self.database.read(lambda tx: machines.get(tx, sandbox.machine_id))
        assert found
        return found

    async def change_machine(self, **facts: Any) -> None:
        machine = await self.machine()
        await self.database.write(lambda tx: machines.save(tx, replace(machine, **facts)))


def ready_sandbox(tx: Transaction, mr: MergeRequest, guest: SshGuest, number: int = 1, name: str = "") -> None:
    """A ready sandbox whose machine is the guest; `name`: of the machine."""
    merge_requests.observe(tx, mr)
    where = guest.destination
    machine = machines.insert(
        tx,
        a_machine(
            number, name=name or where.name, state=MachineState.LEASED, address=where.address, host_keys=where.host_keys
        ),
    )
    sandbox = sandboxes.insert(tx, mr.ref, mr.head_sha, ALICE_IN_ROOM)
    sandboxes.save(
        tx, replace(sandbox, state=SandboxState.READY, machine_id=machine.id, ready_at=tx.now, running_sha=mr.head_sha)
    )
    machines.save(tx, replace(machine, sandbox_id=sandbox.id))


async def _nobody(machine: Machine, mr: MergeRequest) -> None:
    del machine, mr


def make_driver(
    config: Config,
    database: Database,
    port: int,
    authorize: Authorize = _nobody,
    servers: Sequence[DoorServer] = (),
) -> AcpDriver:
    """`servers`: behind the agents' doors."""
    telling, connections = ConversationTelling(config), ControlConnections(config.state_dir)
    quick = Backoff.growing(0.05, 0.1)
    doors = SandboxDoors(database, connections, servers, tries_if_taken=quick, grace_seconds=0.5) if servers else None
    return AcpDriver(config, database, TurnProgress(telling), connections, authorize, ssh_port=port, doors=doors)


@asynccontextmanager
async def an_agent_world(
    guest: SshGuest,
    folder: Path,
    command: Sequence[str],
    *,
    runs: bool = True,
    authorize: Authorize = _nobody,
    idle_seconds: float = IDLE_SECONDS,
    servers: Sequence[DoorServer] = (),
    gateway: Callable[[Config, Database], DoorServer] | None = None,
    services: Sequence[ModelConfig] = (),
    **agent: Any,
) -> AsyncIterator[AgentWorld]:
    """A merge request with a ready sandbox in the guest, and an agent there; `folder` is for the state, `runs`: the
    runner runs here; `servers` and `gateway`: what is behind the agents' doors; `services`: of models."""
    folder.mkdir(exist_ok=True)
    if not (folder / CONTROL_KEY).exists():
        shutil.copy(guest.state_dir / CONTROL_KEY, folder / CONTROL_KEY)
    config = agents_config(folder, command, **agent).model_copy(update={"models": tuple(services)})
    mr = a_merge_request()
    async with Database(folder / "ravebot.db", SystemClock()) as database:
        if not await database.read(lambda tx: sandboxes.latest(tx, mr.ref)):
            await database.write(lambda tx: ready_sandbox(tx, mr, guest))
        if gateway is not None:
            servers = (*servers, gateway(config, database))
        driver = make_driver(config, database, guest.port, authorize, servers)
        driver = replace(driver, idle_seconds=idle_seconds)
        world = AgentWorld(config, database, Desk(config, ConversationTelling(config)), guest, driver, mr)
        loops = [AgentRunner(database, driver).run()] if runs else []
        if driver.doors is not None:
            loops.append(driver.doors.run())
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            yield world
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


class CrashingDatabase(Database):
    """Kills its process, as a power cut would, before or after the n-th of its transactions and of the lines that are
    written to agents."""

    steps: itertools.count[int]
    crash_at: int

    def step(self, what: str = "") -> None:
        """`what` is about to be done, or was just done."""
        del what
        if next(self.steps) == self.crash_at:
            self.die()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def write(self, function: Callable[[Transaction], T], *, urgent: bool = False, synced: bool = True) -> T:
        self.step()
        result = await super().write(function, urgent=urgent, synced=synced)
        self.step()
        return result


class CrashingWriter:
    """A client's standard input, whose writes are steps of the database's."""

    def __init__(self, writer: asyncio.StreamWriter, database: CrashingDatabase) -> None:
        self._writer, self._database, self._last = writer, database, ""

    def write(self, data: bytes) -> None:
        key = data.partition(b" ")[0].decode()
        self._last = key.partition("-")[0] if len(key) < 40 else "the script"
        self._database.step(f"before the write of {self._last}")
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()
        self._database.step(f"after the write of {self._last}")

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True)
class CrashingConnections(ControlConnections):
    """Connections whose clients' writes are steps of that database's."""

    database: CrashingDatabase

    async def start(self, destination: Destination, command: str, forwards: Sequence[RemoteForward] = ()) -> SshClient:
        client = await super().start(destination, command, forwards)
        client.process.stdin = CrashingWriter(client.process.stdin, self.database)  # type: ignore[arg-type,assignment]
        return client


def run_until_killed(
    state_dir: Path, port: int, command: Sequence[str], crash_at: int, servers: Sequence[DoorServer] = ()
) -> None:
    """What a process of its own runs: the runner, which is killed at a step; 0: by whoever started it. `servers`: of
    the agents' doors."""
    asyncio.run(_run(state_dir, port, command, crash_at, servers))


async def _run(
    state_dir: Path, port: int, command: Sequence[str], crash_at: int, servers: Sequence[DoorServer]
) -> None:
    config = agents_config(state_dir, command)
    database = CrashingDatabase(state_dir / "ravebot.db", SystemClock())
    database.steps, database.crash_at = itertools.count(1), crash_at
    async with database:
        driver = make_driver(config, database, port, servers=servers)
        driver = replace(driver, connections=CrashingConnections(state_dir, database))
        async with asyncio.TaskGroup() as group:
            if driver.doors is not None:
                driver.doors.clear()
                group.create_task(driver.doors.run())
            group.create_task(AgentRunner(database, driver).run())
