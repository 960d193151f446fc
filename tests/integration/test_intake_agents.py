"""What people say to agents in rooms: whom it reaches, about which merge request, and what others are told."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import suppress
from typing import Any

import pytest

from ravebot.agents import registry
from ravebot.agents.approvals import Approvals
from ravebot.agents.desk import Desk as AgentDesk
from ravebot.agents.model import AgentDoor, Conversation
from ravebot.agents.telling import ConversationTelling
from ravebot.commands.people import People
from ravebot.config.model import AgentConfig
from ravebot.intake.conversations import RoomConversations
from ravebot.intake.loop import Intake
from ravebot.intake.matrix import MatrixIntake, MatrixJournal
from ravebot.intake.reactions import RoomReactions
from ravebot.intake.rooms import Rooms
from ravebot.matrix.incoming import IncomingMessage, Reaction
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import conversations, outbox, sandboxes
from ravebot.store.database import Transaction
from tests.integration.test_intake_gitlab import Desk, desk
from tests.support.records import ROOM, pending

pytestmark = pytest.mark.integration
__all__ = ["desk"]  # the fixture, from where it is made

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

    def handler(self) -> MatrixIntake:
        world, config = self.desk.world, self.config
        people = People(config, world.database, self.desk.gitlab)
        rooms, telling = Rooms(config, people, world.database), ConversationTelling(config)
        approvals = Approvals(config, telling, world.database, people)
        return MatrixIntake(
            config,
            people,
            world.intents,
            world.views,
            world.database,
            agents=RoomConversations(rooms, world.views, AgentDesk(config, telling), approvals),
            reactions=RoomReactions(rooms, approvals),
        )

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
        task = asyncio.create_task(Intake(world.database, {"matrix": self.handler()}).run())
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


async def test_a_message_in_the_room_that_names_an_agent_begins_a_conversation_in_a_thread_under_it(talk: Talk) -> None:
    await talk.has_sandbox()
    asked = await talk.say(ALICE, "@coder !1 the login test fails\n\nplease look")
    assert await talk.messages() == [("coder", asked, "the login test fails\n\nplease look")]
    conversation = await talk.conversation("coder", asked)
    assert conversation.own_thread
    assert conversation.mr == MergeRequestRef(talk.desk.project.id, 1)
    assert [content["m.relates_to"]["event_id"] for content in await talk.told()] == [asked]
    assert await talk.last() == (
        "The sandbox of group/app!1 is being started: coder gets your message when it is ready."
    )
