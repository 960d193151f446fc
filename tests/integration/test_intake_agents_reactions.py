"""Reactions in rooms: answers to questions, and the two signs on a card."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ravebot.agents.model import ApprovalKind, ApprovalState
from ravebot.intake.concern import MOST_EARLY_EACH
from ravebot.matrix.incoming import Removed
from ravebot.store import approvals
from tests.integration.test_intake_gitlab import desk
from tests.support.agent_talk import ALICE, DEV, EVE, GINA, OPS, Talk, talk

pytestmark = pytest.mark.integration
__all__ = ["desk", "talk"]  # the fixtures, from where they are made


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
