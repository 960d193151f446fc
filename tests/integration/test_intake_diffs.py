"""`diff` in a room: what was done in the sandbox is shown, and whether it is committed is asked where the agent is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ravebot.agents.asking import diff_of
from ravebot.agents.model import AgentDoor, Approval, ApprovalKind, Conversation
from ravebot.config.model import AgentConfig
from ravebot.intake.loop import Step
from ravebot.matrix.incoming import IncomingMessage
from ravebot.sandboxes.model import Stage
from ravebot.store import approvals, conversations, inbox, outbox, sandboxes
from tests.integration.test_diff_reading import Scene, scene
from tests.support.gitlab import DEVELOPER
from tests.support.records import ROOM
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
    *_, last = [json.loads(body) for _, _, kind, body in await scene.world.outbox() if kind == "reply"]
    return dict(last)


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
