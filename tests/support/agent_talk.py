"""A room with agents, over the real intake: what is heard there is stored, handled and answered."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from ravebot.agents import registry
from ravebot.agents.model import AgentDoor, Approval, ApprovalId, ApprovalKind, ApprovalState, Conversation, Turn
from ravebot.agents.questions import hash_of
from ravebot.config.model import AgentConfig
from ravebot.intake.loop import Intake
from ravebot.intake.matrix import MatrixJournal
from ravebot.matrix.incoming import IncomingMessage, Reaction
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import approvals, conversations, outbox, sandboxes
from ravebot.store.database import Transaction
from tests.support.records import BY_ALICE, ROOM, pending
from tests.support.rooms import room_handler

if TYPE_CHECKING:
    from tests.integration.test_intake_gitlab import Desk

ALICE, GINA, OPS, EVE = "@alice:example.org", "@gina:example.org", "@ops:example.org", "@eve:evil.example"
DEV = "!dev:example.org"
CODER = AgentConfig.model_validate(
    {"name": "coder", "owner": "alice", "projects": ["group/*"], "acp": {"command": ["coder"]}}
)
REVIEWER = CODER.model_copy(update={"name": "reviewer"})


class Talk:
    """A room of the project, with agents, and whoever works through what is said in it."""

    def __init__(self, desk: Desk, *agents: AgentConfig, default: str | None = None) -> None:
        self.desk = desk
        config = desk.world.config
        rooms = tuple(room.model_copy(update={"agent": default}) for room in config.matrix.rooms)
        matrix = config.matrix.model_copy(update={"rooms": rooms})
        self.config = config.model_copy(update={"agents": agents, "matrix": matrix})
        self.journal = MatrixJournal(desk.world.database, "!rave", registry.names(self.config))
        self._count = itertools.count(1)

    async def hear(
        self,
        sender: str,
        text: str,
        *,
        room: str = DEV,
        direct: bool = False,
        thread: str | None = None,
        reply_to: str | None = None,
    ) -> str:
        """It is stored, if it concerns us; returns its id."""
        event_id = f"$said{next(self._count)}"
        message = IncomingMessage(event_id, room, sender, text, thread, direct, 0, reply_to)
        await self.journal.save((message,), event_id)
        return event_id

    async def say(self, sender: str, text: str, **where: Any) -> str:
        """It is stored and handled; returns its id."""
        event_id = await self.hear(sender, text, **where)
        await self.work()
        return event_id

    async def react(self, sender: str, to: str, key: str) -> str:
        event_id = f"$said{next(self._count)}"
        await self.journal.save((Reaction(event_id, DEV, sender, to, key, direct=False, at_ms=0),), event_id)
        return event_id

    async def work(self, seconds: float = 5) -> None:
        world = self.desk.world
        task = asyncio.create_task(
            Intake(world.database, {"matrix": room_handler(world, self.desk.gitlab, self.config)}).run()
        )
        try:
            async with asyncio.timeout(seconds):
                while await world.read(pending):
                    assert not task.done(), task
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def told(self) -> list[dict[str, Any]]:
        """The contents of our replies."""
        return [json.loads(body)["content"] for _, _, kind, body in await self.desk.world.outbox() if kind == "reply"]

    async def last(self) -> str:
        """The last reply as it reads: without word joiners."""
        told = await self.told()
        return str(told[-1]["body"]).replace("\u2060", "") if told else ""

    async def stored(self) -> list[tuple[str, str]]:
        rows = await self.desk.world.read(lambda tx: tx.all("SELECT kind, lane FROM inbox WHERE source = 'matrix'"))
        return [(row["kind"], row["lane"]) for row in rows]

    async def messages(self) -> list[tuple[str, str, str]]:
        """What agents were given: the agent, the thread, the text."""
        rows = await self.desk.world.read(
            lambda tx: tx.all(
                "SELECT c.agent, c.thread, m.text FROM agent_messages m JOIN conversations c"
                " ON c.id = m.conversation_id ORDER BY m.id"
            )
        )
        return [(row["agent"], row["thread"], row["text"]) for row in rows]

    async def conversation(self, agent: str, thread: str) -> Conversation:
        found = await self.desk.world.read(lambda tx: conversations.find(tx, agent, AgentDoor.MATRIX, DEV, thread))
        assert found
        return found

    async def turns(self, agent: str, thread: str = "$people") -> tuple[Turn, ...]:
        conversation = await self.conversation(agent, thread)
        return await self.desk.world.read(lambda tx: conversations.open_turns(tx, conversation.id))

    async def questions(self) -> list[Approval]:
        return list(await self.desk.world.read(approvals.are_open))

    async def state(self, number: int) -> ApprovalState:
        found = await self.desk.world.read(lambda tx: approvals.get(tx, ApprovalId(number)))
        assert found
        return found.state

    async def asks_commit(self, event_id: str) -> int:
        """A question about !1 that this event shows; returns its number."""
        mr = MergeRequestRef(self.desk.project.id, 1)

        def ask(tx: Transaction) -> int:
            asked = approvals.add(
                tx, ApprovalKind.COMMIT, title="Commit it?", payload="{}", payload_hash=hash_of("{}"), mr=mr,
                asked_by=BY_ALICE, door=AgentDoor.MATRIX, place=DEV, thread="", within=timedelta(hours=1),
            )  # fmt: skip
            approvals.save(tx, replace(asked, event_id=event_id))
            return asked.id

        return await self.desk.world.write(ask)

    async def has_card(self, iid: int, event_id: str) -> None:
        """Post a card as if it had been delivered."""
        ref = MergeRequestRef(self.desk.project.id, iid)

        def post(tx: Transaction) -> None:
            sandbox = sandboxes.latest(tx, ref)
            assert sandbox
            outbox.set_card(tx, sandbox.id, ROOM, outbox.Card(DEV, event_id))

        await self.desk.world.write(post)

    async def has_sandbox(self, branch: str = "feature") -> int:
        """An open merge request with a sandbox; returns its number."""
        mr = self.desk.open(branch)
        await self.desk.tell(mr)
        await self.desk.work()
        return mr.iid


@pytest.fixture
async def talk(desk: Desk) -> Talk:
    await desk.world.write(lambda tx: outbox.set_room(tx, ROOM, DEV))
    return Talk(desk, CODER, REVIEWER)
