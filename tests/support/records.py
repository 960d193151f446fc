"""Test data: a configuration, merge requests, sandboxes and machines, with the values that a test sets."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from ravebot.clock import to_us
from ravebot.config.model import AcpConfig, AgentConfig, Config
from ravebot.operations.backup.make import Maker
from ravebot.operations.backup.restore import Restorer
from ravebot.operations.backup.stopping import Stop
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.decide import Happened, Then
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.intents import Intents
from ravebot.sandboxes.journal import Journal
from ravebot.sandboxes.lifecycle import Allocation, Lifecycle
from ravebot.sandboxes.model import (
    Actor,
    Event,
    Machine,
    MachineId,
    MachineState,
    MergeRequest,
    MergeRequestRef,
    Person,
    Sandbox,
    SandboxId,
    SandboxState,
    Stage,
)
from ravebot.store import events, machines, merge_requests, sandboxes
from ravebot.store.database import Database, Transaction, dump_json, migrate, migrations
from ravebot.web.metrics import Metrics
from tests.support.clock import ManualClock

T = TypeVar("T")
NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
ALICE = Person(101, "alice")
BY_ALICE = Actor("gitlab", "alice")
A, B, C = "a" * 40, "b" * 40, "c" * 40
ROOM = "#dev:example.org"


def make_config(folder: Path, **changes: Any) -> Config:
    """A valid configuration; `changes` are merged in, section by section, or replace what is no section."""
    sections: dict[str, Any] = {
        "matrix": {
            "homeserver": "http://127.0.0.1:1",
            "user_id": "@ravebot:example.org",
            "password_file": str(folder / "password"),
            "admins": ["@ops:example.org"],
            "users": {"@alice:example.org": "alice", "@gina:example.org": "gina"},
            "rooms": [{"room": ROOM, "projects": ["group/*"]}],
        },
        "gitlab": {
            "url": "http://127.0.0.1:1",
            "token_file": str(folder / "token"),
            "projects": ["group/*"],
            "webhook": {"secret_token_file": str(folder / "secret")},
        },
        "pool": {},
        "limits": {},
        "sandbox": {
            "host": "sandboxes.example.org", "memory": "64MiB", "disk": "64MiB",
            "ssh_ports": "42200-42209", "web_ports": "43000-43009",
        },
        "provider": {
            "uri": "test:///default",
            "network": "none",
            "image": str(folder / "image.qcow2"),
            "storage_pool": str(folder / "disks"),
        },
    }  # fmt: skip
    for section, values in changes.items():
        sections[section] = {**sections[section], **values} if isinstance(values, dict) else values
    return Config.model_validate({"instance": "test", "state_dir": str(folder), **sections})


def with_agents(config: Config) -> Config:
    """With an agent of a Developer's, and one of a Guest's."""
    acp = AcpConfig(command=("coder",))
    agents = {"coder": "alice", "hers": "gina"}
    made = tuple(AgentConfig(name=name, owner=owner, projects=("group/*",), acp=acp) for name, owner in agents.items())
    return config.model_copy(update={"agents": made})


def a_merge_request(iid: int = 1, **facts: Any) -> MergeRequest:
    """An open one of alice's in `group/app`."""
    known = MergeRequest(
        ref=MergeRequestRef(7, iid),
        project_path="group/app",
        title="Add a feature",
        web_url=f"http://gitlab.example.org/group/app/-/merge_requests/{iid}",
        source_branch="feature",
        source_project_id=7,
        head_sha=A,
        author=ALICE,
        updated_at=NOON,
    )
    return replace(known, **facts)


def a_sandbox(number: int = 1, state: SandboxState = SandboxState.QUEUED, **facts: Any) -> Sandbox:
    known = Sandbox(SandboxId(number), MergeRequestRef(7, number), state, BY_ALICE, NOON, NOON, A)
    return replace(known, **facts)


def a_machine(number: int = 1, **facts: Any) -> Machine:
    """A machine that is being built, with unique names; the store ignores `id` and sets its own."""
    known = Machine(
        id=MachineId(number),
        name=f"rave-test-{number:010x}",
        uuid=f"00000000-0000-4000-8000-{number:012x}",
        state=MachineState.BUILDING,
        image="/images/base.qcow2",
        address=f"10.80.0.{number + 1}",
        mac=f"52:54:00:00:00:{number:02x}",
        tap=f"rv{number:010x}",
        created_at=NOON,
        state_since=NOON,
        memory_bytes=64 * 1024**2,
        disk_bytes=64 * 1024**2,
    )
    return replace(known, **facts)


def pending(tx: Transaction) -> int:
    """How many requests wait in the inbox."""
    row = tx.one("SELECT COUNT(*) AS n FROM inbox WHERE handled_at IS NULL")
    assert row
    return int(row["n"])


@dataclass
class World:
    """The store and the domain over a real database, with a clock that stands still."""

    config: Config
    clock: ManualClock
    database: Database
    lifecycle: Lifecycle
    intents: Intents
    views: Views
    metrics: Metrics

    async def write(self, step: Callable[[Transaction], T]) -> T:
        return await self.database.write(step)

    async def read(self, step: Callable[[Transaction], T]) -> T:
        return await self.database.read(step)

    async def told(self, mr: MergeRequest, **how: bool) -> str:
        return await self.write(lambda tx: self.intents.merge_request_reported(tx, mr, BY_ALICE, **how))

    async def latest(self, mr: MergeRequest) -> Sandbox:
        """The newest sandbox of a merge request."""
        found = await self.read(lambda tx: sandboxes.latest(tx, mr.ref))
        assert found
        return found

    async def machine(self, mr: MergeRequest) -> Machine:
        """The machine that it has now."""
        sandbox = await self.latest(mr)
        found = await self.read(lambda tx: machines.get(tx, sandbox.machine_id))
        assert found
        return found

    async def queued(self, mr: MergeRequest) -> Sandbox:
        """Report an open merge request, which gets a queued sandbox."""
        assert await self.told(mr) == "queued"
        return await self.latest(mr)

    async def started(self, mr: MergeRequest) -> Sandbox:
        """Go on to a sandbox whose machine is being built."""
        sandbox = await self.queued(mr)
        await self.begin(sandbox)
        return await self.latest(mr)

    async def begin(self, sandbox: Sandbox) -> None:
        number = 1 + len(await self.read(lambda tx: tx.all("SELECT id FROM machines")))
        machine = a_machine(number, image=str(self.config.provider.image), created_at=self.clock.now(),
                            state_since=self.clock.now())  # fmt: skip
        ssh, web = self.config.sandbox.ssh_ports.first, self.config.sandbox.web_ports.first
        place = Allocation(machine, ssh + number - 1, web + number - 1)
        await self.write(lambda tx: self.lifecycle.happened(tx, sandbox, Happened.MACHINE_READY, allocation=place))

    async def claimed(self, mr: MergeRequest) -> Sandbox:
        """Go on to a leased machine with its chain under way."""
        await self.started(mr)
        machine = await self.machine(mr)
        await self.write(lambda tx: machine_life.claim(tx, self.lifecycle, machine))
        return await self.latest(mr)

    async def ready(self, mr: MergeRequest) -> Sandbox:
        """Go on to the announced sandbox, its ports open."""
        return await self.announced(replace(await self.claimed(mr), ports_open=True, web_scheme="http"))

    async def announced(self, sandbox: Sandbox) -> Sandbox:
        """Complete its chain."""
        done = replace(sandbox, stage=Stage.ANNOUNCE)
        await self.write(lambda tx: self.lifecycle.happened(tx, done, Happened.MACHINE_READY))
        found = await self.read(lambda tx: sandboxes.get(tx, sandbox.id))
        assert found
        return found

    async def happens(self, sandbox: Sandbox, what: Happened, **how: Any) -> Then:
        return await self.write(lambda tx: self.lifecycle.happened(tx, sandbox, what, **how))

    async def mr(self, mr: MergeRequest) -> MergeRequest:
        found = await self.read(lambda tx: merge_requests.get(tx, mr.ref))
        assert found
        return found

    async def events(self) -> tuple[Event, ...]:
        return await self.read(lambda tx: events.newest(tx, 1000))

    async def kinds(self) -> list[str]:
        """The kinds of all events, oldest first."""
        return [event.kind for event in await self.events()]

    async def outbox(self) -> list[tuple[str, str, str, str]]:
        """Target, lane, kind and body of all that was not delivered yet, in order."""
        rows = await self.read(lambda tx: tx.all("SELECT * FROM outbox WHERE delivered_at IS NULL ORDER BY id"))
        return [(row["target"], row["lane"], row["kind"], row["body"]) for row in rows]

    async def visits(self) -> list[dict[str, Any]]:
        """What is kept of who connected."""
        return [dict(row) for row in await self.read(lambda tx: tx.all("SELECT * FROM connections"))]

    async def told_kinds(self) -> list[str]:
        return [f"{target} {kind}" for target, _, kind, _ in await self.outbox()]

    async def empty_outbox(self) -> None:
        """Empty the outbox, as if everything had been delivered."""
        await self.write(lambda tx: tx.execute("UPDATE outbox SET delivered_at = 1"))

    def pass_by(self, **span: float) -> None:
        """Move the clock; a negative step sets it back."""
        self.clock.advance(timedelta(**span))

    def back_up(self, folder: Path) -> Path:
        """Make a backup, and restore it to that folder; returns where its database is."""
        backup = folder.with_suffix(".tar")
        Maker(self.config.instance, self.database.path.parent, self.clock).to_file(backup, Stop())
        with Restorer(self.config.instance, folder, self.clock) as restorer:
            restorer.prepare(backup, Stop()).commit()
        return folder / self.database.path.name


@asynccontextmanager
async def a_world(folder: Path, **changes: Any) -> AsyncIterator[World]:
    """A fresh database in that folder."""
    config, clock, metrics = make_config(folder, **changes), ManualClock(), Metrics()
    lifecycle = Lifecycle(config, Journal(config, metrics))
    async with Database(folder / "ravebot.db", clock) as database:
        intents = Intents(config, lifecycle)
        yield World(config, clock, database, lifecycle, intents, Views(config), metrics)


def a_database_of_version_1(folder: Path, *outbox: dict[str, Any], inbox: tuple[dict[str, Any], ...] = ()) -> Path:
    """As the first version wrote it, with these rows in outbox and inbox (a `body` that is no text is made JSON)."""
    folder.mkdir()
    path = folder / "ravebot.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, migrations()[:1])
        told = [("outbox", {"body": {}, "created_at": to_us(NOON), **row}) for row in outbox]
        heard = [("inbox", {"body": {}, "received_at": to_us(NOON), **row}) for row in inbox]
        for table, row in told + heard:
            values = [value if isinstance(value, str | int) else dump_json(value) for value in row.values()]
            marks = ", ".join("?" for _ in values)
            connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", values)
    return path
