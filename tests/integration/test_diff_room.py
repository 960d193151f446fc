"""`diff` in a room, from the files in the sandbox to the commit in GitLab; the guest's shell and su are real."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ravebot.agents.approvals import Approvals
from ravebot.agents.approved import ApprovedDiffs
from ravebot.agents.asking import diff_of
from ravebot.agents.carryout import CarryOut
from ravebot.agents.model import AgentDoor, Approval, ApprovalKind, ApprovalState
from ravebot.agents.telling import ConversationTelling
from ravebot.commands.people import People
from ravebot.config.model import AgentConfig
from ravebot.intake.diffs import RoomDiffs
from ravebot.intake.rooms import Rooms
from ravebot.matrix.incoming import IncomingMessage
from ravebot.sandboxes.model import Actor
from ravebot.store import approvals, conversations, outbox
from tests.integration.test_diff_reading import Scene, scene
from tests.support.gitlab import DEVELOPER
from tests.support.records import ROOM

pytestmark = pytest.mark.integration
__all__ = ["scene"]  # the fixture, from where it is made

CODER = AgentConfig.model_validate(
    {"name": "coder", "owner": "alice", "projects": ["group/*"], "acp": {"command": ["coder"]}}
)
DEV, ALICE = "!dev:example.org", Actor("matrix", "@alice:example.org")


@dataclass
class Talk:
    """A room in which alice speaks with an agent about the merge request."""

    scene: Scene
    diffs: RoomDiffs
    approvals: Approvals

    async def diff(self) -> tuple[str, dict[str, Any]]:
        """Ask for the diff; returns what is said, and the whole row of the reply."""
        message = IncomingMessage("$asked", DEV, ALICE.name, "!rave diff 1", "$thread", False, 0, None)
        step = await self.diffs.show(message, self.scene.mr)
        await self.scene.world.write(step)
        rows = [json.loads(body) for _, _, kind, body in await self.scene.world.outbox() if kind == "reply"]
        return rows[-1]["content"]["body"].replace("\u2060", ""), rows[-1]

    async def questions(self) -> list[Approval]:
        return list(await self.scene.world.read(approvals.are_open))

    async def carry_out(self) -> None:
        work = CarryOut(
            self.scene.world.database, self.approvals, self.scene.world.intents,
            ApprovedDiffs(self.scene.world.database, self.scene.diffs, self.approvals.config.matrix.users),
        )  # fmt: skip
        await work.look()


@pytest.fixture
async def talk(scene: Scene) -> Talk:
    world = scene.world
    alice = scene.gitlab.state.user_named("alice")
    assert alice
    scene.gitlab.set_role(scene.theirs.project, alice, DEVELOPER)
    config = world.config.model_copy(update={"agents": (CODER,)})
    people = People(config, world.database, scene.client)
    engine = Approvals(config, ConversationTelling(config), world.database, people)
    await world.write(lambda tx: outbox.set_room(tx, ROOM, DEV))
    await world.write(
        lambda tx: conversations.begin(
            tx, "coder", AgentDoor.MATRIX, DEV, "$thread", own_thread=True, mr=scene.mr.ref
        )
    )  # fmt: skip
    return Talk(scene, RoomDiffs(Rooms(config, people, world.database), engine, scene.diffs), engine)


async def test_what_was_changed_is_shown_asked_about_and_committed_as_it_was_shown(talk: Talk) -> None:
    talk.scene.sh('printf "one\\nTWO\\nthree\\n" > src/app.py; ln -s x link')
    said, row = await talk.diff()
    assert "group/app!1: 1 file differs from commit" in said
    assert "-two\n+TWO" in said
    assert "Left out: link: it is a symbolic link." in said
    assert "approval 1" in said
    assert row.get("file") is None
    (asked,) = await talk.questions()
    assert (asked.kind, asked.head_sha) == (ApprovalKind.COMMIT, talk.scene.mr.head_sha)
    talk.scene.sh("echo something else > src/app.py")  # after it was shown: it is not what was approved
    take = await talk.approvals.answer(asked.id, True, ALICE, place=DEV)
    await talk.scene.world.write(take)
    await talk.carry_out()
    files = talk.scene.gitlab.files_of(talk.scene.theirs)
    assert files["src/app.py"] == b"one\nTWO\nthree\n"
    facts = talk.scene.theirs.project.facts[talk.scene.theirs.sha]
    assert "Ravebot-Agent: coder\nRavebot-Asked-By: alice\nRavebot-Approved-By: alice\n" in facts.message
    assert f"Ravebot-Approval: {asked.id}.{asked.salt}\n" in facts.message
    assert list(talk.scene.diffs.kept.folder.iterdir()) == []


async def test_where_nothing_was_changed_nothing_is_asked(talk: Talk) -> None:
    said, row = await talk.diff()
    assert "Nothing that can be committed differs" in said
    assert row.get("file") is None
    assert await talk.questions() == []
    assert not talk.scene.diffs.kept.folder.exists()


async def test_a_diff_that_changed_is_another_question(talk: Talk) -> None:
    talk.scene.sh("echo 1 > new")
    await talk.diff()
    (first,) = await talk.questions()
    await talk.diff()
    assert [one.id for one in await talk.questions()] == [first.id]
    talk.scene.sh("echo 2 > new")
    await talk.diff()
    (second,) = await talk.questions()
    assert second.id != first.id
    assert diff_of(second) != diff_of(first)
    withdrawn = await talk.scene.world.read(lambda tx: approvals.get(tx, first.id))
    assert withdrawn is not None
    assert withdrawn.state is ApprovalState.WITHDRAWN


async def test_a_long_diff_is_shown_by_its_beginning_with_the_whole_as_a_file(talk: Talk) -> None:
    talk.scene.sh("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done > long.txt")
    said, row = await talk.diff()
    assert "the whole is in the file below" in said
    name, text = row["file"].values() if isinstance(row["file"], dict) else row["file"]
    assert "+line 2999\n" in text, name


async def test_after_a_push_it_is_shown_and_not_asked_about(talk: Talk) -> None:
    talk.scene.sh("echo 1 > new")
    talk.scene.gitlab.push(talk.scene.theirs, {"later": "1"})
    said, _ = await talk.diff()
    assert "+1" in said
    assert "let the sandbox take that commit" in said
    assert await talk.questions() == []


async def test_a_sandbox_that_can_not_be_read_is_said_with_what_to_do(talk: Talk) -> None:
    talk.scene.room.sh("rm -rf /srv/merge-request")
    said, _ = await talk.diff()
    assert "can't be read now" in said
    assert "have it rebuilt" in said


async def test_a_token_that_may_not_read_the_code_is_said_to_the_person_who_asked(talk: Talk) -> None:
    talk.scene.gitlab.fail(403, path="archive")
    said, _ = await talk.diff()
    assert "can't be read now: GitLab refuses it" in said


async def test_a_merge_request_without_a_machine_has_nothing_to_compare(talk: Talk) -> None:
    other = replace(talk.scene.mr, ref=replace(talk.scene.mr.ref, iid=99))
    message = IncomingMessage("$asked", DEV, ALICE.name, "!rave diff 99", None, False, 0, None)
    await talk.scene.world.write(await talk.diffs.show(message, other))
    rows = [json.loads(body) for _, _, kind, body in await talk.scene.world.outbox() if kind == "reply"]
    assert "has no machine to compare" in rows[-1]["content"]["body"]
