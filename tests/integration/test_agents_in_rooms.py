"""What people do with agents in a real room: replies, threads, reactions and removals, as Synapse passes them on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ravebot.agents import registry
from ravebot.agents.model import AgentDoor, ApprovalId, ApprovalKind, ApprovalState
from ravebot.agents.questions import hash_of
from ravebot.config.model import AgentConfig, Config
from ravebot.gitlab.client import GitLab
from ravebot.intake.loop import Intake
from ravebot.intake.matrix import MatrixJournal
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.invites import Invites
from ravebot.matrix.rooms import RoomDirectory
from ravebot.matrix.sync import SyncLoop
from ravebot.notify.delivery import Delivery
from ravebot.notify.matrix import MatrixSender
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import approvals, conversations, outbox, sandboxes
from ravebot.store.database import Transaction
from ravebot.store.targets import MATRIX
from tests.support.gitlab import DEVELOPER, GitLabServer
from tests.support.records import BY_ALICE, World, a_world, pending
from tests.support.rooms import room_handler
from tests.support.synapse import MatrixUser, Synapse

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

CODER = AgentConfig.model_validate(
    {"name": "coder", "owner": "alice", "projects": ["group/*"], "acp": {"command": ["coder"]}}
)


@dataclass
class Place:
    """A room of alice's with the bot in it, whose project has a merge request with a sandbox."""

    world: World
    config: Config
    gitlab: GitLab
    client: MatrixClient
    room: str
    ref: MergeRequestRef
    journal: MatrixJournal

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Sync inside the block; nothing is handled."""
        clock = self.world.clock
        directory = RoomDirectory(self.client, self.config.matrix.rooms, clock)
        invites = Invites(self.client, (), clock, directory.joined, directory.is_configured)
        async with running(SyncLoop(self.client, self.journal, clock, invites).run()):
            await until(self._begun)
            yield

    async def _begun(self) -> bool:
        return await self.journal.token() is not None

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Handle what is heard, and send the answers, inside the block."""
        world = self.world
        directory = RoomDirectory(self.client, self.config.matrix.rooms, world.clock)
        sender = MatrixSender(self.config.matrix, world.database, world.views, self.client, directory)
        delivery = Delivery(world.database, MATRIX, sender, lambda _target, _result: None)
        intake = Intake(world.database, {"matrix": room_handler(world, self.gitlab, self.config)})
        async with running(intake.run()), running(delivery.run()):
            yield

    async def given(self) -> list[tuple[str, str]]:
        """What the agent was given: thread and text."""
        rows = await self.world.read(
            lambda tx: tx.all(
                "SELECT c.thread, m.text FROM agent_messages m JOIN conversations c ON c.id = m.conversation_id"
                " ORDER BY m.id"
            )
        )
        return [(row["thread"], row["text"]) for row in rows]

    async def has_given(self, *expected: tuple[str, str]) -> None:
        async def done() -> bool:
            return len(await self.given()) >= len(expected)

        await until(done)
        assert await self.given() == list(expected)

    async def asks(self) -> tuple[ApprovalId, str]:
        """A question about the merge request, shown by an event of ours."""
        event_id = await self.client.send(self.room, {"msgtype": "m.text", "body": "May it?"}, f"q{id(self)}")

        def ask(tx: Transaction) -> ApprovalId:
            asked = approvals.add(
                tx, ApprovalKind.COMMIT, title="May it?", payload="{}", payload_hash=hash_of("{}"), mr=self.ref,
                asked_by=BY_ALICE, door=AgentDoor.MATRIX, place=self.room, thread="", within=timedelta(hours=1),
            )  # fmt: skip
            approvals.save(tx, replace(asked, event_id=event_id))
            return asked.id

        return await self.world.write(ask), event_id

    async def state(self, number: ApprovalId) -> ApprovalState:
        found = await self.world.read(lambda tx: approvals.get(tx, number))
        assert found
        return found.state

    async def kept(self) -> int:
        return await self.world.read(pending)


@asynccontextmanager
async def running(loop: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(loop)
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(done: Callable[[], Any], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await done():
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(loop_scope="module")
async def place(synapse: Synapse, alice: MatrixUser, tmp_path: Path) -> AsyncIterator[Place]:
    account = await synapse.user(f"bot{abs(hash(tmp_path))}")
    room = await alice.create_room(invite=[account.user_id])
    matrix = {
        "homeserver": synapse.url,
        "user_id": account.user_id,
        "users": {alice.user_id: "alice"},
        "rooms": [{"room": room, "projects": ["group/*"]}],
    }
    async with GitLabServer() as server, a_world(tmp_path, gitlab={"url": server.url}, matrix=matrix) as world:
        bot, user = server.add_user("ravebot"), server.add_user("alice")
        project = server.add_project("group/app")
        for one in (bot, user):
            server.set_role(project, one, DEVELOPER)
        mr = server.open_merge_request(project, user, "Add a feature", "feature")
        config = world.config.model_copy(update={"agents": (CODER,)})
        client = MatrixClient(config.matrix, account.password, tmp_path)
        gitlab = GitLab(server.url, server.token_for(bot), world.clock, 2)
        ref = MergeRequestRef(project.id, mr.iid)
        await client.open()
        await client.join(room)
        try:
            await world.told(await gitlab.merge_request(ref))
            await world.write(lambda tx: outbox.set_room(tx, room, room))
            journal = MatrixJournal(world.database, "!rave", registry.names(config))
            yield Place(world, config, gitlab, client, room, ref, journal)
        finally:
            await client.close()
            await gitlab.close()


def thread(root: str, answered: str, *, falling_back: bool) -> dict[str, Any]:
    """As clients write in threads."""
    relation = {
        "rel_type": "m.thread", "event_id": root, "is_falling_back": falling_back,
        "m.in_reply_to": {"event_id": answered},
    }  # fmt: skip
    return {"m.relates_to": relation}


async def test_a_conversation_goes_on_in_its_thread_and_by_real_replies_and_nothing_else_is_heard(
    place: Place, alice: MatrixUser
) -> None:
    async with place.listening(), place.at_work():
        began = await alice.send(place.room, "@coder !1 the login test fails\n\nplease look")
        answer = await alice.wait_for(place.room, lambda one: "is being started" in one.body)
        assert answer.thread_root == began
        [conversation] = await place.world.read(lambda tx: conversations.of_merge_request(tx, place.ref))
        await place.world.write(lambda tx: conversations.add_event(tx, place.room, answer.event_id, conversation.id))
        await alice.send(place.room, "in the thread", **thread(began, answer.event_id, falling_back=True))
        await alice.send(place.room, "a reply", **{"m.relates_to": {"m.in_reply_to": {"event_id": answer.event_id}}})
        await alice.send(place.room, "hello everybody")
        elsewhere = await alice.send(place.room, "lunch?")
        # In a thread of people, what only falls back to a message of the agent's is no reply to it.
        await alice.send(place.room, "yes", **thread(elsewhere, answer.event_id, falling_back=True))
        await alice.send_content(place.room, {"msgtype": "m.notice", "body": "@coder !1 says another bot"})
        relation = {"rel_type": "m.replace", "event_id": began}
        fresh = {"msgtype": "m.text", "body": "@coder !1 something else"}
        await alice.send_content(
            place.room, fresh | {"body": "* edited", "m.new_content": fresh, "m.relates_to": relation}
        )
        await alice.send(place.room, "coder: and that", **thread(elsewhere, elsewhere, falling_back=True))
        await place.has_given(
            (began, "the login test fails\n\nplease look"), (began, "in the thread"), (began, "a reply")
        )
        asked = await alice.wait_for(place.room, lambda one: "works in group/app!1" in one.body)
    assert asked.thread_root == elsewhere
    assert (await place.given())[3:] == [(elsewhere, "and that")]


async def test_the_answer_to_a_message_that_is_itself_a_reply_comes_in_a_thread_under_it(
    place: Place, alice: MatrixUser
) -> None:
    async with place.listening(), place.at_work():
        first = await alice.send(place.room, "the login test fails")
        reply = {"m.relates_to": {"m.in_reply_to": {"event_id": first}}}
        began = await alice.send(
            place.room, f"> <{alice.user_id}> the login test fails\n\n@coder !1 please look", **reply
        )
        answer = await alice.wait_for(place.room, lambda one: "is being started" in one.body)
        assert answer.thread_root == began
        await place.has_given((began, "please look"))


async def test_a_reaction_answers_a_question_and_one_removed_before_counts_as_none(
    place: Place, alice: MatrixUser
) -> None:
    number, event_id = await place.asks()
    async with place.listening():
        refused = await alice.react(place.room, event_id, "❌\ufe0f")
        await until(lambda: _is(place.kept, 1))
        await alice.redact(place.room, refused)
        await until(lambda: _is(place.kept, 0))
        await alice.react(place.room, event_id, "👍")
        async with place.at_work():
            granted = await alice.react(place.room, event_id, "✅\ufe0f")
            await until(lambda: _is(lambda: place.state(number), ApprovalState.GRANTED))
            await alice.redact(place.room, granted)
            said = await alice.send(place.room, "@coder !1 fix it")
            await place.has_given((said, "fix it"))
    assert await place.state(number) is ApprovalState.GRANTED


async def test_reactions_on_a_card_extend_and_ask_back_in_its_thread(place: Place, alice: MatrixUser) -> None:
    card = await place.client.send(place.room, {"msgtype": "m.notice", "body": "a card"}, "card")

    def post(tx: Transaction) -> None:
        sandbox = sandboxes.latest(tx, place.ref)
        assert sandbox
        outbox.set_card(tx, sandbox.id, place.room, outbox.Card(place.room, card))

    await place.world.write(post)
    async with place.listening(), place.at_work():
        await alice.react(place.room, card, "⏳")
        told = await alice.wait_for(place.room, lambda one: "can be extended" in one.body)
        assert told.thread_root == card
        await alice.react(place.room, card, "🛑\ufe0f")
        asked = await alice.wait_for(place.room, lambda one: "Stop the sandbox of group/app!1?" in one.body)
        assert asked.thread_root == card
        await alice.react(place.room, asked.event_id, "❌")
        await until(lambda: _is(lambda: place.state(ApprovalId(1)), ApprovalState.DENIED))


async def test_what_was_said_to_an_agent_while_we_were_away_arrives_whole_and_in_order(
    place: Place, alice: MatrixUser
) -> None:
    number, event_id = await place.asks()
    async with place.listening():
        pass
    long = "@coder !1 one\n\n" + "\n".join(f"line {line}" for line in range(500))
    began = await alice.send(place.room, long)
    for count in range(60):
        await alice.send(place.room, f"talk {count}")
    await alice.react(place.room, event_id, "✅")
    await alice.send(place.room, "two\n\n  lines", **thread(began, began, falling_back=True))
    async with place.listening(), place.at_work():
        expected = long.removeprefix("@coder !1 ")
        # The second is heard before the first was handled, when the thread is no agent's yet.
        await place.has_given((began, expected), (began, "two\n\n  lines"))
        await until(lambda: _is(lambda: place.state(number), ApprovalState.GRANTED))


async def _is(found: Callable[[], Any], wanted: object) -> bool:
    return bool(await found() == wanted)
