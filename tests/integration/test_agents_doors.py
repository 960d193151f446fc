"""The doors of agents in their sandboxes, over real SSH servers, with a real agent that goes through them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ravebot.agents.model import TurnState
from ravebot.agents.transports.acp.doors.sandbox_doors import FOLDER, SandboxDoors
from ravebot.agents.transports.contract import DoorServer
from ravebot.sandboxes.model import MachineState, SandboxState
from ravebot.store import machines, sandboxes
from ravebot.store.database import Transaction
from tests.support.agent_world import (
    AGENT_SOURCE,
    AgentWorld,
    a_guest_with_the_agent,
    an_agent_world,
    ready_sandbox,
    run_until_killed,
)
from tests.support.forks import FORKS
from tests.support.little_doors import LittleDoor
from tests.support.sshd import SshGuest

pytestmark = pytest.mark.integration
AGENT = "/home/agent/agent"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshGuest]:
    with a_guest_with_the_agent(tmp_path_factory.mktemp("guest")) as running:
        yield running


@pytest.fixture
def models() -> LittleDoor:
    return LittleDoor("models")


@pytest.fixture
def mcp() -> LittleDoor:
    return LittleDoor("mcp")


@asynccontextmanager
async def a_world(
    guest: SshGuest, folder: Path, *servers: DoorServer, command: tuple[str, ...] = (AGENT, "mcp"), **more: Any
) -> AsyncIterator[AgentWorld]:
    async with an_agent_world(guest, folder, command, servers=servers, **{"models": ["some"], **more}) as world:
        yield world


async def said(world: AgentWorld, text: str, thread: str = "$root") -> str:
    turn = await world.over(await world.say(text, thread=thread))
    assert turn.state is TurnState.DONE, turn
    return turn.answer


def clients() -> list[int]:
    """The SSH clients of this process that forward something."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid() and b"-R" in words:
            found.append(int(folder.name))
    return found


async def until(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def test_an_agent_reaches_its_doors_by_its_environment_and_by_what_its_session_is_told(
    guest: SshGuest, tmp_path: Path, models: LittleDoor, mcp: LittleDoor
) -> None:
    async with a_world(guest, tmp_path, models, mcp) as world:
        answer = await said(world, "get $RAVEBOT_MODELS_URL/some/v1/messages\nsay |\nget $RAVEBOT_MCP_URL\nservers")
        assert answer.startswith("models of sandbox 1 at /some/v1/messages|mcp of sandbox 1 at /mcp")
        server = {"type": "http", "name": "ravebot", "url": f"http://127.0.0.1:{mcp.port}/mcp", "headers": []}
        assert answer.endswith(json.dumps([server]))
        machine = await world.machine()
        folder = tmp_path / FOLDER / machine.name
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder)] == [0o700, 0o700]
        assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
            "models.sock": 0o600, "mcp.sock": 0o600,
        }  # fmt: skip
        (client,) = clients()
        assert await said(world, "get $RAVEBOT_MCP_URL", thread="$another") == "mcp of sandbox 1 at /mcp"
        assert clients() == [client]
    assert list((tmp_path / FOLDER).iterdir()) == []
    assert clients() == []


async def test_an_agent_without_models_has_no_door_to_them_and_one_without_mcp_is_not_told_of_it(
    guest: SshGuest, tmp_path: Path, models: LittleDoor, mcp: LittleDoor
) -> None:
    async with a_world(guest, tmp_path, models, mcp, command=(AGENT,), models=[]) as world:
        assert await said(world, "servers\nget $RAVEBOT_MCP_URL") == "[]mcp of sandbox 1 at /mcp"
        assert "not there" in await said(world, f"get http://127.0.0.1:{models.port}/\nget $RAVEBOT_MODELS_URL")
        assert models.paths == []


async def test_doors_that_fall_between_turns_are_made_again_before_the_next(
    guest: SshGuest, tmp_path: Path, mcp: LittleDoor
) -> None:
    async with a_world(guest, tmp_path, mcp) as world:
        assert await said(world, "get $RAVEBOT_MCP_URL") == "mcp of sandbox 1 at /mcp"
        (client,) = clients()
        os.kill(client, signal.SIGKILL)
        await until(lambda: client not in clients())
        await asyncio.sleep(0.05)
        assert await said(world, "get $RAVEBOT_MCP_URL") == "mcp of sandbox 1 at /mcp"


async def test_a_restarted_machine_gets_new_doors(guest: SshGuest, tmp_path: Path, mcp: LittleDoor) -> None:
    async with a_world(guest, tmp_path, mcp) as world:
        turn = await world.say("get $RAVEBOT_MCP_URL\nwait 60")
        await world.until(lambda one: one.answer, turn)
        guest.stop()
        guest.start()
        await world.change_machine(restarts=1)
        assert (await world.over(turn)).state is TurnState.UNCERTAIN
        assert await said(world, "get $RAVEBOT_MCP_URL") == "mcp of sandbox 1 at /mcp"


async def test_a_rebuild_under_a_turn_closes_the_doors_and_the_next_sandbox_has_its_own(
    guest: SshGuest, tmp_path: Path, mcp: LittleDoor
) -> None:
    async with a_world(guest, tmp_path, mcp) as world:
        turn = await world.say("get $RAVEBOT_MCP_URL\nwait 60")
        await world.until(lambda one: one.answer, turn)

        def rebuild(tx: Transaction) -> None:
            old = sandboxes.latest(tx, world.mr.ref)
            assert old
            machine = machines.get(tx, old.machine_id)
            assert machine
            sandboxes.save(tx, replace(old, state=SandboxState.ENDED))
            machines.save(tx, replace(machine, state=MachineState.GONE))
            ready_sandbox(tx, world.mr, guest, 2, "rave-guest-2")

        guest.stop()
        await world.database.write(rebuild)
        guest.start()
        assert (await world.over(turn)).state is TurnState.UNCERTAIN
        assert await said(world, "get $RAVEBOT_MCP_URL") == "mcp of sandbox 2 at /mcp"
        await until(lambda: [path.name for path in (tmp_path / FOLDER).iterdir()] == ["rave-guest-2"])
        assert len(clients()) == 1


async def test_doors_that_fall_in_a_turn_are_made_again_in_it(guest: SshGuest, tmp_path: Path, mcp: LittleDoor) -> None:
    async with a_world(guest, tmp_path, mcp) as world:
        turn = await world.say("say begun\nwait 0.5\nawait $RAVEBOT_MCP_URL")
        await world.until(lambda one: one.answer, turn)
        os.kill(clients()[0], signal.SIGKILL)
        assert (await world.over(turn)).answer == "begunmcp of sandbox 1 at /mcp"


async def test_a_port_that_a_program_in_the_guest_has_taken_fails_the_turn_and_says_so(
    guest: SshGuest, tmp_path: Path, mcp: LittleDoor
) -> None:
    async with a_world(guest, tmp_path, mcp) as world:
        with closing(socket.create_server(("127.0.0.1", mcp.port))):
            turn = await world.over(await world.say("say hello"))
            assert turn.state is TurnState.DEAD
            assert (
                f"`mcp` can't be opened in the sandbox: another program there listens on 127.0.0.1:{mcp.port}. End that"
                in turn.why
            )
        assert await said(world, "get $RAVEBOT_MCP_URL") == "mcp of sandbox 1 at /mcp"


async def test_a_door_that_can_not_be_served_is_tried_again(guest: SshGuest, tmp_path: Path, mcp: LittleDoor) -> None:
    mcp.fails = OSError(28, "No space left on device")
    async with a_world(guest, tmp_path, mcp) as world:
        turn = await world.say("get $RAVEBOT_MCP_URL")
        assert (await world.until(lambda one: one.tries, turn)).state is TurnState.QUEUED
        mcp.fails = None
        assert (await world.over(turn)).answer == "mcp of sandbox 1 at /mcp"


async def test_doors_are_closed_when_the_sandbox_ends_and_when_nobody_needs_them(
    guest: SshGuest, tmp_path: Path, mcp: LittleDoor
) -> None:
    async with a_world(guest, tmp_path, mcp, idle_seconds=0.3) as world:
        await said(world, "get $RAVEBOT_MCP_URL")
        await until(lambda: not clients() and not mcp.paths[0].exists())
        turn = await world.say("say begun\nwait 60")
        await world.until(lambda one: one.answer, turn)
        await world.change_machine(restarts=1)
        await until(lambda: not clients() and not list((tmp_path / FOLDER).iterdir()))
        assert (await world.over(turn)).state is TurnState.UNCERTAIN


async def test_after_a_kill_of_ravebot_in_a_turn_its_doors_are_made_again_in_it_and_before_the_next(
    guest: SshGuest, tmp_path: Path, mcp: LittleDoor
) -> None:
    """The agent works on meanwhile; the clients of the killed process end by themselves."""

    async def killed_when(words: int) -> None:
        """Run the runner in a process of its own until the agent has said so much, and kill it."""
        process = FORKS.Process(target=run_until_killed, args=(tmp_path, guest.port, [AGENT], 0, (mcp,)))
        process.start()
        async with asyncio.timeout(30):
            with closing(sqlite3.connect(tmp_path / "ravebot.db", timeout=5)) as connection:
                while connection.execute("SELECT MAX(LENGTH(answer)) FROM agent_turns").fetchone()[0] < words:
                    await asyncio.sleep(0.01)
        process.kill()
        process.join()

    answer = "mcp of sandbox 1 at /mcp"
    async with a_world(guest, tmp_path, runs=False) as world:
        turn = await world.say("get $RAVEBOT_MCP_URL" + "\nwait 0.5\nawait $RAVEBOT_MCP_URL" * 2)
    await killed_when(len(answer))
    await killed_when(2 * len(answer))
    async with a_world(guest, tmp_path, mcp) as world:
        assert (await world.over(turn)).answer == answer * 3
        assert await said(world, "get $RAVEBOT_MCP_URL") == answer
        assert len(await world.folders()) == 1, "it is one process of the agent's"


async def test_what_an_earlier_run_left_is_removed(guest: SshGuest, tmp_path: Path, mcp: LittleDoor) -> None:
    (tmp_path / FOLDER / "rave-old").mkdir(parents=True)
    (tmp_path / FOLDER / "rave-old/mcp.sock").touch()
    async with a_world(guest, tmp_path, mcp) as world:
        assert isinstance(world.driver.doors, SandboxDoors)
        world.driver.doors.clear()
        assert not (tmp_path / FOLDER).exists()
        assert await said(world, "get $RAVEBOT_MCP_URL") == "mcp of sandbox 1 at /mcp"


async def test_a_state_folder_with_a_long_path_has_doors_too(guest: SshGuest, mcp: LittleDoor) -> None:
    with TemporaryDirectory() as outer:
        odd = Path(outer) / "it's $HOME: %h "
        folder = odd.with_name(odd.name + "y" * (96 - len(os.fsencode(odd))))
        async with a_world(guest, folder, mcp) as world:
            assert await said(world, "get $RAVEBOT_MCP_URL") == "mcp of sandbox 1 at /mcp"
            assert mcp.paths[0].parts[:4] == ("/", "proc", "self", "fd")
            assert (folder / FOLDER / (await world.machine()).name / "mcp.sock").is_socket()


@pytest.mark.parametrize("refuses", [False, True])
async def test_openssh_s_server_forwards_unless_its_image_refuses_to(
    tmp_path: Path, mcp: LittleDoor, refuses: bool
) -> None:
    folder = tmp_path / "guest"
    (folder / "state").mkdir(parents=True)
    more = {"AllowTcpForwarding": "no"} if refuses else {}
    with SshGuest(folder, folder / "state", server="openssh", options=more) as guest:
        guest.program("agent", AGENT_SOURCE.read_text())
        async with a_world(guest, tmp_path / "state", mcp) as world:
            turn = await world.over(await world.say("get $RAVEBOT_MCP_URL"))
            if not refuses:
                assert turn.answer == "mcp of sandbox 1 at /mcp"
                return
            assert turn.state is TurnState.DEAD
            assert (
                f"its SSH server refuses to forward 127.0.0.1:{mcp.port}. Allow remote forwards in the image"
                in turn.why
            )
