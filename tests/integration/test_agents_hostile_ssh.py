"""A guest's SSH server that hangs at each step, floods, or opens channels without end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncssh
import pytest

from ravebot.agents.transports.acp.control import ControlConnections, Destination, public_key
from ravebot.agents.transports.acp.stdio import InGuest, Program, attach
from ravebot.errors import Unavailable

pytestmark = pytest.mark.integration
PROGRAM = Program("folder", ("agent",), {})
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Session = Callable[["asyncssh.SSHServerProcess[bytes]"], Awaitable[None]]
KEY = asyncssh.generate_private_key("ssh-ed25519")
HOST_KEY = KEY.export_public_key("openssh").decode().strip()


@pytest.fixture
def connections(tmp_path: Path) -> ControlConnections:
    assert public_key(tmp_path)
    return ControlConnections(tmp_path)


def at(port: int) -> Destination:
    return Destination("rave-guest", "127.0.0.1", "agent", (HOST_KEY,), port)


@asynccontextmanager
async def a_server(talk: Talk) -> AsyncIterator[Destination]:
    """Any server at all."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield at(server.sockets[0].getsockname()[1])
    finally:
        server.close()


class LetsAnybodyIn(asyncssh.SSHServer):
    def __init__(self, hangs: bool) -> None:
        self._hangs = hangs

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        if self._hangs:
            await asyncio.sleep(1000)
        return True


@asynccontextmanager
async def an_ssh_server(session: Session, *, hangs: bool = False) -> AsyncIterator[Destination]:
    server = await asyncssh.create_server(
        lambda: LetsAnybodyIn(hangs), "127.0.0.1", 0, server_host_keys=[KEY], process_factory=session, encoding=None
    )
    try:
        yield at(server.get_port())
    finally:
        server.close()


async def attempt(connections: ControlConnections, where: Destination) -> str:
    """Why a connection that is given two seconds fails; the servers wait for as long as they are connected."""
    with pytest.raises(Unavailable) as caught:
        await attach(connections, where, PROGRAM, 0, may_start=True, patience_seconds=2)
    return str(caught.value)


async def until_left(process: asyncssh.SSHServerProcess[bytes]) -> None:
    with suppress(OSError, asyncssh.Error):
        await process.stdin.read()


async def test_a_server_that_says_nothing_or_only_its_name_is_given_up(connections: ControlConnections) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read()
        writer.close()

    async def named(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await silent(reader, writer)

    for talk in (silent, named):
        async with a_server(talk) as where:
            assert "rave-guest did not answer by SSH within 2 s" in await attempt(connections, where)


async def test_a_server_that_speaks_something_else_is_told(connections: ControlConnections) -> None:
    async def web(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            for _number in range(2000):
                writer.write(b"HTTP/1.1 400 Bad Request\r\n" * 40)
                await writer.drain()
        writer.close()

    async with a_server(web) as where:
        assert "rave-guest can't be reached by SSH" in await attempt(connections, where)


async def test_a_server_that_hangs_at_the_login_or_after_it_is_given_up(connections: ControlConnections) -> None:
    async def hang(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await until_left(process)

    for hangs in (True, False):
        async with an_ssh_server(hang, hangs=hangs) as where:
            assert "did not answer by SSH within 2 s" in await attempt(connections, where)


async def test_a_server_that_ends_the_connection_is_told(connections: ControlConnections) -> None:
    async def leave(process: asyncssh.SSHServerProcess[bytes]) -> None:
        process.stderr.write(b"Host key verification failed.\nagent@127.0.0.1: Permission denied (publickey).\n")
        process.exit(255)

    async with an_ssh_server(leave) as where:  # what the guest prints is not taken for what the client says
        assert "can't be reached by SSH: the connection ended" in await attempt(connections, where)


async def test_a_server_that_floods_before_the_script_runs_is_given_up(connections: ControlConnections) -> None:
    async def flood(process: asyncssh.SSHServerProcess[bytes]) -> None:
        with suppress(OSError, asyncssh.Error):
            for _ in range(200):
                process.stdout.write(b"z" * 32768)
                process.stderr.write(b"rave: nothing\n" * 2000)
                await process.stdout.drain()
                await process.stderr.drain()
        await until_left(process)

    async with an_ssh_server(flood) as where:
        assert "rave-guest" in await attempt(connections, where)


async def test_a_server_that_opens_channels_without_end_gets_none(connections: ControlConnections) -> None:
    refused = 0

    async def open_channels(process: asyncssh.SSHServerProcess[bytes]) -> None:
        nonlocal refused
        process.stderr.write(b"rave: new\n")
        connection = process.get_extra_info("connection")
        for number in range(300):
            try:
                await connection.create_connection(asyncssh.SSHTCPSession, "127.0.0.1", number + 1)
            except (asyncssh.Error, OSError):
                refused += 1
        process.stderr.write(b"rave: ended 0 0\n")
        await until_left(process)

    async with an_ssh_server(open_channels) as where:
        attached, found = await attach(connections, where, PROGRAM, 0, may_start=True)
        assert found is InGuest.NEW
        async with asyncio.timeout(60):
            while attached.end is None:
                await asyncio.sleep(0.01)
        await attached.close()
    assert refused == 300


async def test_what_the_guest_claims_is_bounded_and_never_an_error(connections: ControlConnections) -> None:
    async def lie(process: asyncssh.SSHServerProcess[bytes]) -> None:
        words = [b"ok", b"ok k-1", b"ended", b"ended x y", b"\xff\xfe", b"new new", b"again " + b"x" * 100_000, b""]
        for word in words:
            process.stderr.write(b"rave: " + word + b"\n")
        for _ in range(20):
            process.stderr.write(b"rave: err \x1b[31m" + b"e" * 100_000 + b"\n")
        process.stderr.write(b"rave: ended 7 999999999999999\n")
        await until_left(process)

    async with an_ssh_server(lie) as where:
        attached, found = await attach(connections, where, PROGRAM, 0, may_start=True)
        assert found is InGuest.NEW
        task = asyncio.create_task(attached.give("k-2", b"{}"))
        async with asyncio.timeout(30):
            while attached.end is None:
                await asyncio.sleep(0.01)
        assert not task.done()
        assert sum(map(len, attached.end.errors)) < 25_000
        task.cancel()
        await attached.close()
