"""A program in a guest whose input and output survive everything but the guest, over real SSH."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ravebot.agents.transports.acp.control import ControlConnections, KeyRefused, OtherHostKey
from ravebot.agents.transports.acp.stdio import Attached, Given, InGuest, Program, attach
from ravebot.errors import Unavailable
from tests.support.sshd import SshGuest

pytestmark = pytest.mark.integration

ECHO = """#!/usr/bin/python3
import os, sys
print(os.getcwd(), os.environ.get("GREETING", ""), flush=True)
for line in sys.stdin:
    if line.strip() == "die":
        print("this went wrong", file=sys.stderr)
        sys.exit(3)
    print("got", line.strip(), flush=True)
"""
FLOOD = """#!/usr/bin/python3
import os
while True:
    os.write(1, b"x" * 65536)
    os.write(2, b"y" * 65536)
"""


@pytest.fixture(scope="module", params=["dash with dropbear", "busybox with dropbear", "dash with openssh"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshGuest]:
    shell, _, server = request.param.partition(" with ")
    folder = tmp_path_factory.mktemp("guest")
    (folder / "state").mkdir()
    with SshGuest(folder, folder / "state", shell, server) as running:
        running.program("echo", ECHO)
        running.program("flood", FLOOD)
        yield running


@asynccontextmanager
async def attached(
    guest: SshGuest, folder: str, offset: int = 0, *, command: str = "/home/agent/echo", may_start: bool = True
) -> AsyncIterator[tuple[Attached, InGuest]]:
    program = Program(folder, (command,), {"GREETING": 'it\'s a "b"\n$HOME `id`'})
    connections = ControlConnections(guest.state_dir)
    one, found = await attach(connections, guest.destination, program, offset, may_start=may_start)
    try:
        yield one, found
    finally:
        await one.close()


async def read(one: Attached, size: int, seconds: float = 30) -> bytes:
    """That many bytes of output."""
    found = b""
    async with asyncio.timeout(seconds):
        while len(found) < size:
            one.changed.clear()
            if not (piece := one.take()):
                await one.wait(1)
            found += piece
    return found


async def ended(one: Attached, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while one.end is None:
            await asyncio.sleep(0.01)


GREETED = b'/srv/merge-request it\'s a "b"\n$HOME `id`\n'


async def test_a_line_is_given_once_and_output_is_read_on_from_an_offset(guest: SshGuest) -> None:
    async with attached(guest, "once") as (one, found):
        assert found is InGuest.NEW
        assert await read(one, len(GREETED)) == GREETED
        assert await one.give("turn-1", b'{"a": "1  2"}') is Given.OK
        assert await one.give("turn-1", b'{"a": "1  2"}') is Given.OK
        assert await read(one, 18) == b'got {"a": "1  2"}\n'
    async with attached(guest, "once", len(GREETED) + 4, may_start=False) as (one, found):
        assert found is InGuest.AGAIN
        assert await one.give("turn-1", b'{"a": "1  2"}') is Given.OK
        assert await one.give("turn-2", rb'{"b": "\u00e4\\n"}') is Given.OK
        assert await read(one, 14 + 23) == b'{"a": "1  2"}\n' + rb'got {"b": "\u00e4\\n"}' + b"\n"
    assert guest.lines("once") == ['{"a": "1  2"}', r'{"b": "\u00e4\\n"}']


async def test_lines_keep_their_order_and_a_long_one_its_length(guest: SshGuest) -> None:
    lines = [f"{number}".encode() for number in range(20)] + [b"z" * 100_000]
    async with attached(guest, "order") as (one, _):
        given = await asyncio.gather(*(one.give(f"k-{number}", line) for number, line in enumerate(lines)))
        assert set(given) == {Given.OK}
        expected = GREETED + b"".join(b"got " + line + b"\n" for line in lines)
        assert await read(one, len(expected)) == expected
    assert [line.encode() for line in guest.lines("order")] == lines


async def test_a_client_that_is_killed_at_any_moment_loses_and_repeats_no_line(guest: SshGuest) -> None:
    for number in range(12):
        async with attached(guest, "killed") as (one, _):
            task = asyncio.create_task(one.give(f"k-{number}", b"%d" % number))
            await asyncio.sleep(0.001 * number)
            one.client.process.send_signal(signal.SIGKILL)
            await asyncio.gather(task, return_exceptions=True)
    async with attached(guest, "killed") as (one, _):
        for number in range(12):
            assert await one.give(f"k-{number}", b"%d" % number) is Given.OK
        expected = GREETED + b"".join(b"got %d\n" % number for number in range(12))
        said = await read(one, len(expected))
    assert sorted(said.splitlines()) == sorted(expected.splitlines())
    assert sorted(map(int, guest.lines("killed"))) == list(range(12))


async def test_the_end_of_a_program_is_told_with_its_code_and_its_last_errors(guest: SshGuest) -> None:
    async with attached(guest, "ends") as (one, _):
        await one.give("k-1", b"die")
        await ended(one)
        assert one.end
        assert (one.end.code, one.end.size, one.end.errors) == (3, len(GREETED), ("this went wrong",))
        assert await one.give("k-2", b"late") is Given.NO
    async with attached(guest, "ends", 5, may_start=False) as (one, found):
        assert found is InGuest.AGAIN
        await ended(one)
        assert one.end
        assert (one.end.code, one.end.size) == (3, len(GREETED) - 5)
        assert await one.give("k-2", b"late") is Given.NO
    assert guest.lines("ends") == ["die"]


async def test_a_program_is_killed_with_what_it_started_and_so_is_one_whose_keeper_was_killed(guest: SshGuest) -> None:
    for number in range(5):  # at once, when it may not quite have begun
        async with attached(guest, f"kill-{number}") as (one, _):
            await one.kill()
            await ended(one)
            assert one.end
            assert one.end.code == 137
    async with attached(guest, "keeper") as (one, _):
        killer = guest.program(
            "kill-keeper", "#!/bin/sh\nread -r pid _ </home/agent/.ravebot/agents/keeper/keeper\nkill -9 $pid\n"
        )
        async with attached(guest, "killer", command=killer):
            async with asyncio.timeout(30):
                while await one.give(f"k-{time.monotonic_ns()}", b"x") is Given.OK:
                    await asyncio.sleep(0.05)
        await ended(one)


async def test_what_is_missing_or_gone_is_told_and_nothing_is_started(guest: SshGuest) -> None:
    async with attached(guest, "missing", command="opencode") as (_, found):
        assert found is InGuest.MISSING
    async with attached(guest, "never", may_start=False) as (_, found):
        assert found is InGuest.GONE
    assert not guest.file("missing").exists()
    assert not guest.file("never").exists()


async def test_two_connections_at_once_start_one_program(guest: SshGuest) -> None:
    async with attached(guest, "both") as (one, _), attached(guest, "both") as (other, _):
        await asyncio.gather(one.give("k-1", b"1"), other.give("k-1", b"1"), one.give("k-2", b"2"))
        expected = GREETED + b"got 1\ngot 2\n"
        assert sorted(await read(one, len(expected))) == sorted(await read(other, len(expected))) == sorted(expected)
    assert sorted(guest.lines("both")) == ["1", "2"]


async def test_a_flood_takes_little_of_the_host_and_its_errors_little_of_the_guest(guest: SshGuest) -> None:
    async with attached(guest, "flood", command="/home/agent/flood") as (one, _):
        delays = []
        taken = 0
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            before = time.monotonic()
            await asyncio.sleep(0.002)
            delays.append(time.monotonic() - before)
            taken += len(one.take())
        await one.kill()
        async with asyncio.timeout(30):
            while one.end is None:
                one.take()
                await asyncio.sleep(0.001)
    assert taken < 10 * 1024 * 1024
    assert sorted(delays)[int(0.9 * len(delays))] < 0.1
    assert guest.file("flood/err").stat().st_size <= 262144


async def test_another_host_key_and_a_refused_key_are_told_apart(guest: SshGuest, tmp_path: Path) -> None:
    connections, program = ControlConnections(guest.state_dir), Program("x", ("/home/agent/echo",), {})
    where = guest.destination
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    with pytest.raises(OtherHostKey, match="rave-guest shows another SSH host key"):
        await attach(connections, type(where)(where.name, where.address, where.user, (other,), where.port), program, 0,
                     may_start=True)  # fmt: skip
    keys = guest.home / ".ssh/authorized_keys"
    before = keys.read_text()
    keys.write_text(f"{other}\n")
    try:
        with pytest.raises(KeyRefused, match="does not let ravebot's control key in"):
            await attach(connections, where, program, 0, may_start=True)
    finally:
        keys.write_text(before)
    nowhere = type(where)(where.name, where.address, where.user, where.host_keys, 1)
    with pytest.raises(Unavailable, match=r"be reached by SSH: .*refused"):
        await attach(connections, nowhere, program, 0, may_start=True)
