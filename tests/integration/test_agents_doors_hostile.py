"""A guest whose SSH server hangs when it is asked for a door, floods, lies, or opens channels without end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import asyncssh
import pytest

from ravebot.agents.model import ConversationId
from ravebot.agents.transports.acp.control import ControlConnections, Destination, public_key
from ravebot.agents.transports.acp.doors.sandbox_doors import DoorRefused, DoorsNeeded, SandboxDoors
from ravebot.backoff import Backoff
from ravebot.clock import SystemClock
from ravebot.errors import Unavailable
from ravebot.sandboxes.model import Machine, MachineState, SandboxId, SandboxState
from ravebot.store import machines, merge_requests, sandboxes
from ravebot.store.database import Database, Transaction
from tests.support.agent_yard import an_agent
from tests.support.little_doors import LittleDoor
from tests.support.records import BY_ALICE, a_machine, a_merge_request

pytestmark = pytest.mark.integration
KEY = asyncssh.generate_private_key("ssh-ed25519")
HOST_KEY = KEY.export_public_key("openssh").decode().strip()
TALK = ConversationId(1)
Session = Callable[["asyncssh.SSHServerProcess[bytes]"], Awaitable[None]]
Asked = Callable[[str, int], Awaitable[bool]]


async def answers(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """What an honest guest does: it says the nonce, that nothing listens, and stays."""
    with suppress(OSError, asyncssh.Error):
        nonce = (await process.stdin.readline()).split()[0]
        process.stdout.write(nonce + b"\nend\n")
        await process.stdin.read()


async def gives(host: str, port: int) -> bool:
    del host, port
    return True


class Server(asyncssh.SSHServer):
    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def begin_auth(self, username: str) -> bool:
        return False

    async def server_requested(self, listen_host: str, listen_port: int) -> bool | asyncssh.SSHListener:
        return Listener() if await self._asked(listen_host, listen_port) else False


class Listener(asyncssh.SSHListener):
    """A forward that the server says it has, and of which it knows nothing more."""

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...


@dataclass
class Place:
    """Doors, and a sandbox whose machine is that server."""

    doors: SandboxDoors
    door: LittleDoor
    machine: Machine
    where: Destination
    folder: Path

    async def ensure(self) -> None:
        await self.doors.ensure(DoorsNeeded(TALK, an_agent(), SandboxId(1), self.machine, self.where))


@asynccontextmanager
async def a_place(folder: Path, session: Session, asked: Asked = gives) -> AsyncIterator[Place]:
    assert public_key(folder)
    server = await asyncssh.create_server(
        lambda: Server(asked), "127.0.0.1", 0, server_host_keys=[KEY], process_factory=session, encoding=None
    )
    mr, known = a_merge_request(), a_machine(1, state=MachineState.LEASED)

    def ready(tx: Transaction) -> Machine:
        merge_requests.observe(tx, mr)
        machine = machines.insert(tx, known)
        sandbox = sandboxes.insert(tx, mr.ref, mr.head_sha, BY_ALICE)
        sandboxes.save(tx, replace(sandbox, state=SandboxState.READY, machine_id=machine.id))
        return machine

    async with Database(folder / "ravebot.db", SystemClock()) as database:
        machine = await database.write(ready)
        door = LittleDoor("mcp")
        quick = Backoff.growing(0.01, 0.02)
        doors = SandboxDoors(database, ControlConnections(folder), (door,), patience_seconds=2, tries_if_taken=quick)
        task = asyncio.create_task(doors.run())
        try:
            where = Destination(machine.name, "127.0.0.1", "agent", (HOST_KEY,), server.get_port())
            yield Place(doors, door, machine, where, folder)
        finally:
            task.cancel()
            await asyncio.wait({task})
            server.close()


def clients() -> list[Path]:
    """The SSH clients of this process, in /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and (folder / "cmdline").read_bytes().startswith(b"ssh\0"):
                found.append(folder)
    return found


async def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    async def hangs(process: asyncssh.SSHServerProcess[bytes]) -> None:
        with suppress(OSError, asyncssh.Error):
            await process.stdin.read()

    async with a_place(tmp_path, hangs) as place:
        with pytest.raises(Unavailable, match="did not answer by SSH within 2 s"):
            await place.ensure()
        assert clients() == []


async def test_a_server_that_refuses_a_door_is_told_with_its_mend(tmp_path: Path) -> None:
    async def refuses(host: str, port: int) -> bool:
        return False

    async with a_place(tmp_path, answers, refuses) as place:
        with pytest.raises(DoorRefused, match=r"its SSH server refuses to forward .* AllowTcpForwarding yes"):
            await place.ensure()
        assert clients() == []


async def test_a_server_that_floods_before_or_after_its_answer_costs_nothing(tmp_path: Path) -> None:
    async def floods_first(process: asyncssh.SSHServerProcess[bytes]) -> None:
        with suppress(OSError, asyncssh.Error):
            for _ in range(200):
                process.stdout.write(b"z" * 32768)
                await process.stdout.drain()
            await process.stdin.read()

    async with a_place(tmp_path, floods_first) as place:
        with pytest.raises(Unavailable, match="prints without end"):
            await place.ensure()

    sent = 0

    async def floods_later(process: asyncssh.SSHServerProcess[bytes]) -> None:
        nonlocal sent
        with suppress(OSError, asyncssh.Error):
            nonce = (await process.stdin.readline()).split()[0]
            process.stdout.write(nonce + b"\nend\n")
            while True:
                process.stdout.write(b"z" * 32768)
                process.stderr.write(b"z" * 32768)
                await process.stdout.drain()
                await process.stderr.drain()
                sent += 65536

    (tmp_path / "later").mkdir()
    async with a_place(tmp_path / "later", floods_later) as place:
        await place.ensure()
        await asyncio.sleep(1)
        assert sent < 32 * 1024**2, "what is not read holds the server up"
        assert len(clients()) == 1


async def test_a_server_that_opens_a_thousand_channels_at_once_gets_as_many_as_the_client_may_have_files(
    tmp_path: Path,
) -> None:
    opened, finished, slowest, most_files = 0, asyncio.Event(), 0.0, 0
    place: Place

    async def opens(process: asyncssh.SSHServerProcess[bytes]) -> None:
        connection, tries = process.get_extra_info("connection"), []

        async def one() -> None:
            nonlocal opened
            with suppress(asyncssh.Error, OSError):
                await connection.create_connection(asyncssh.SSHTCPSession, "127.0.0.1", place.door.port)
                opened += 1

        nonce, *ports = (await process.stdin.readline()).split()
        process.stdout.write(nonce + b"\nend\n")
        if not ports:
            tries = [one() for _ in range(1000)]
            await asyncio.wait_for(asyncio.gather(*tries), 60)
            finished.set()
        with suppress(OSError, asyncssh.Error):
            await process.stdin.read()

    async def beats() -> None:
        nonlocal slowest, most_files
        while not finished.is_set():
            began = time.monotonic()
            await asyncio.sleep(0.01)
            slowest = max(slowest, time.monotonic() - began)
            for client in clients():
                with suppress(OSError):
                    most_files = max(most_files, len(list((client / "fd").iterdir())))

    async with a_place(tmp_path, opens) as place:
        await place.ensure()
        await asyncio.wait_for(beats(), 60)
        assert most_files <= 128
        assert 0 < opened <= 128
        assert 0 < place.door.most_held <= 128
        assert slowest < 5.0, "the loop, which plays the server, too, is never held up"


async def test_a_server_that_opens_other_ports_gets_nothing_and_is_ended_before_its_attempts_fill_the_disk(
    tmp_path: Path,
) -> None:
    place: Place
    ended = asyncio.Event()

    async def opens(process: asyncssh.SSHServerProcess[bytes]) -> None:
        nonce, *ports = (await process.stdin.readline()).split()
        process.stdout.write(nonce + b"\nend\n")
        connection = process.get_extra_info("connection")
        try:
            for number in range(0 if ports else 20_000):
                with pytest.raises(asyncssh.ChannelOpenError):  # until the connection is gone
                    await connection.create_connection(asyncssh.SSHTCPSession, "127.0.0.1", number % 60_000 + 1)
        finally:
            if not ports:
                ended.set()

    async with a_place(tmp_path, opens) as place:
        await place.ensure()
        (client,) = clients()
        await asyncio.wait_for(ended.wait(), 60)
        logs = [path.stat().st_size for path in (tmp_path / "control").glob("*.log")]
        assert 0 < sum(logs) <= 256 * 1024
        assert place.door.held == 0
        async with asyncio.timeout(20):
            while client in clients():
                await asyncio.sleep(0.01)
