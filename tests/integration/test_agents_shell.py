"""`ravebot agent …` and `ravebot approvals …` as processes, on a terminal and in a pipe, against a real admin socket.

The bot behind it has a real database, runner and desk; the agent runs in a guest that is reached by real SSH.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from ravebot.agents.approvals import Approvals
from ravebot.agents.model import AgentDoor, ApprovalId, ApprovalKind, ApprovalState, TurnState
from ravebot.agents.reception import Reception
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.wording import once_more
from ravebot.commands.people import People
from ravebot.errors import FileNotFound, Refused
from ravebot.operations.agents.check import TrialParts
from ravebot.operations.agents.operator import AgentOperator
from ravebot.operations.agents.trials import Trials
from ravebot.sandboxes.model import Actor, MergeRequest, MergeRequestRef, Person
from ravebot.store import approvals, conversations
from ravebot.web import admin, adminagents
from ravebot.web.admin import socket_path
from ravebot.web.adminagents import AgentClient
from tests.integration.test_cli import Installation
from tests.integration.test_web_admin import Bot
from tests.support.agent_world import AGENT_SOURCE, AgentWorld, an_agent_world
from tests.support.elsewhere import make_world
from tests.support.records import a_merge_request
from tests.support.sshd import SshGuest

pytestmark = pytest.mark.integration
REF = "group/app!1"


class Facts:
    """What GitLab says of people; `levels` may be changed."""

    def __init__(self) -> None:
        self.levels = {"alice": 30}

    async def user(self, username: str) -> Person | None:
        return Person(101, username) if username in self.levels else None

    async def access_level(self, project_id: int, user_id: int) -> int:
        return self.levels["alice"]

    async def project(self, path_or_id: str | int) -> tuple[int, str]:
        return 7, "group/app"

    async def merge_request(self, ref: MergeRequestRef) -> MergeRequest:
        return a_merge_request(ref.iid)

    async def file(self, project_id: int, path: str, ref: str, max_bytes: int) -> bytes:
        raise FileNotFound(path)


@dataclass
class Shell:
    """The command, and the bot behind the socket."""

    here: Installation
    world: AgentWorld
    facts: Facts
    serve: Callable[[], AbstractAsyncContextManager[None]]

    @property
    def client(self) -> AgentClient:
        """The same without a process, for what a process would say in the same way."""
        return AgentClient(socket_path(self.here.state))

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        return await self.here.run(*arguments)

    async def newest(self) -> int:
        [row] = await self.world.database.read(lambda tx: tx.all("SELECT MAX(id) AS id FROM agent_turns"))
        return int(row["id"])

    async def state(self) -> str:
        row = await self.world.database.read(lambda tx: tx.one("SELECT state FROM agent_turns ORDER BY id DESC"))
        return str(row["state"]) if row else ""

    async def until(self, condition: Callable[[str], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition(await self.state()):
                await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshGuest]:
    folder, state = tmp_path_factory.mktemp("guest"), tmp_path_factory.mktemp("state")
    with SshGuest(folder, state) as running:
        running.program("agent.py", AGENT_SOURCE.read_text())
        yield running


def trials_in(guest: SshGuest) -> list[Path]:
    return list((guest.home / ".ravebot/agents").glob("check-*"))


@asynccontextmanager
async def a_shell(
    folder: Path, guest: SshGuest, *, runs: bool = True, served: bool = True, **agent: Any
) -> AsyncIterator[Shell]:
    here = Installation(folder)
    command = ["/usr/bin/python3", "/home/agent/agent.py"]
    async with an_agent_world(guest, here.state, command, runs=runs, **agent) as world:
        facts, telling = Facts(), ConversationTelling(world.config)
        people = People(world.config, world.database, facts)
        reception = Reception(world.config, people, world.desk)
        engine = Approvals(world.config, telling, world.database, people)
        trials = Trials(
            TrialParts(
                world.config, world.database, reception, world.driver, make_world(world.config, world.database).sender
            )
        )
        operator = AgentOperator(world.config, world.database, reception, engine, trials)

        def serve() -> AbstractAsyncContextManager[None]:
            app = admin.make_app(Bot())
            adminagents.add_routes(app, operator)
            return admin.serve(app, socket_path(here.state))

        task = asyncio.create_task(trials.run())
        try:
            async with serve() if served else nullcontext():
                yield Shell(here, world, facts, serve)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def shell(tmp_path: Path, guest: SshGuest) -> AsyncIterator[Shell]:
    async with a_shell(tmp_path, guest) as running:
        yield running


@pytest.fixture
async def idle(tmp_path: Path, guest: SshGuest) -> AsyncIterator[Shell]:
    """Nothing is given to agents."""
    async with a_shell(tmp_path, guest, runs=False) as running:
        yield running


async def test_a_message_is_answered_on_standard_output_and_its_conversation_is_its_own(shell: Shell) -> None:
    code, output, errors = await shell.run("agent", "send", "coder", REF, "say hello there\nsay and more")
    assert (code, output, errors) == (0, "hello thereand more\n", "")
    [row] = await shell.world.database.read(lambda tx: tx.all("SELECT * FROM conversations"))
    assert (row["door"], row["place"], row["own_thread"]) == ("shell", "", 1)
    code, output, _ = await shell.run("agent", "send", "coder", REF, "say half\nfail out of luck", "--json")
    told = json.loads(output)
    assert (code, told["state"], told["answer"], told["ok"]) == (1, "failed", "half", False)
    assert len(await shell.world.database.read(lambda tx: tx.all("SELECT * FROM conversations"))) == 2


async def test_what_an_agent_says_cannot_move_the_cursor_of_a_terminal(shell: Shell) -> None:
    ours, theirs = pty.openpty()
    try:
        process = await shell.here.start("agent", "send", "coder", REF, "say \x1b[2J\x1b]0;evil\x07", stdout=theirs)
        await process.communicate()
        text = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "\\x1b[2J" in text


async def test_an_interrupt_stops_the_waiting_and_not_the_turn(shell: Shell) -> None:
    process = await shell.here.start("agent", "send", "coder", REF, "wait 1\nsay done")
    await shell.until(lambda state: state in ("delivered", "working"))
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert process.returncode == 130
    assert b"goes on" in errors
    assert b"Traceback" not in errors
    await shell.until(lambda state: state == "done")


async def test_a_message_may_come_from_a_file_and_without_waiting_its_turn_is_told(shell: Shell) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ravebot", "agent", "send", "coder", REF, "-", "--no-wait",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=shell.here.environment,
    )  # fmt: skip
    output, _ = await process.communicate(b"say from a file\xff\n")
    assert (process.returncode, output.decode()) == (0, f"Turn {await shell.newest()}: coder gets it.\n")
    await shell.until(lambda state: state == "done")
    assert (await shell.client.hear(await shell.newest(), 0)).text == "from a file\ufffd"


async def test_a_question_of_the_agent_is_told_and_answered_at_the_shell(shell: Shell) -> None:
    process = await shell.here.start("agent", "send", "coder", REF, "ask edit Change a.py")
    await shell.until(lambda state: state == "waiting")
    code, output, _ = await shell.run("approvals", "list", "--json")
    [asked] = json.loads(output)
    assert (code, asked["kind"], asked["state"], asked["ref"]) == (0, "tool", "open", REF)
    assert "Change a.py" in asked["payload"]
    code, output, _ = await shell.run("approvals", "list")
    assert output.splitlines()[0].startswith("APPROVAL\tKIND\tSTATE")
    assert "Change a.py" in output
    code, output, _ = await shell.run("approvals", "decide", str(asked["id"]), "--yes")
    assert code == 0, output
    said, told = await process.communicate()
    assert process.returncode == 0
    assert b"allow" in said
    assert f"`ravebot approvals decide {asked['id']} --yes`".encode() in told
    code, _, errors = await shell.run("approvals", "decide", str(asked["id"]), "--no")
    assert (code, "was answered" in errors) == (1, True)
    [decided] = await shell.world.database.read(lambda tx: approvals.newest(tx, 1))
    assert decided.state is ApprovalState.GRANTED


async def test_a_mistake_ends_with_1_and_says_what_to_do(idle: Shell) -> None:
    code, output, errors = await idle.run("agent", "send", "nobody", REF, "hello")
    assert (code, output) == (1, "")
    assert errors == "ravebot: No agent of that name can be spoken to. There are: coder.\n"
    code, output, errors = await idle.run("agent", "send", "coder", REF, " ")
    assert (code, output) == (1, "")
    assert "Write what coder is to do" in errors
    client = idle.client
    for refused, says in (
        (client.send("coder", "42", "hello"), "group/app!42"),
        (client.agent("nobody"), "There are: coder."),
        (client.pause("nobody", True), "There are: coder."),
        (client.resend(99), "There is no turn 99"),
        (client.hear(99, 0), "There is no turn 99"),
        (client.check_progress(99), "Begin another"),
    ):
        with pytest.raises(Refused, match=says):
            await refused
    assert "too long" in (await client.send("coder", REF, "x" * 16_001)).message
    assert "There is no turn 99" in (await client.drop(99)).message
    assert await idle.world.database.read(lambda tx: tx.all("SELECT * FROM agent_turns")) == []


async def test_the_waiting_survives_a_restart_of_the_bot(tmp_path: Path, guest: SshGuest) -> None:
    async with a_shell(tmp_path, guest, served=False) as shell:
        async with shell.serve():
            process = await shell.here.start("agent", "send", "coder", REF, "say one\nwait 2\nsay two")
            await shell.until(lambda state: state == "working")
            await asyncio.sleep(0.5)
        await shell.until(lambda state: state == "done")
        async with shell.serve():
            output, errors = await process.communicate()
    assert (process.returncode, output) == (0, b"onetwo\n")
    assert b"waiting for it" in errors


async def test_an_agent_does_at_the_shell_no_more_than_its_owner_may(idle: Shell) -> None:
    idle.facts.levels["alice"] = 10
    asked = await idle.client.send("coder", REF, "hello")
    assert (asked.accepted, asked.turn) == (False, None)
    assert "coder may do at most what its owner alice may" in asked.message


async def test_a_paused_agent_is_given_nothing_until_it_is_resumed(shell: Shell) -> None:
    code, output, _ = await shell.run("agent", "pause", "coder")
    assert (code, output.startswith("coder is paused")) == (0, True)
    assert "coder is paused" in (await shell.client.send("coder", REF, "say hello")).message
    [line] = await shell.client.agents()
    assert (line.name, line.open_turns, bool(line.paused_by)) == ("coder", 1, True)
    assert await shell.state() == "queued"
    code, output, _ = await shell.run("agent", "resume", "coder")
    assert (code, output) == (0, "coder goes on.\n")
    await shell.until(lambda state: state == "done")


async def test_dead_letters_are_listed_sent_again_or_dropped(shell: Shell) -> None:
    for text in ("fail once", "fail twice"):
        await shell.client.send("coder", REF, text)
        await shell.until(lambda state: state == "failed")
    code, output, _ = await shell.run("agent", "dead", "list")
    header, *rows = output.splitlines()
    assert header.split("\t")[0] == "TURN"
    assert [row.split("\t")[-1] for row in rows] == ["fail twice", "fail once"]
    second, first = (row.split("\t")[0] for row in rows)
    code, output, _ = await shell.run("agent", "dead", "drop", first)
    assert (code, output) == (0, f"Turn {first} is dropped.\n")
    code, output, _ = await shell.run("agent", "dead", "resend", second)
    assert (code, output.startswith("coder gets it")) == (0, True)
    await shell.until(lambda state: state == "failed")
    assert [(turn.attempt, turn.text) for turn in await shell.client.dead()] == [(2, "fail twice")]


async def test_what_an_agent_is_and_did_is_shown(shell: Shell) -> None:
    await shell.client.send("coder", REF, "say hello")
    await shell.until(lambda state: state == "done")
    code, output, _ = await shell.run("agent", "show", "coder")
    assert code == 0
    assert "owner\talice" in output
    assert "asks a person before\tedit" in output
    assert output.splitlines()[-1].endswith("\tdone\t\tsay hello")
    ours, theirs = pty.openpty()
    try:
        process = await shell.here.start("agent", "list", stdout=theirs)
        await process.communicate()
        text = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "coder" in text
    assert "\x1b[32m" in text, "ready is green"


async def test_a_trial_tells_each_step_and_leaves_nothing(shell: Shell) -> None:
    code, output, errors = await shell.run("agent", "check", "coder", REF, "--prompt", "say I am here")
    assert (code, errors) == (0, ""), output
    steps = [line.split("\t") for line in output.splitlines()]
    assert [(sign, name) for sign, name, *_ in steps] == [
        ("✓", name)
        for name in (
            "configuration", "sandbox", "rights", "SSH connection", "program", "initialize", "session", "prompt",
            "nothing stays behind",
        )
    ]  # fmt: skip
    assert steps[7][3] == "it said: I am here"
    assert trials_in(shell.world.guest) == []
    assert await shell.world.database.read(lambda tx: tx.all("SELECT * FROM conversations")) == []
    code, output, _ = await shell.run("agent", "check", "coder", "--json")
    told = json.loads(output)
    assert (code, told["ok"]) == (0, True)
    assert [step["result"] for step in told["steps"] if step["name"] == "prompt"] == ["skipped"]


async def test_a_trial_names_on_a_terminal_what_it_is_at_and_nothing_once_it_is_over(shell: Shell) -> None:
    ours, theirs = pty.openpty()
    try:
        process = await shell.here.start("agent", "check", "coder", REF, "--prompt", "wait 1\nsay done", stderr=theirs)
        await process.communicate()
        os.write(theirs, b".")  # so that there is something to read
        text = re.sub(r"\x1b\[[\d;]*m", "", os.read(ours, 65536).decode())
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    told = [line.strip() for line in text.rstrip(".").splitlines()]
    assert "… prompt" in told
    assert "…" not in told


async def test_a_trial_of_a_program_that_the_image_lacks_says_what_to_install(tmp_path: Path, guest: SshGuest) -> None:
    async with a_shell(tmp_path, guest, runs=False, acp={"command": ["no-such-agent"]}) as shell:
        code, output, _ = await shell.run("agent", "check", "coder", REF)
    assert code == 1
    [failed] = [line for line in output.splitlines() if line.startswith("✗")]
    assert "no program `no-such-agent`" in failed
    mend = failed.split("\t")[4]
    assert mend.startswith("Install it in the image")
    assert f"`!rave rebuild {REF}` gives it the present one" in mend, "it may be there since this sandbox was started"


async def test_a_trial_of_a_machine_with_another_host_key_sends_nothing_to_it(idle: Shell) -> None:
    machine = await idle.world.machine()
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key("openssh").decode().strip()
    await idle.world.change_machine(host_keys=(other,))
    assert machine.host_keys != (other,)
    code, output, _ = await idle.run("agent", "check", "coder", REF)
    assert code == 1
    assert "✗\tSSH connection" in output
    assert "another SSH host key" in output
    assert trials_in(idle.world.guest) == []


async def test_a_trial_without_a_ready_sandbox_says_how_to_get_one(idle: Shell) -> None:
    code, output, _ = await idle.run("agent", "check", "coder", "group/app!2")
    assert code == 1
    assert "No sandbox of group/app!2 is ready." in output
    assert "/sandbox start" in output


async def test_an_uncertain_turn_is_a_dead_letter_and_sent_again_only_when_asked(idle: Shell) -> None:
    number = (await idle.client.send("coder", REF, "say hello")).turn
    assert number

    def lose(tx: Any) -> None:
        turn = conversations.turn(tx, number)  # type: ignore[arg-type]
        assert turn
        conversations.save_turn(tx, replace(turn, state=TurnState.UNCERTAIN, why="the guest is gone", ended_at=tx.now))

    await idle.world.database.write(lose)
    assert [(turn.state, turn.why) for turn in await idle.client.dead()] == [("uncertain", "the guest is gone")]
    code, output, _ = await idle.run("agent", "dead", "resend", str(number))
    assert (code, "may be done twice" in output) == (0, True)


async def test_a_dead_letter_of_a_room_is_not_said_to_be_sent_again_in_a_room(idle: Shell) -> None:
    number = (await idle.client.send("coder", REF, "say hello")).turn
    assert number

    def lose(tx: Any) -> None:
        turn = conversations.turn(tx, number)  # type: ignore[arg-type]
        assert turn
        tx.execute("UPDATE conversations SET door = 'matrix' WHERE id = ?", (turn.conversation_id,))
        why = f"The guest is gone. {once_more(AgentDoor.MATRIX, '!rave', turn.id)}"
        conversations.save_turn(tx, replace(turn, state=TurnState.UNCERTAIN, why=why, ended_at=tx.now))

    await idle.world.database.write(lose)
    assert [turn.why for turn in await idle.client.dead()] == ["The guest is gone."]
    assert [turn.why for turn in (await idle.client.agent("coder")).turns] == ["The guest is gone."]


async def test_what_needs_an_admin_is_decided_at_the_shell_too(idle: Shell) -> None:
    def ask(tx: Any) -> ApprovalId:
        return approvals.add(
            tx, ApprovalKind.EXTENSION, title="Extend", payload="{}", payload_hash=sha256(b"{}").hexdigest(),
            asked_by=Actor("matrix", "@alice:example.org"), door=AgentDoor.MATRIX, place="!room:example.org",
            thread="$card", within=timedelta(hours=1), mr=idle.world.mr.ref,
        ).id  # fmt: skip

    number = await idle.world.database.write(ask)
    code, _, errors = await idle.run("approvals", "decide", str(number))
    assert (code, "say either --yes or --no" in errors) == (2, True)
    for word in ("x", "0", "9" * 20):
        code, _, errors = await idle.run("approvals", "decide", word, "--yes")
        assert (code, "write its number, as the list shows it" in errors) == (2, True)
    code, output, errors = await idle.run("approvals", "decide", str(number), "--no")
    assert (code, output) == (0, f"Approval {number} is denied.\n"), errors
    assert await idle.client.approvals(False) == ()
    code, output, _ = await idle.run("approvals", "list", "--all")
    assert "\tdenied\t" in output


async def test_without_a_bot_the_commands_say_so_and_end_with_3(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    for arguments in (("agent", "list"), ("agent", "check", "coder"), ("approvals", "list")):
        code, output, errors = await here.run(*arguments)
        assert (code, output) == (3, "")
        assert "start it with `ravebot run`" in errors
