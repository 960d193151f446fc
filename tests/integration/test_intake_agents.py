"""What people say to agents in rooms: whom it reaches, about which merge request, and what others are told."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ravebot.agents import registry
from ravebot.agents.model import AgentDoor, Approval, ApprovalId, ApprovalKind, ApprovalState, Conversation, Turn
from ravebot.agents.questions import hash_of
from ravebot.config.model import AgentConfig
from ravebot.intake.concern import MOST_EARLY_EACH
from ravebot.intake.loop import Intake
from ravebot.intake.matrix import MatrixJournal
from ravebot.matrix.incoming import IncomingMessage, Reaction, Removed
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import approvals, conversations, outbox, sandboxes
from ravebot.store.database import Transaction
from tests.integration.test_intake_gitlab import Desk, desk
from tests.support.records import BY_ALICE, ROOM, pending
from tests.support.rooms import room_handler

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


async def test_a_message_in_the_room_that_names_an_agent_begins_a_conversation_in_a_thread_under_it(talk: Talk) -> None:
    await talk.has_sandbox()
    asked = await talk.say(ALICE, "@coder !1 the login test fails\n\nplease look")
    assert await talk.messages() == [("coder", asked, "the login test fails\n\nplease look")]
    conversation = await talk.conversation("coder", asked)
    assert conversation.own_thread
    assert conversation.mr == MergeRequestRef(talk.desk.project.id, 1)
    assert [content["m.relates_to"]["event_id"] for content in await talk.told()] == [asked]
    assert await talk.last() == (
        "The sandbox of group/app!1 is being started: coder gets the message when it is ready."
    )


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("coder: !1 fix it", "fix it"),
        ("Coder: group/app!1 fix it", "fix it"),
        ("!rave ask coder !1 fix it\nall of it", "fix it\nall of it"),
        ("!rave ASK @coder group/app!1 fix it", "fix it"),
    ],
)
async def test_each_way_to_address_an_agent_reaches_it(talk: Talk, text: str, given: str) -> None:
    await talk.has_sandbox()
    asked = await talk.say(ALICE, text)
    assert await talk.messages() == [("coder", asked, given)]


async def test_the_inbox_takes_what_concerns_us_and_not_more(talk: Talk) -> None:
    await talk.has_sandbox()
    began = await talk.say(ALICE, "@coder !1 fix it")
    before = len(await talk.stored())
    for text in ("hello", "coder, hi", "see !1", "> @coder fix it", "@bob:example.org look"):
        await talk.hear(ALICE, text)
        await talk.hear(ALICE, text, thread="$another")
        await talk.hear(ALICE, text, reply_to="$another")
    assert len(await talk.stored()) == before
    await talk.hear(ALICE, "hello", thread=began)
    assert (await talk.stored())[before:] == [("to agent", f"{DEV} {began}")]


async def test_every_message_in_its_own_thread_and_a_reply_to_its_message_go_on_with_the_conversation(
    talk: Talk,
) -> None:
    await talk.has_sandbox()
    began = await talk.say(ALICE, "@coder !1 fix it")
    conversation = await talk.conversation("coder", began)
    await talk.desk.world.write(lambda tx: conversations.add_event(tx, DEV, "$answer", conversation.id))
    await talk.say(ALICE, "and the tests\n\n  too", thread=began)
    await talk.say(ALICE, "why?", reply_to="$answer")
    await talk.say(ALICE, "> only a quote", thread=began)
    assert [text for _, thread, text in await talk.messages() if thread == began] == [
        "fix it", "and the tests\n\n  too", "why?",
    ]  # fmt: skip


@pytest.mark.parametrize("first", ["@coder !1 one", "!rave ask coder !1 one"])
async def test_what_is_said_in_the_thread_before_its_first_message_is_handled_is_for_the_agent_too(
    talk: Talk, first: str
) -> None:
    await talk.has_sandbox()
    began = await talk.hear(ALICE, first)
    await talk.hear(ALICE, "two", thread=began)
    await talk.work()
    assert await talk.messages() == [("coder", began, "one"), ("coder", began, "two")]


async def test_what_follows_a_refused_message_in_its_thread_is_for_nobody(talk: Talk) -> None:
    await talk.has_sandbox()
    began = await talk.hear(GINA, "@coder !1 one")
    await talk.hear(ALICE, "two", thread=began)
    await talk.work()
    assert await talk.messages() == []
    assert len(await talk.told()) == 1


async def test_in_a_card_s_thread_only_a_named_agent_is_meant_and_it_works_on_that_merge_request(talk: Talk) -> None:
    await talk.has_sandbox("one")
    await talk.has_sandbox("two")
    await talk.has_card(2, "$card")
    await talk.say(ALICE, "what do you think, bob?", thread="$card")
    assert await talk.stored() == []
    await talk.say(ALICE, "@coder fix it", thread="$card")
    await talk.say(ALICE, "thanks, all", thread="$card")
    assert await talk.messages() == [("coder", "$card", "fix it")]
    conversation = await talk.conversation("coder", "$card")
    assert conversation.mr == MergeRequestRef(talk.desk.project.id, 2)
    assert not conversation.own_thread
    await talk.say(ALICE, "!rave ask reviewer look at it", thread="$card")
    assert (await talk.messages())[1:] == [("reviewer", "$card", "look at it")]
    assert {lane for _, lane in await talk.stored()} == {f"{DEV} 2"}


async def test_another_agent_named_in_an_agent_s_own_thread_gets_only_what_names_it(talk: Talk) -> None:
    await talk.has_sandbox()
    began = await talk.say(ALICE, "@coder !1 fix it")
    await talk.say(ALICE, "@reviewer !1 look at it", thread=began)
    await talk.say(ALICE, "go on", thread=began)
    assert [(agent, text) for agent, _, text in await talk.messages()] == [
        ("coder", "fix it"), ("reviewer", "look at it"), ("coder", "go on"),
    ]  # fmt: skip


async def test_in_an_agent_s_own_thread_its_merge_request_is_meant_unless_another_is_named(talk: Talk) -> None:
    await talk.has_sandbox("one")
    await talk.has_sandbox("two")
    began = await talk.say(ALICE, "@coder !1 fix it")
    await talk.say(ALICE, "@reviewer look at it", thread=began)
    conversation = await talk.conversation("reviewer", began)
    assert conversation.mr == MergeRequestRef(talk.desk.project.id, 1)
    await talk.say(ALICE, "!rave diff", thread=began)
    assert await talk.last() == "group/app!1 has no machine to compare: its sandbox must be ready."
    await talk.say(ALICE, "!rave diff 2", thread=began)
    assert await talk.last() == "group/app!2 has no machine to compare: its sandbox must be ready."


async def test_a_thread_among_people_in_which_an_agent_was_named_is_not_its_own(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.say(ALICE, "@coder !1 fix it", thread="$people")
    await talk.say(ALICE, "lunch?", thread="$people")
    assert await talk.messages() == [("coder", "$people", "fix it")]


async def test_without_a_reference_the_only_sandbox_is_meant_and_that_is_said(talk: Talk) -> None:
    await talk.has_sandbox()
    asked = await talk.say(ALICE, "@coder fix it")
    assert await talk.messages() == [("coder", asked, "fix it")]
    assert (await talk.last()).startswith(
        "coder works in group/app!1: no other sandbox that it serves is here.\nThe sandbox of group/app!1"
    )


async def test_without_a_reference_among_several_it_is_asked_which_and_the_answer_in_the_thread_counts(
    talk: Talk,
) -> None:
    for branch in "abcdefg":
        await talk.has_sandbox(branch)
    asked = await talk.say(ALICE, "@coder fix it")
    assert await talk.messages() == []
    assert await talk.last() == (
        "Say which sandbox it is about: @coder group/app!1 fix it. There are"
        " group/app!1, group/app!2, group/app!3, group/app!4, group/app!5 and 2 more."
    ).replace("@coder group/app!1 fix it", "`@coder group/app!1 fix it`")
    assert (await talk.told())[-1]["m.relates_to"]["event_id"] == asked
    await talk.say(ALICE, "@coder !3 fix it", thread=asked)
    await talk.say(ALICE, "soon, please", thread=asked)
    assert [(thread, text) for _, thread, text in await talk.messages()] == [
        (asked, "fix it"), (asked, "soon, please"),
    ]  # fmt: skip


async def test_without_any_sandbox_it_is_asked_which_merge_request(talk: Talk) -> None:
    await talk.say(ALICE, "@coder fix it")
    assert (await talk.last()).startswith("There is no sandbox here that coder serves. Say which merge request")


async def test_a_thread_stays_with_its_merge_request(talk: Talk) -> None:
    await talk.has_sandbox("one")
    await talk.has_sandbox("two")
    began = await talk.say(ALICE, "@coder !1 fix it")
    await talk.say(ALICE, "@coder !2 and this", thread=began)
    assert [text for *_, text in await talk.messages()] == ["fix it"]
    assert await talk.last() == "This thread is about group/app!1. About group/app!2, begin another one."
    await talk.say(ALICE, "@coder !1 and this", thread=began)
    assert [text for *_, text in await talk.messages()] == ["fix it", "and this"]


@pytest.mark.parametrize(
    ("who", "text", "refusal"),
    [
        (GINA, "@coder !1 fix it", "Refused: gina is Guest in group/app. This needs the role Developer or more: ask"),
        (GINA, "@coder fix it", "Refused: gina is Guest in group/app."),
        (GINA, "!rave ask coder !1 fix it", "Refused: gina is Guest in group/app."),
        (GINA, "@coder group/app!999 fix it", "Refused: gina is Guest in group/app."),
        (EVE, "@coder !1 fix it", "Refused: Your Matrix account is not tied to a GitLab user."),
        (EVE, "@coder fix it", "Refused: Your Matrix account is not tied to a GitLab user."),
        (ALICE, "@coder secret/app!1 fix it", "Refused: This room is not mapped to that project."),
        (ALICE, "@coder group/app!999 fix it", "There is no group/app!999, or I may not see it."),
        (ALICE, "@coder", "Write what coder is to do, after its name"),
        (ALICE, "!rave ask fix it", "Say which agent, before the text: coder or reviewer."),
        (ALICE, "!rave ask", "Write what the agent is to do. Type `!rave ask [AGENT] [REF] TEXT`."),
    ],
)
async def test_who_may_not_or_says_it_wrongly_is_answered_aside_and_no_agent_hears_it(
    talk: Talk, who: str, text: str, refusal: str
) -> None:
    await talk.has_sandbox()
    asked = await talk.say(who, text)
    assert (await talk.last()).startswith(refusal)
    assert (await talk.told())[-1]["m.relates_to"] == {
        "rel_type": "m.thread", "event_id": asked, "is_falling_back": False, "m.in_reply_to": {"event_id": asked},
    }  # fmt: skip
    assert await talk.messages() == []
    refused = [event for event in await talk.desk.world.events() if event.kind == "command.refused"]
    assert [event.data["verb"] for event in refused] == (["ask"] if refusal.startswith("Refused") else [])


async def test_a_stranger_in_an_agent_s_thread_is_not_answered_and_not_heard(talk: Talk) -> None:
    await talk.has_sandbox()
    began = await talk.say(ALICE, "@coder !1 fix it")
    told = len(await talk.told())
    await talk.say(EVE, "hello", thread=began)
    assert len(await talk.told()) == told
    await talk.say(GINA, "hello", thread=began)
    assert (await talk.last()).startswith("Refused: gina is Guest")
    assert [text for *_, text in await talk.messages()] == ["fix it"]


async def test_an_agent_may_do_no_more_than_its_owner(talk: Talk) -> None:
    await talk.has_sandbox()
    talk.config = talk.config.model_copy(update={"agents": (CODER.model_copy(update={"owner": "gina"}),)})
    await talk.say(ALICE, "@coder !1 fix it")
    assert (await talk.last()).startswith("Refused: coder may do at most what its owner gina may: gina is Guest")
    assert await talk.messages() == []


async def test_an_agent_is_not_asked_about_a_project_that_it_does_not_serve(talk: Talk) -> None:
    await talk.has_sandbox()
    other = CODER.model_copy(update={"projects": ("group/other",)})
    talk.config = talk.config.model_copy(update={"agents": (other,)})
    await talk.say(ALICE, "@coder !1 fix it")
    assert (await talk.last()).startswith("Refused: coder does not serve group/app.")
    await talk.say(ALICE, "@coder fix it")
    assert (await talk.last()).startswith("There is no sandbox here that coder serves.")


async def test_the_room_s_own_agent_gets_what_is_asked_without_a_name_and_nothing_else(desk: Desk) -> None:
    await desk.world.write(lambda tx: outbox.set_room(tx, ROOM, DEV))
    talk = Talk(desk, CODER, REVIEWER, default="reviewer")
    await talk.has_sandbox()
    await talk.say(ALICE, "fix it")
    asked = await talk.say(ALICE, "!rave ask !1 fix it")
    assert await talk.messages() == [("reviewer", asked, "fix it")]


async def test_in_a_room_of_no_project_an_agent_s_name_is_somebody_else_s(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.say(ALICE, "@coder !1 fix it", room="!other:example.org")
    assert await talk.stored() == []
    assert await talk.messages() == []


async def test_in_a_direct_chat_an_agent_is_reached_too(talk: Talk) -> None:
    await talk.has_sandbox()
    asked = await talk.say(ALICE, "@coder group/app!1 fix it", room="!direct:x", direct=True)
    assert await talk.messages() == [("coder", asked, "fix it")]
    await talk.say(EVE, "@coder group/app!1 fix it", room="!other:x", direct=True)
    assert (await talk.last()).startswith("Refused: Your Matrix account")


async def test_a_message_of_which_only_the_beginning_was_read_is_asked_for_again(talk: Talk) -> None:
    await talk.has_sandbox()
    message = IncomingMessage("$cut", DEV, ALICE, "@coder !1 fix", None, False, 0, whole=False)
    await talk.journal.save((message,), "s1")
    await talk.work()
    assert (await talk.last()).startswith("Only the beginning of that message reached me")
    assert await talk.messages() == []


async def test_a_message_that_is_too_long_is_refused(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.say(ALICE, f"@coder !1 {'x' * 16_001}")
    assert (await talk.last()).startswith("That is too long for a message")
    assert await talk.messages() == []


async def test_what_is_heard_twice_is_given_once(talk: Talk) -> None:
    await talk.has_sandbox()
    message = IncomingMessage("$one", DEV, ALICE, "@coder !1 fix it", None, False, 0)
    for token in ("s1", "s2"):
        await talk.journal.save((message,), token)
        await talk.work()
    assert await talk.messages() == [("coder", "$one", "fix it")]


async def test_a_message_that_is_removed_before_it_is_handled_is_taken_back_and_not_afterwards(talk: Talk) -> None:
    await talk.has_sandbox()
    removed = await talk.hear(ALICE, "@coder !1 fix it")
    await talk.journal.save((Removed(DEV, removed),), "s1")
    await talk.work()
    assert await talk.messages() == []
    asked = await talk.say(ALICE, "@coder !1 fix it")
    await talk.journal.save((Removed(DEV, asked),), "s2")
    await talk.work()
    assert await talk.messages() == [("coder", asked, "fix it")]
    rows = await talk.desk.world.read(lambda tx: tx.all("SELECT outcome FROM inbox WHERE source = 'matrix'"))
    assert [row["outcome"] == "taken back" for row in rows] == [True, False]


async def test_messages_of_one_conversation_share_a_lane_and_others_do_not_wait_for_it(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.has_card(1, "$card")
    began = await talk.say(ALICE, "@coder !1 fix it")
    conversation = await talk.conversation("coder", began)
    await talk.desk.world.write(lambda tx: conversations.add_event(tx, DEV, "$answer", conversation.id))
    await talk.hear(ALICE, "more", thread=began)
    await talk.hear(ALICE, "why", reply_to="$answer")
    await talk.hear(ALICE, "!rave cancel", thread=began)
    await talk.hear(ALICE, "@reviewer look", thread=began)
    other = await talk.hear(ALICE, "@coder !1 something else")
    await talk.hear(ALICE, "@coder here", thread="$card")
    lanes = [lane for _, lane in await talk.stored()]
    assert lanes == [f"{DEV} {began}"] * 5 + [f"{DEV} {other}", f"{DEV} 1"]


async def test_a_gitlab_that_is_away_does_not_change_the_order_and_it_is_said_once_that_messages_are_kept(
    talk: Talk,
) -> None:
    await talk.has_sandbox()
    talk.desk.server.fail(503)
    began = await talk.hear(ALICE, "@coder !1 one")
    for text in ("@coder two", "@coder three"):
        await talk.hear(ALICE, text, thread=began)
    for _ in range(2):
        with suppress(TimeoutError):
            await talk.work(0.2)
        talk.desk.world.pass_by(minutes=2)
    assert len(await talk.told()) == 1
    assert (await talk.last()).endswith(
        "Your message is kept and carried out as soon as possible: you need not say it again."
    )
    assert (await talk.told())[0]["m.relates_to"]["event_id"] == began
    talk.desk.server.restore()
    await talk.work()
    assert await talk.messages() == [("coder", began, text) for text in ("one", "two", "three")]


# Commands.


async def test_steer_cancel_and_resend_are_about_the_conversation_of_their_thread(talk: Talk) -> None:
    await talk.has_sandbox()
    began = await talk.say(ALICE, "@coder !1 fix it")
    await talk.say(ALICE, "!rave steer no, this first", thread=began)
    assert (await talk.messages())[1:] == [("coder", began, "no, this first")]
    await talk.say(ALICE, "!rave cancel", thread=began)
    assert (await talk.last()).startswith("It is cancelled: coder was not given it.")
    await talk.say(ALICE, "!rave cancel coder", thread=began)
    assert (await talk.last()).startswith("It is cancelled: coder was not given it.")
    await talk.say(ALICE, "!rave cancel", thread=began)
    assert (await talk.last()).startswith("Nothing runs or waits here")
    await talk.say(ALICE, "!rave resend", thread=began)
    conversation = await talk.conversation("coder", began)
    turns = await talk.desk.world.read(lambda tx: conversations.open_turns(tx, conversation.id))
    assert [turn.attempt for turn in turns] == [2]


@pytest.mark.parametrize("verb", ["cancel", "resend"])
async def test_a_command_about_a_conversation_says_what_it_needs(talk: Talk, verb: str) -> None:
    await talk.has_sandbox()
    await talk.say(ALICE, f"!rave {verb}")
    assert (await talk.last()).startswith("Say it in the thread of a conversation with an agent")
    await talk.say(ALICE, "@coder !1 fix it", thread="$people")
    await talk.say(ALICE, "@reviewer !1 look", thread="$people")
    await talk.say(ALICE, f"!rave {verb}", thread="$people")
    assert (await talk.last()).startswith(f"Say which agent is meant: `{verb} coder`. Here are coder and reviewer.")
    await talk.say(ALICE, f"!rave {verb} nobody", thread="$people")
    assert (await talk.last()).startswith("Here is no conversation with it, only with coder and reviewer.")
    await talk.say(GINA, f"!rave {verb} coder", thread="$people")
    assert (await talk.last()).startswith("Refused: gina is Guest")
    assert [len(await talk.turns(name)) for name in ("coder", "reviewer")] == [1, 1]


async def test_agents_lists_who_serves_the_room_and_what_goes_on_here(talk: Talk) -> None:
    await talk.say(GINA, "!rave agents")
    assert await talk.last() == "`coder` of alice, free\n`reviewer` of alice, free"
    await talk.has_sandbox()
    await talk.say(ALICE, "@coder !1 fix it")
    await talk.say(ALICE, "@reviewer group/app!1 look", room="!direct:x", direct=True)
    await talk.say(GINA, "!rave agents")
    assert await talk.last() == (
        "`coder` of alice, 0 at work, 1 waiting\n`reviewer` of alice, 0 at work, 1 waiting\n"
        "`coder` in group/app!1: 1 waiting"
    )
    await talk.say(EVE, "!rave agents", room="!eve:x", direct=True)
    assert (await talk.last()).startswith("Refused: Your Matrix account")
    await talk.say(ALICE, "!rave agents", room="!other:example.org")
    assert (await talk.last()).startswith("Refused: This room is not mapped")


async def test_without_agents_it_is_said_how_they_come(desk: Desk) -> None:
    await desk.world.write(lambda tx: outbox.set_room(tx, ROOM, DEV))
    talk = Talk(desk)
    await talk.say(ALICE, "!rave help")
    assert "!rave approve ID" in await talk.last()
    assert "!rave ask" not in await talk.last()
    await talk.say(ALICE, "!rave agents")
    assert (await talk.last()).startswith("No agent serves the projects of this room")
    await talk.say(ALICE, "!rave ask fix it")
    assert (await talk.last()).startswith("No agent can be spoken to here")
    await talk.say(ALICE, "@coder fix it")
    assert len(await talk.told()) == 3


async def test_help_shows_the_commands_for_agents_where_there_are_some(talk: Talk) -> None:
    await talk.say(EVE, "!rave help")
    assert "!rave ask [AGENT] [REF] TEXT" in await talk.last()


async def test_budget_shows_what_the_asker_and_the_agents_used(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.say(ALICE, "@coder !1 fix it")
    await talk.say(ALICE, "!rave budget")
    assert await talk.last() == (
        "You: 1 of 500 messages today\n`coder`: 1 of 200 messages today\n`reviewer`: 0 of 200 messages today\n"
        "It is counted anew from 00:00 UTC."
    )


# Questions and reactions.


async def test_a_question_is_answered_by_command_or_reaction_by_who_may(talk: Talk) -> None:
    await talk.has_sandbox()
    question = await talk.asks_commit("$question")
    for sender, key in ((GINA, "✅"), (EVE, "❌"), (ALICE, "👍"), (ALICE, "✔️")):
        await talk.react(sender, "$question", key)
    await talk.work()
    assert await talk.state(question) is ApprovalState.OPEN
    await talk.react(ALICE, "$question", "✅")
    await talk.work()
    assert await talk.state(question) is ApprovalState.GRANTED
    assert await talk.react(ALICE, "$question", "❌")
    assert [kind for kind, _ in await talk.stored()].count("reaction") == 3  # nothing is kept once it is answered


async def test_an_answer_to_a_question_whose_event_is_not_recorded_yet_is_not_lost(talk: Talk) -> None:
    """The bot was killed after it asked; the answer is heard before the question is sent again."""
    await talk.has_sandbox()
    question = await talk.asks_commit("")
    taken_back = await talk.react(ALICE, "$question", "❌")
    await talk.react(ALICE, "$question", "✅")
    await talk.react(ALICE, "$chat", "❌")
    with pytest.raises(TimeoutError):
        await talk.work(0.5)
    talk.desk.world.clock.advance(timedelta(minutes=30))  # much longer than anybody waits in memory
    await talk.journal.save((Removed(DEV, taken_back),), "s1")
    asked = (await talk.questions())[0]
    await talk.desk.world.write(lambda tx: approvals.shown_by(tx, asked, asked.place, "$question"))
    await talk.work()
    assert await talk.state(question) is ApprovalState.GRANTED
    assert not await talk.told()


async def test_of_reactions_that_may_be_to_a_question_not_more_are_kept_than_one_person_needs(talk: Talk) -> None:
    await talk.has_sandbox()
    question = await talk.asks_commit("")
    for number in range(MOST_EARLY_EACH + 5):
        await talk.react(EVE, f"$chat{number}", "✅")
    await talk.react(ALICE, "$question", "❌")
    assert [kind for kind, _ in await talk.stored()] == ["early reaction"] * (MOST_EARLY_EACH + 1)
    asked = (await talk.questions())[0]
    await talk.desk.world.write(lambda tx: approvals.shown_by(tx, asked, asked.place, "$question"))
    await talk.work()
    assert await talk.state(question) is ApprovalState.DENIED


@pytest.mark.parametrize(("verb", "state"), [("approve", ApprovalState.GRANTED), ("deny", ApprovalState.DENIED)])
async def test_a_question_is_answered_by_its_number(talk: Talk, verb: str, state: ApprovalState) -> None:
    await talk.has_sandbox()
    question = await talk.asks_commit("$question")
    await talk.say(GINA, f"!rave {verb} {question}")
    assert (await talk.last()).startswith("Refused: gina is Guest")
    await talk.say(ALICE, f"!rave {verb} {question}")
    assert await talk.last() == f"Approval {question} is {'approved' if verb == 'approve' else 'denied'}."
    assert await talk.state(question) is state
    await talk.say(ALICE, f"!rave {verb} 999")
    assert await talk.last() == "There is no approval 999: the number stands in the question's message."
    await talk.say(ALICE, f"!rave {verb} soon")
    assert (await talk.last()).startswith("Say which question: its number stands in its message.")


async def test_a_reaction_that_is_removed_before_it_is_handled_counts_as_none_and_not_afterwards(talk: Talk) -> None:
    await talk.has_sandbox()
    question = await talk.asks_commit("$question")
    reaction = await talk.react(ALICE, "$question", "✅")
    await talk.journal.save((Removed(DEV, reaction),), "s1")
    await talk.work()
    assert await talk.state(question) is ApprovalState.OPEN
    reaction = await talk.react(ALICE, "$question", "✅")
    await talk.work()
    await talk.journal.save((Removed(DEV, reaction),), "s2")
    await talk.work()
    assert await talk.state(question) is ApprovalState.GRANTED


async def test_an_hourglass_on_a_card_extends_by_the_right_of_who_put_it_there(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.has_card(1, "$card")
    await talk.react(GINA, "$card", "⏳")
    await talk.work()
    assert (await talk.last()).startswith("Refused: gina is Guest in group/app.")
    await talk.react(ALICE, "$card", "⏳")
    await talk.work()
    assert await talk.last() == ("The sandbox of group/app!1 is queued. Only a sandbox that was ready can be extended.")
    for content in await talk.told():
        assert content["m.relates_to"]["event_id"] == "$card"
        assert content["m.relates_to"]["rel_type"] == "m.thread"
    await talk.react(ALICE, "$card", "👍")
    await talk.react(ALICE, "$another", "⏳")
    assert len(await talk.stored()) == 2


async def test_a_stop_sign_on_a_card_asks_the_same_person_back_for_a_minute(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.has_card(1, "$card")
    await talk.react(GINA, "$card", "🛑")
    await talk.work()
    assert (await talk.last()).startswith("Refused: gina is Guest in group/app.")
    assert await talk.questions() == []
    await talk.react(ALICE, "$card", "🛑")
    await talk.work()
    [asked] = await talk.questions()
    assert (asked.kind, asked.only_by, asked.place, asked.thread) == (ApprovalKind.STOP, ALICE, DEV, "$card")
    assert asked.expires_at - asked.created_at == timedelta(minutes=1)
    assert await talk.desk.states() == ["queued"]
    await talk.desk.world.write(lambda tx: approvals.save(tx, replace(asked, event_id="$question")))
    await talk.react(OPS, "$question", "✅")
    await talk.work()
    assert await talk.state(asked.id) is ApprovalState.OPEN
    await talk.react(ALICE, "$question", "✅")
    await talk.work()
    assert await talk.state(asked.id) is ApprovalState.GRANTED


async def test_a_stop_sign_on_the_card_of_an_ended_sandbox_is_told_so(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.has_card(1, "$card")
    await talk.say(ALICE, "!rave stop 1")
    await talk.react(ALICE, "$card", "🛑")
    await talk.work()
    assert await talk.last() == "group/app!1 has no sandbox."


# The diff.


async def test_a_diff_of_a_sandbox_without_a_machine_is_told_so(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.say(GINA, "!rave diff 1")
    assert (await talk.last()).startswith("Refused: gina is Guest")
    await talk.say(ALICE, "!rave diff 1")
    assert await talk.last() == "group/app!1 has no machine to compare: its sandbox must be ready."


async def test_who_floods_a_thread_is_told_once_what_is_not_told_yet(talk: Talk) -> None:
    few = CODER.model_copy(update={"limits": CODER.limits.model_copy(update={"messages_per_day": 5})})
    talk = Talk(talk.desk, few)
    await talk.has_sandbox()
    heard = [IncomingMessage(f"$flood{n}", DEV, ALICE, f"@coder !1 {n}", "$people", False, 0) for n in range(30)]
    await talk.journal.save(tuple(heard), "s1")
    await talk.work()
    assert len(await talk.messages()) == 5
    said = [content["body"] for content in await talk.told()]
    assert ["being started" in said[0], "has had its" in said[1]] == [True] * len(said)


async def test_many_threads_at_once_each_keep_their_order(talk: Talk) -> None:
    """Also while GitLab fails now and then: what waits for it holds up its own thread only."""
    await talk.has_sandbox()
    threads = [f"$thread{number}" for number in range(20)]
    heard = [
        IncomingMessage(f"{thread}" if not place else f"{thread}.{place}", DEV, ALICE, f"@coder !1 {place}",
                        thread if place else None, False, 0)
        for place in range(10)
        for thread in threads
    ]  # fmt: skip
    talk.desk.server.fail(503, count=3)
    await talk.journal.save(tuple(heard), "s1")
    with suppress(TimeoutError):
        await talk.work(1)
    assert any("Your message is kept" in content["body"] for content in await talk.told())
    talk.desk.world.pass_by(minutes=2)
    await talk.work(20)
    given = await talk.messages()
    for thread in threads:
        assert [text for _, there, text in given if there == thread] == [str(place) for place in range(10)]
