"""Agents that take their messages themselves: leases, acknowledgements, answers that are late, second or foreign."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.agents.answers import LEASE, LONGEST_PIECE, AnswerEnd, AnswerRefusal
from ravebot.agents.model import LONGEST_ANSWER, Conversation, Turn, TurnId, TurnState
from ravebot.agents.transports.contract import Nudge
from ravebot.commands.permissions import Decision
from ravebot.errors import Refused, Unavailable
from ravebot.sandboxes.model import Actor, MergeRequest, MergeRequestRef
from ravebot.store import agent_texts, conversations, deliveries, merge_requests, restored
from tests.support.clock import ManualClock
from tests.support.elsewhere import ALICE_IN_ROOM, MR, ElsewhereWorld, an_elsewhere_world
from tests.support.records import NOON

pytestmark = pytest.mark.integration
S = TurnState
MINUTE = timedelta(minutes=1)


async def drive(world: ElsewhereWorld, turn_id: TurnId) -> None:
    """Have the steps taken that are due, as the runner does."""
    turn = await world.turn(turn_id)
    await world.driver.drive(turn.conversation_id, Nudge())


async def test_a_message_is_taken_acknowledged_and_answered_in_pieces(tmp_path: Path) -> None:
    async with an_elsewhere_world(tmp_path, clock=ManualClock(), runs=False) as world:
        turn_id = await world.say("helper", "what does this change?")
        assert (await world.turn(turn_id)).state is S.QUEUED  # without any sandbox
        taken = await world.take()
        assert taken
        assert (taken.body["id"], taken.body["text"], taken.again) == (taken.id, "what does this change?", False)
        assert taken.body["merge_request"]["ref"] == MR.full_ref
        turn = await world.turn(turn_id)
        assert turn.state is S.DELIVERED
        assert await world.take() is None
        acked = await world.ack(taken.id)
        assert (acked.accepted, acked.state) == (True, "working")
        assert await world.ack(taken.id) == acked
        await world.answer(taken.id, "It adds ", agent="helper")
        done = await world.answer(taken.id, "a feature.", AnswerEnd.DONE, agent="helper")
        assert (done.accepted, done.state, done.said) == (True, "done", 18)
        turn = await world.turn(turn_id)
        assert (turn.state, turn.answer) == (S.DONE, "It adds a feature.")
        second = await world.answer(taken.id, "And more.", agent="helper")
        assert second.refused is AnswerRefusal.OVER
        assert second.message == "It was answered to its end already: a second answer is not taken."
        assert (await world.turn(turn_id)).answer == "It adds a feature."


async def test_who_loses_the_lease_loses_no_message_and_the_next_taker_gets_the_same_id(tmp_path: Path) -> None:
    clock = ManualClock()
    async with an_elsewhere_world(tmp_path, clock=clock, runs=False) as world:
        turn_id = await world.say("helper")
        first = await world.take()
        assert first
        deadline = (await world.turn(turn_id)).deadline
        clock.advance(LEASE - timedelta(seconds=1))
        assert await world.take() is None
        clock.advance(timedelta(seconds=1))
        second = await world.take()
        assert second
        assert (second.id, second.body, second.again) == (first.id, first.body, True)
        assert (await world.turn(turn_id)).deadline == deadline  # its time goes on
        await world.answer(second.id, "at it", agent="helper")  # renews the lease
        clock.advance(LEASE - timedelta(seconds=1))
        assert await world.take() is None
        await world.ack(second.id)
        clock.advance(5 * LEASE)
        assert await world.take() is None
        await world.answer(second.id, "", AnswerEnd.DONE, agent="helper")
        turn = await world.turn(turn_id)
        assert (turn.state, turn.answer) == (S.DONE, "at it")


async def test_a_lease_made_before_the_clock_was_set_back_does_not_hold_for_ever(tmp_path: Path) -> None:
    clock = ManualClock()
    async with an_elsewhere_world(tmp_path, clock=clock, runs=False) as world:
        await world.say("helper")
        assert await world.take()
        clock.advance(-timedelta(days=1))
        assert await world.take()


async def test_messages_are_taken_in_their_order_one_at_a_time_in_a_thread(tmp_path: Path) -> None:
    clock = ManualClock()
    async with an_elsewhere_world(tmp_path, clock=clock, runs=False) as world:
        for text, thread in (("1", "$a"), ("2", "$a"), ("3", "$b")):
            await world.say("helper", text, thread)
        first, second = await world.take(), await world.take()
        assert first
        assert second
        assert (first.body["text"], second.body["text"]) == ("1", "3")
        assert await world.take() is None
        await world.answer(first.id, "", AnswerEnd.FAILED, agent="helper", why="no idea\n\nat all")
        third = await world.take()
        assert third
        assert third.body["text"] == "2"
        turns = await world.database.read(lambda tx: tx.all("SELECT state, why FROM agent_turns ORDER BY id"))
        assert tuple(turns[0]) == ("failed", "helper reports that it failed: no idea at all")


async def test_another_agents_messages_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    async with an_elsewhere_world(tmp_path, clock=ManualClock(), runs=False) as world:
        turn_id = await world.say("helper")
        taken = await world.take()
        assert taken
        for foreign in (
            await world.answer(taken.id, "forged", AnswerEnd.DONE, agent="reviewer"),
            await world.ack(taken.id, "reviewer"),
            await world.answer("msg_guessed", "forged", agent="helper"),
            await world.ack("x" * 100_000),
            await world.answer(taken.id, "forged", agent="nobody"),
        ):
            assert foreign.refused is AnswerRefusal.UNKNOWN
            assert foreign.state == ""
        turn = await world.turn(turn_id)
        assert (turn.state, turn.answer) == (S.DELIVERED, "")
        for name in ("reviewer", "nobody"):
            with pytest.raises(Refused, match="has no inbox"):
                await world.answers.next_for(name)


async def test_what_is_cancelled_is_not_given_and_who_has_it_is_told_when_answering(tmp_path: Path) -> None:
    async with an_elsewhere_world(tmp_path, clock=ManualClock(), runs=False) as world:
        given, waiting = await world.say("helper", "1"), await world.say("helper", "2")
        taken = await world.take()
        assert taken
        await world.cancel(given)
        cancelled = await world.answer(taken.id, "still at it", agent="helper")
        assert cancelled.refused is AnswerRefusal.CANCELLED
        assert cancelled.message.startswith("Cancelled by @alice:example.org (matrix). Stop working on it")
        assert (await world.turn(given)).state is S.CANCELLED
        assert (await world.ack(taken.id)).refused is AnswerRefusal.CANCELLED
        await world.cancel(waiting)
        assert (await world.turn(waiting)).state is S.CANCELLED
        assert await world.take() is None
        third = await world.say("helper", "3")
        taken = await world.take()
        assert taken
        await world.cancel(third)
        await drive(world, third)
        assert (await world.turn(third)).state is S.CANCELLED
        assert await world.database.read(deliveries.unsettled) == ()


async def test_an_answer_keeps_a_message_for_another_lease(tmp_path: Path) -> None:
    clock = ManualClock()
    async with an_elsewhere_world(tmp_path, clock=clock, runs=False) as world:
        await world.say("helper")
        taken = await world.take()
        assert taken
        clock.advance(LEASE - timedelta(seconds=1))
        assert (await world.answer(taken.id, agent="helper", status="thinks")).accepted
        clock.advance(LEASE - timedelta(seconds=1))
        assert await world.take() is None
        clock.advance(timedelta(seconds=1))
        again = await world.take()
        assert again
        assert (again.id, again.again) == (taken.id, True)


async def test_time_that_is_over_fails_the_turn_and_what_nobody_takes_is_given_up(tmp_path: Path) -> None:
    clock = ManualClock()
    async with an_elsewhere_world(tmp_path, clock=clock, runs=False) as world:
        taken_turn, untaken = await world.say("helper", "1"), await world.say("helper", "2", "$other")
        taken = await world.take()
        assert taken
        await world.ack(taken.id)
        clock.advance(30 * MINUTE)
        await drive(world, taken_turn)
        turn = await world.turn(taken_turn)
        assert (turn.state, turn.why) == (S.FAILED, "helper did not end it within 30 min, the limit of a turn.")
        late = await world.answer(taken.id, "there", AnswerEnd.DONE, agent="helper")
        assert late.refused is AnswerRefusal.OVER
        assert "did not end it within 30 min" in late.message
        clock.advance(timedelta(days=1))
        await drive(world, untaken)
        turn = await world.turn(untaken)
        assert turn.state is S.DEAD
        assert turn.why.startswith("helper did not take it from its inbox within a day")
        again = await world.database.write(lambda tx: world.desk.resend(tx, untaken, ALICE_IN_ROOM))
        assert again.accepted
        once_more = await world.take()
        assert once_more
        assert (once_more.body["text"], once_more.body["attempt"]) == ("2", 2)


async def test_a_caller_that_reaches_less_than_its_agent_is_given_what_it_reaches(tmp_path: Path) -> None:
    async with an_elsewhere_world(tmp_path, clock=ManualClock(), runs=False) as world:
        for number in range(30):  # more than are looked at in one go
            await world.say("helper", f"{number}", f"${number}")
        world.mr = replace(MR, ref=MergeRequestRef(77, 1), source_project_id=77, project_path="group/other")
        seen = await world.say("helper", "for me", "$other")
        looked_up: list[str] = []

        async def reaches(mr: MergeRequest) -> bool:
            looked_up.append(mr.project_path)
            return mr.project_path == "group/other"

        async def nowhere(_: MergeRequest) -> bool:
            return False

        assert await world.answers.next_for("helper", reaches=nowhere) is None
        assert await world.answers.next_for("helper", reaches=reaches) == seen
        assert sorted(looked_up) == ["group/app", "group/other"], "once for each project"
        taken = await world.database.write(lambda tx: world.answers.take(tx, "helper", seen))
        assert taken
        assert taken.body["text"] == "for me"


async def test_paused_agents_and_conversations_get_nothing(tmp_path: Path) -> None:
    async with an_elsewhere_world(tmp_path, clock=ManualClock(), runs=False) as world:
        turn = await world.turn(await world.say("helper"))
        await world.database.write(lambda tx: world.desk.pause_agent(tx, "helper", ALICE_IN_ROOM))
        assert await world.take() is None
        await world.database.write(lambda tx: world.desk.resume_agent(tx, "helper", ALICE_IN_ROOM))
        await world.database.write(lambda tx: conversations.pause(tx, turn.conversation_id, "why"))
        assert await world.take() is None
        await world.database.write(lambda tx: conversations.pause(tx, turn.conversation_id, ""))
        assert await world.take()


async def test_a_wait_ends_when_a_message_comes_and_after_its_time(tmp_path: Path) -> None:
    async with an_elsewhere_world(tmp_path) as world:
        loop = asyncio.get_running_loop()
        waits = [asyncio.create_task(world.answers.next_for("helper", timedelta(seconds=20))) for _ in range(3)]
        await asyncio.sleep(0.1)
        began = loop.time()
        turn_id = await world.say("helper")
        assert await asyncio.wait_for(asyncio.gather(*waits), 10) == [turn_id] * 3
        assert loop.time() - began < 1.5
        takers = [world.database.write(lambda tx: world.answers.take(tx, "helper", turn_id)) for _ in range(3)]
        assert len([one for one in await asyncio.gather(*takers) if one]) == 1
        began = loop.time()
        assert await world.answers.next_for("helper", timedelta(seconds=0.2)) is None
        assert 0.15 < loop.time() - began < 2.0


async def test_rights_are_looked_up_whenever_it_is_taken(tmp_path: Path) -> None:
    decisions: list[Decision | None] = []
    clock = ManualClock()

    async def may_give(conversation: Conversation, turn: Turn) -> Decision:
        del conversation, turn
        decision = decisions.pop(0)
        if decision is None:
            raise Unavailable("GitLab is away")
        return decision

    yes, no = Decision(True, "yes"), Decision(False, "Alice is a Guest now.", "Ask a Maintainer.")
    async with an_elsewhere_world(tmp_path, clock=clock, runs=False, may_give=may_give) as world:
        first, second = await world.say("helper", "1"), await world.say("helper", "2", "$other")
        decisions[:] = [no, None]
        assert await world.take() is None
        assert (await world.turn(first)).state is S.DEAD
        assert (await world.turn(second)).state is S.QUEUED
        assert await world.take() is None  # it is not asked again at once
        clock.advance(MINUTE)
        decisions[:] = [yes]
        assert await world.take()
        clock.advance(LEASE)
        decisions[:] = [None]
        assert await world.take() is None
        clock.advance(MINUTE)
        decisions[:] = [no]
        assert await world.take() is None
        turn = await world.turn(second)
        assert turn.state is S.UNCERTAIN  # it was taken once
        assert "Alice is a Guest now." in turn.why


async def test_words_are_bounded_and_half_characters_do_no_harm(tmp_path: Path) -> None:
    async with an_elsewhere_world(tmp_path, clock=ManualClock(), runs=False) as world:
        turn_id = await world.say("helper")
        taken = await world.take()
        assert taken
        too_long = await world.answer(taken.id, "x" * (LONGEST_PIECE + 1), agent="helper")
        assert too_long.refused is AnswerRefusal.TOO_LONG
        for _ in range(3):
            await world.answer(taken.id, "y" * LONGEST_PIECE, agent="helper", status="z" * 10_000)
        said = await world.answer(taken.id, "\ud83d\0", AnswerEnd.FAILED, agent="helper", why="\udfff" * 10_000)
        assert said.said == 3 * LONGEST_PIECE + 2
        turn = await world.turn(turn_id)
        assert len(turn.answer) == LONGEST_ANSWER
        assert len(turn.why) == 500


async def test_an_answer_that_addresses_another_agent_is_passed_on(tmp_path: Path) -> None:
    async with an_elsewhere_world(tmp_path, clock=ManualClock(), runs=False) as world:
        await world.say("helper")
        taken = await world.take()
        assert taken
        await world.answer(taken.id, "@reviewer please look, too", AnswerEnd.DONE, agent="helper")
        row = await world.database.read(lambda tx: tx.one("SELECT * FROM agent_messages ORDER BY id DESC"))
        assert row
        assert (row["author"], row["text"], row["root"]) == ("helper", "please look, too", "@alice:example.org")


async def test_after_a_restore_nothing_that_was_given_is_given_again_unasked(tmp_path: Path) -> None:
    clock = ManualClock()
    async with an_elsewhere_world(tmp_path, clock=clock, runs=False) as world:
        taken_turn, waiting = await world.say("helper", "1"), await world.say("helper", "2", "$other")
        taken = await world.take()
        assert taken
        clock.advance(MINUTE)
        by = Actor("shell", "root")
        await world.database.write(lambda tx: restored.mark(tx, tx.now - MINUTE, "", by))
        clock.advance(MINUTE)
        await world.waiting.first_look()
        for turn_id in (taken_turn, waiting):
            turn = await world.turn(turn_id)
            assert (turn.state, turn.why[:24]) == (S.UNCERTAIN, "ravebot was restored fro")
        assert await world.take() is None
        assert (await world.answer(taken.id, "x", agent="helper")).refused is AnswerRefusal.OVER


async def test_what_waits_is_given_up_when_its_merge_request_closes(tmp_path: Path) -> None:
    clock = ManualClock()
    async with an_elsewhere_world(tmp_path, clock=clock, runs=False) as world:
        turn_id = await world.say("helper")
        clock.advance(timedelta(hours=2))
        await world.waiting.look()
        assert (await world.turn(turn_id)).state is S.QUEUED
        closed = replace(MR, state="merged", updated_at=NOON + MINUTE)
        await world.database.write(lambda tx: merge_requests.observe(tx, closed))
        await world.waiting.look()
        turn = await world.turn(turn_id)
        assert (turn.state, turn.why) == (S.DEAD, "group/app!1 is merged, so helper does not work on it any more.")


async def test_texts_are_forgotten_with_their_turns(tmp_path: Path) -> None:
    clock = ManualClock()
    async with an_elsewhere_world(tmp_path, clock=clock, runs=False) as world:
        await world.say("helper", "a secret plan")
        taken = await world.take()
        assert taken
        await world.answer(taken.id, "", AnswerEnd.DONE, agent="helper")
        rows = await world.database.read(lambda tx: tx.all("SELECT body FROM deliveries"))
        assert [row["body"] for row in rows] == [""]
        clock.advance(timedelta(days=31))
        await world.database.write(lambda tx: agent_texts.forget(tx, timedelta(days=30), 100))
        assert await world.database.read(lambda tx: tx.all("SELECT * FROM deliveries")) == []
        assert (await world.answer(taken.id, "x", agent="helper")).refused is AnswerRefusal.UNKNOWN


async def test_when_an_agent_last_asked_is_kept_to_the_minute(tmp_path: Path) -> None:
    clock = ManualClock()
    async with an_elsewhere_world(tmp_path, clock=clock, runs=False) as world:
        first = clock.now()
        await world.take()
        clock.advance(timedelta(seconds=59))
        await world.take()
        assert await world.database.read(lambda tx: deliveries.visited(tx, "helper")) == first
        clock.advance(timedelta(seconds=1))
        await world.take()
        assert await world.database.read(lambda tx: deliveries.visited(tx, "helper")) == clock.now()
