"""`diff` in a room: what was done in the sandbox is shown, and whether it is committed is asked where the agent is."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from ravebot.agents.asking import diff_of
from ravebot.agents.diff.diffs import Diffs
from ravebot.agents.diff.model import Diff
from ravebot.agents.model import AgentDoor, Approval, ApprovalKind, Conversation
from ravebot.config.model import AgentConfig
from ravebot.intake.loop import Intake, Step
from ravebot.intake.matrix import MatrixJournal
from ravebot.matrix.incoming import IncomingMessage
from ravebot.sandboxes.model import Machine, MergeRequest, Sandbox, Stage
from ravebot.store import approvals, conversations, inbox, outbox, sandboxes
from tests.integration.test_diff_reading import USER, Scene, scene
from tests.support.gitlab import DEVELOPER
from tests.support.records import ROOM, pending
from tests.support.rooms import room_handler

pytestmark = pytest.mark.integration
__all__ = ["scene"]  # the fixture, from where it is made

ALICE, DEV = "@alice:example.org", "!dev:example.org"
CODER = AgentConfig.model_validate(
    {"name": "coder", "owner": "alice", "projects": ["group/*"], "acp": {"command": ["coder"]}}
)


async def asks(scene: Scene, thread: str | None = None) -> None:
    """Alice asks for the diff of !1."""
    project = next(iter(scene.gitlab.state.projects.values()))
    scene.gitlab.set_role(project, scene.theirs.author, DEVELOPER)
    await scene.world.write(lambda tx: outbox.set_room(tx, ROOM, DEV))
    config = scene.world.config.model_copy(update={"agents": (CODER,)})
    handler = room_handler(scene.world, scene.client, config, diffs=scene.diffs)
    message = IncomingMessage("$asked", DEV, ALICE, f"!rave diff {scene.mr.ref.iid}", thread, False, 0)
    body = json.dumps(message.__dict__)
    step: Step = await handler.handle(inbox.Request(1, "matrix", DEV, "message", body, 0))
    await scene.world.write(step)


async def told(scene: Scene) -> dict[str, Any]:
    """The last reply."""
    return (await replies(scene))[-1]


async def replies(scene: Scene) -> list[dict[str, Any]]:
    return [json.loads(body) for _, _, kind, body in await scene.world.outbox() if kind == "reply"]


async def questions(scene: Scene) -> list[Approval]:
    return list(await scene.world.read(approvals.are_open))


async def begins(scene: Scene, thread: str = "$talk") -> Conversation:
    return await scene.world.write(
        lambda tx: conversations.begin(tx, "coder", AgentDoor.MATRIX, DEV, thread, own_thread=True, mr=scene.mr.ref)
    )


async def test_it_is_shown_and_its_commit_is_asked_in_the_thread_of_the_agent(scene: Scene) -> None:
    conversation = await begins(scene)
    scene.sh('printf "one\\nTWO\\nthree\\n" > src/app.py')
    await asks(scene)
    body = await told(scene)
    assert "+TWO" in body["content"]["body"]
    assert body["content"]["m.relates_to"]["event_id"] == "$asked"
    assert "file" not in body
    [asked] = await questions(scene)
    assert (asked.kind, asked.conversation_id, asked.thread) == (ApprovalKind.COMMIT, conversation.id, "$talk")
    assert asked.head_sha == scene.mr.head_sha
    assert diff_of(asked) == (await scene.read()).hash
    assert "src/app.py" in asked.payload
    await asks(scene)
    assert await questions(scene) == [asked]


class SlowDiffs(Diffs):
    """A guest that is read until somebody says that it was."""

    began: asyncio.Event
    may_end: asyncio.Event

    async def read(self, sandbox: Sandbox, machine: Machine, mr: MergeRequest) -> Diff:
        self.began.set()
        await self.may_end.wait()
        return await super().read(sandbox, machine, mr)


async def test_while_a_sandbox_is_read_its_room_is_answered_and_a_crash_then_loses_nothing(scene: Scene) -> None:
    await asks(scene)  # so that alice has her role, and the room its name
    slow = SlowDiffs(scene.world.database, scene.room, scene.client, USER, scene.diffs.state_dir, 64 * 1024**2)
    slow.began, slow.may_end = asyncio.Event(), asyncio.Event()
    handler = room_handler(scene.world, scene.client, scene.world.config, diffs=slow)
    said = [
        IncomingMessage(f"$said{at}", DEV, ALICE, text, None, False, 0)
        for at, text in enumerate(["!rave Diff 1", "!rave show 1", "!rave list"])
    ]
    before = len(await replies(scene))
    await MatrixJournal(scene.world.database, "!rave").save(tuple(said), "s1")
    crashes = asyncio.create_task(Intake(scene.world.database, {"matrix": handler}).run())
    async with asyncio.timeout(10):
        await slow.began.wait()
        while len(await replies(scene)) < before + 2:
            await asyncio.sleep(0.01)
    crashes.cancel()
    await asyncio.wait({crashes})
    assert "differs" not in str((await replies(scene))[before:])
    slow.may_end.set()
    again = asyncio.create_task(Intake(scene.world.database, {"matrix": handler}).run())
    async with asyncio.timeout(20):
        while await scene.world.read(pending):
            await asyncio.sleep(0.01)
    again.cancel()
    await asyncio.wait({again})
    assert ["Nothing that can be committed differs" in str(one) for one in (await replies(scene))[before:]] == [
        False, False, True,
    ]  # fmt: skip


async def test_a_long_one_comes_as_a_file_too(scene: Scene) -> None:
    await begins(scene)
    scene.sh("seq 1 20000 > numbers")
    await asks(scene)
    body = await told(scene)
    assert body["file"]["name"] == "changes.diff"
    assert body["file"]["text"].endswith("+20000\n")


async def test_without_a_conversation_it_is_shown_and_nothing_is_asked(scene: Scene) -> None:
    scene.sh("echo new > new")
    await asks(scene)
    assert "an agent was spoken to" in (await told(scene))["content"]["body"]
    assert await questions(scene) == []


async def test_nothing_that_differs_is_said_and_not_asked(scene: Scene) -> None:
    await begins(scene)
    await asks(scene)
    assert "Nothing that can be committed differs" in (await told(scene))["content"]["body"]
    assert await questions(scene) == []


async def test_a_branch_that_moved_on_is_said_and_not_asked(scene: Scene) -> None:
    await begins(scene)
    scene.sh("echo new > new")
    scene.gitlab.push(scene.theirs, {"other.txt": "new"})
    await asks(scene)
    assert "The branch is at commit" in (await told(scene))["content"]["body"]
    assert await questions(scene) == []


async def test_what_can_t_be_read_now_is_said(scene: Scene) -> None:
    await begins(scene)
    await scene.world.write(lambda tx: sandboxes.save(tx, replace(scene.sandbox, stage=Stage.COPY)))
    await asks(scene)
    assert "can't be read now: The sandbox's code is being replaced" in (await told(scene))["content"]["body"]
