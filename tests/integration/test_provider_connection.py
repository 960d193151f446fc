"""A libvirt that hangs, and guests whose agents do: what they hold up is bounded, and never others."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.errors import GuestError, GuestTimeout, Unavailable
from ravebot.providers.libvirt.connection import Connection, Handle
from ravebot.providers.libvirt.domains import Domains
from ravebot.providers.libvirt.guest import GuestAgents

pytestmark = pytest.mark.integration

HANG_AND_END = """
import asyncio, sys
from ravebot.errors import Unavailable
from ravebot.providers.libvirt.connection import Connection

async def main():
    connection = Connection(sys.argv[1], name="hung", threads=2, limit_seconds=0.3)
    try:
        await connection.call(lambda handle: handle.getLibVersion())
    except Unavailable as error:
        print(error)
    await connection.close()

asyncio.run(main())
"""


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[str]:
    """The URI of a libvirtd that takes every connection and never says a word."""
    path = tmp_path / "hung"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(50)
        yield f"qemu+unix:///system?socket={path}"


async def test_a_libvirt_that_hangs_is_unavailable_and_costs_a_bounded_number_of_threads(hung: str) -> None:
    connection = Connection(hung, name="bounded", threads=2, limit_seconds=0.2)
    started = time.monotonic()
    for _ in range(5):
        with pytest.raises(Unavailable, match="hang"):
            await connection.call(lambda handle: handle.getLibVersion())
    assert time.monotonic() - started < 3
    assert sum(thread.name.startswith("bounded") for thread in threading.enumerate()) <= 2
    asking = asyncio.create_task(connection.call(lambda handle: handle.getLibVersion()))
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await connection.close()


def test_a_process_ends_though_libvirt_hangs(hung: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANG_AND_END, hung], capture_output=True, text=True, timeout=15, check=True
    )
    assert "does libvirtd hang" in done.stdout


async def test_it_answers_again_once_it_goes_on(tmp_path: Path) -> None:
    connection = Connection("test:///default", name="slow", threads=1, limit_seconds=5)
    stuck = threading.Event()
    with pytest.raises(Unavailable):
        await connection.call(lambda _: stuck.wait(5), limit_seconds=0.1)
    stuck.set()
    assert await connection.call(lambda handle: handle.getType()) == "TEST"
    await connection.close()


async def test_a_cancelled_call_goes_on_in_its_thread() -> None:
    connection = Connection("test:///default", name="cancelled", threads=1)
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work(_: Handle) -> None:
        begun.set()
        may_end.wait(5)
        ended.set()

    asking = asyncio.create_task(connection.call(work))
    await asyncio.to_thread(begun.wait, 5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    may_end.set()
    assert await asyncio.to_thread(ended.wait, 5)
    await connection.close()


class SlowToBeFound(Domains):
    """Takes its time over machines of a bad name, as a silent agent takes a thread's."""

    def get(self, handle: Handle, name: str) -> Handle:
        if name.startswith("bad"):
            time.sleep(0.8)
        return handle.lookupByName("test")


async def outcome(agents: GuestAgents, name: str) -> str:
    """libvirt's test driver has no agents, and says so: then a call was really made."""
    try:
        await agents.run(name, ("true",), timeout=timedelta(seconds=0.3))
    except GuestTimeout:
        return "timed out"
    except GuestError as error:
        return "was asked" if "failed in the guest" in str(error) else str(error)
    return "ran"


async def test_a_machine_behind_silent_ones_is_asked_all_the_same() -> None:
    connection = Connection("test:///default", name="only", threads=1)
    agents = GuestAgents([connection], SlowToBeFound("0011"))
    bad = asyncio.create_task(outcome(agents, "bad"))
    await asyncio.sleep(0.1)
    assert await outcome(agents, "good") == "was asked"
    assert await bad == "timed out"
    await connection.close()


async def test_a_machine_is_asked_over_the_connection_that_has_least_to_do() -> None:
    connections = [Connection("test:///default", name=f"of-four-{number}", threads=1) for number in range(4)]
    agents = GuestAgents(connections, SlowToBeFound("0011"))
    bad = [asyncio.create_task(outcome(agents, f"bad{number}")) for number in range(3)]
    await asyncio.sleep(0.1)
    started = time.monotonic()
    for number in range(10):
        assert await outcome(agents, f"good{number}") == "was asked"
    assert time.monotonic() - started < 0.5
    await asyncio.gather(*bad)
    for connection in connections:
        await connection.close()
