"""The commands for conversations with agents, as they are typed in rooms."""

from __future__ import annotations

import pytest

from ravebot.agents.model import ApprovalState
from ravebot.store import conversations, outbox
from tests.integration.test_intake_gitlab import Desk, desk
from tests.support.agent_talk import ALICE, DEV, EVE, GINA, Talk, talk
from tests.support.records import ROOM

pytestmark = pytest.mark.integration
__all__ = ["desk", "talk"]  # the fixtures, from where they are made


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


async def test_a_diff_of_a_sandbox_without_a_machine_is_told_so(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.say(GINA, "!rave diff 1")
    assert (await talk.last()).startswith("Refused: gina is Guest")
    await talk.say(ALICE, "!rave diff 1")
    assert await talk.last() == "group/app!1 has no machine to compare: its sandbox must be ready."
