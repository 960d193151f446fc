"""What people ask of conversations with agents, over the real database: once, in order, and said when it can't be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ravebot.agents import overview
from ravebot.agents.limits import TalkGuard
from ravebot.agents.model import (
    LONGEST_MESSAGE,
    AgentDoor,
    AgentMessage,
    ApprovalState,
    ConversationId,
    ProcessId,
    TurnId,
    TurnState,
)
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor, MergeRequestRef
from ravebot.store import agent_queue, conversations, events
from ravebot.store.database import Transaction
from ravebot.store.events import Which
from tests.support.agent_yard import ALICE, GINA, MR, AgentYard, an_agent, an_agent_yard
from tests.support.records import a_merge_request

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AgentYard]:
    async with an_agent_yard(tmp_path / "state", an_agent(), an_agent("reviewer")) as world:
        await world.ready()
        yield world


async def do(world: AgentYard, step: Callable[[Transaction], Outcome]) -> tuple[bool, str]:
    outcome = await world.yard.write(step)
    return outcome.accepted, outcome.message


async def test_the_same_message_is_taken_once_also_as_a_webhook_and_a_poll(world: AgentYard) -> None:
    place = {"door": AgentDoor.GITLAB, "place": "7!1", "thread": "discussion", "key": "note 5"}
    first, second = await world.say(**place), await world.say(**place)
    assert (first.accepted, first.message) == (True, "coder gets it.")
    assert (second.accepted, second.message, second.turn_id) == (True, "It was taken before.", None)
    assert len(await world.yard.log("agent.asked")) == 1


async def test_what_a_crash_takes_back_is_taken_as_if_for_the_first_time(world: AgentYard) -> None:
    said = world.addressed()
    before = await world.yard.outbox()

    def broken(tx: Transaction) -> None:
        world.desk.accept(tx, said)
        raise RuntimeError("a crash")

    with pytest.raises(RuntimeError, match="a crash"):
        await world.yard.write(broken)
    assert await world.yard.outbox() == before
    assert await world.yard.log("agent.asked") == []
    assert (await world.yard.write(lambda tx: world.desk.accept(tx, said))).message == "coder gets it."


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"text": "x" * (LONGEST_MESSAGE + 1)}, "16,000 characters. Shorten it."),
        ({"text": " \n"}, "Write what coder is to do"),
        ({"agent": "nobody"}, "`agents` lists them"),
        ({"mr": None}, "Say which, after its name (`@coder !42 …`)"),
        ({"mr": MergeRequestRef(7, 99)}, "Say which"),
    ],
)
async def test_a_refusal_says_what_to_do_and_leaves_nothing(world: AgentYard, facts: dict[str, Any], word: str) -> None:
    outcome = await world.say(**facts)
    assert not outcome.accepted
    assert word in outcome.message
    assert await world.yard.read(lambda tx: tx.all("SELECT * FROM conversations")) == []


async def test_a_closed_merge_request_and_another_one_in_the_same_thread_are_refused(world: AgentYard) -> None:
    await world.yard.told(a_merge_request(2, state="closed"), may_start=False)
    closed = await world.say(mr=MergeRequestRef(7, 2), thread="$other")
    assert closed.message.startswith("group/app!2 is closed.")
    await world.taken()
    assert "This thread is about group/app!1." in (await world.say(mr=MergeRequestRef(7, 2))).message
    await world.taken(mr=None)  # the thread says which


async def test_a_fork_is_worked_on_only_where_that_is_allowed(tmp_path: Path) -> None:
    fork = a_merge_request(3, source_project_id=8, approved_sha="a" * 40)
    async with an_agent_yard(tmp_path / "state", an_agent(), an_agent("brave", forks=True)) as world:
        await world.yard.told(fork)
        assert "coder is off in forks" in (await world.say(mr=fork.ref)).message
        assert (await world.say(mr=fork.ref, agent="brave")).accepted


async def test_messages_wait_in_their_order_and_it_is_said_how_many_are_before(world: AgentYard) -> None:
    await world.taken("one")
    assert (await world.say("two")).message == "coder gets it after the one before it."
    assert (await world.say("three")).message == "coder gets it after the 2 before it."
    assert await world.waiting((await world.conversation()).id) == ["one", "two", "three"]


async def test_fifty_conversations_of_twenty_messages_each_keep_their_order(tmp_path: Path) -> None:
    eager = an_agent(limits={"messages_per_day": 10_000})
    async with an_agent_yard(tmp_path / "state", eager, person=10_000) as world:
        await world.ready()

        def say_all(tx: Transaction) -> None:
            for number in range(20):
                for thread in range(50):
                    said = world.addressed(f"{number}", thread=f"$thread{thread}", key=f"${thread}-{number}")
                    assert world.desk.accept(tx, said).accepted

        await world.yard.write(say_all)
        for thread in range(50):
            conversation = await world.conversation(thread=f"$thread{thread}")
            assert await world.waiting(conversation.id) == [str(number) for number in range(20)]


async def test_a_turn_that_waits_is_cancelled_at_once(world: AgentYard) -> None:
    turn_id = await world.taken()
    conversation = await world.conversation()
    cancel = lambda tx: world.desk.cancel(tx, conversation.id, GINA)  # noqa: E731 - used three times
    assert await do(world, cancel) == (True, "It is cancelled: coder was not given it.")
    turn = await world.turn(turn_id)
    assert (turn.state, turn.why) == (TurnState.CANCELLED, "Cancelled by @gina:example.org (matrix).")
    assert await do(world, cancel) == (False, "Nothing runs or waits here, so there is nothing to cancel.")


async def test_a_turn_that_runs_is_told_to_stop_once_and_a_second_time_says_so(world: AgentYard) -> None:
    turn_id = await world.taken("one")
    await world.given(turn_id)
    await world.taken("two")
    conversation = await world.conversation()
    cancel = lambda tx: world.desk.cancel(tx, conversation.id, GINA)  # noqa: E731 - used twice
    assert await do(world, cancel) == (True, "coder is told to stop. 1 more waits here.")
    assert (await world.turn(turn_id)).cancelled_by == "@gina:example.org (matrix)"
    accepted, message = await do(world, cancel)
    assert accepted
    assert message.startswith("coder was told to stop already, by @gina:example.org (matrix).")
    assert len(await world.yard.log("agent.cancel_asked")) == 1


async def test_the_log_says_when_an_agent_gets_a_message_and_is_done_and_who_decided_and_no_word_of_it(
    world: AgentYard,
) -> None:
    with capture_logs() as logged:
        turn_id = await world.taken("the secret plan")
        process = await world.given(turn_id)
        asked = await world.yard.write(
            lambda tx: world.progress.asks(tx, turn_id, "Run the secret plan", '{"run": "secret"}')
        )
        assert asked
        await world.decide(asked, ApprovalState.GRANTED)
        await world.ended(turn_id, "the secret answer")
        with pytest.raises(RuntimeError):
            await world.yard.write(fails_after_its_log)
    about = {
        "agent": "coder",
        "conversation": 1,
        "turn": turn_id,
        "mr": f"{MR.ref.project_id}!{MR.ref.iid}",
        "log_level": "info",
    }
    assert logged == [
        {"event": "agent has a message", "process": process.id, **about},
        {
            "event": "approval decided", "approval": asked.id, "kind": "tool", "state": "granted", "by": str(ALICE),
            "log_level": "info",
        },
        {"event": "agent's turn ended", "state": "done", "by": "ravebot", **about},
    ]  # fmt: skip


def fails_after_its_log(tx: Transaction) -> None:
    """What is not committed is not logged."""
    tx.log("nothing happened")
    raise RuntimeError


async def test_steering_stops_what_runs_and_comes_before_what_waits(world: AgentYard) -> None:
    running = await world.taken("one")
    await world.given(running)
    for text in ("two", "three"):
        await world.taken(text)
    said = world.addressed("this instead")
    steered = await world.yard.write(lambda tx: world.desk.steer(tx, said))
    conversation = await world.conversation()
    assert steered.message == "coder is told to stop, and gets this next."
    assert (await world.turn(running)).cancelled_by
    assert await world.waiting(conversation.id) == ["one", "this instead", "two", "three"]
    again = await world.yard.write(lambda tx: world.desk.steer(tx, said))
    assert (again.accepted, again.message) == (True, "It was taken before.")
    assert await world.waiting(conversation.id) == ["one", "this instead", "two", "three"]
    await world.taken("four")
    await world.yard.write(lambda tx: world.desk.steer(tx, world.addressed("first of all")))
    assert await world.waiting(conversation.id) == ["one", "first of all", "this instead", "two", "three", "four"]


async def test_steering_an_agent_that_does_nothing_is_a_plain_message(world: AgentYard) -> None:
    said = world.addressed("go")
    assert (await world.yard.write(lambda tx: world.desk.steer(tx, said))).message == "coder gets it."
    first = world.addressed("this first")
    outcome = await world.yard.write(lambda tx: world.desk.steer(tx, first))
    assert outcome.message == "coder gets it next, before what waits."
    assert await world.waiting((await world.conversation()).id) == ["this first", "go"]


@pytest.mark.parametrize("state", [TurnState.FAILED, TurnState.UNCERTAIN, TurnState.DEAD, TurnState.CANCELLED])
async def test_what_did_not_get_through_is_given_once_more_and_only_once(world: AgentYard, state: TurnState) -> None:
    turn_id = await world.taken()
    await world.given(turn_id)
    await world.ended(turn_id, state=state)
    again = await world.yard.write(lambda tx: world.desk.resend(tx, turn_id, GINA))
    assert again.accepted
    assert again.turn_id
    assert ("done twice" in again.message) is (state is TurnState.UNCERTAIN)
    turn = await world.turn(again.turn_id)
    assert (turn.attempt, turn.state) == (2, TurnState.QUEUED)
    second = await do(world, lambda tx: world.desk.resend(tx, turn_id, GINA))
    assert second == (False, "It was sent again already. coder was not given it yet, and gets it when its turn comes.")
    await world.given(again.turn_id)
    third = await do(world, lambda tx: world.desk.resend(tx, turn_id, GINA))
    assert third == (False, "It was sent again already. coder is at it: cancel it first, if it is to begin anew.")
    await world.ended(again.turn_id, "done")
    fourth = await do(world, lambda tx: world.desk.resend(tx, turn_id, GINA))
    assert fourth == (False, "coder has answered it. To have it done again, write it again.")


async def test_resending_in_a_thread_means_its_last_message(world: AgentYard) -> None:
    turn_id = await world.taken("one")
    conversation = await world.conversation()
    await world.answered(turn_id, "done")
    failed = await world.taken("two")
    await world.given(failed)
    await world.ended(failed, state=TurnState.FAILED)
    assert (await do(world, lambda tx: world.desk.resend_last(tx, conversation.id, GINA)))[0]
    assert await world.waiting(conversation.id) == ["two"]


async def test_a_message_whose_text_is_not_kept_any_more_is_not_sent_again(world: AgentYard) -> None:
    turn_id = await world.taken()
    await world.yard.write(lambda tx: world.desk.cancel(tx, tx_conversation(tx, turn_id), ALICE))
    await world.yard.write(lambda tx: tx.execute("UPDATE agent_messages SET text = ''"))
    refused = await do(world, lambda tx: world.desk.resend(tx, turn_id, ALICE))
    assert refused == (False, "Its text is not kept any more: write it again.")


async def test_dead_letters_are_listed_until_somebody_drops_them_or_sends_them_again(world: AgentYard) -> None:
    lost = [await world.taken(f"{number}", thread=f"$t{number}") for number in range(3)]
    for turn_id in lost:
        await world.given(turn_id)
        await world.ended(turn_id, state=TurnState.UNCERTAIN)
    assert await dead_letters(world) == lost[::-1]
    assert (await do(world, lambda tx: world.desk.drop(tx, lost[0], GINA))) == (True, f"Turn {lost[0]} is dropped.")
    assert (await do(world, lambda tx: world.desk.drop(tx, lost[0], GINA)))[1].endswith(
        "not on the list of dead letters."
    )
    await world.yard.write(lambda tx: world.desk.resend(tx, lost[1], GINA))
    assert await dead_letters(world) == [lost[2]]
    fresh = await world.taken(thread="$fresh")
    assert (await do(world, lambda tx: world.desk.drop(tx, fresh, GINA))) == (
        False, f"Turn {fresh} is queued: cancel it instead.",
    )  # fmt: skip


async def test_an_agent_and_a_conversation_are_paused_and_resumed_once(world: AgentYard) -> None:
    await world.taken()
    conversation = await world.conversation()
    desk = world.desk
    for pause, again, resume, nothing in (
        (lambda tx: desk.pause_agent(tx, "coder", GINA), "coder is paused already, by @gina:example.org (matrix).",
         lambda tx: desk.resume_agent(tx, "coder", GINA), "coder is not paused."),
        (lambda tx: desk.pause(tx, conversation.id, GINA), "This conversation is paused already",
         lambda tx: desk.resume(tx, conversation.id, GINA), "This conversation is not paused."),
    ):  # fmt: skip
        assert (await do(world, pause))[0]
        assert (await do(world, pause))[1].startswith(again)
        assert (await do(world, resume))[0]
        assert (await do(world, resume))[1] == nothing
    assert [len(await world.yard.log(kind)) for kind in ("agent.paused", "agent.resumed")] == [2, 2]
    assert not (await do(world, lambda tx: desk.pause_agent(tx, "nobody", GINA)))[0]


async def test_what_a_person_paused_is_taken_but_waits_until_somebody_resumes_it(world: AgentYard) -> None:
    await world.taken()
    conversation = await world.conversation()
    await world.yard.write(lambda tx: world.desk.pause(tx, conversation.id, GINA))
    outcome = await world.say()
    assert outcome.message.endswith("nothing is given until somebody says `resume`.")
    assert (await world.conversation()).paused == "paused by @gina:example.org (matrix)"


async def test_budgets_are_of_the_agent_and_of_the_person_and_end_with_the_utc_day(tmp_path: Path) -> None:
    async with an_agent_yard(tmp_path / "state", an_agent(limits={"messages_per_day": 3})) as world:
        await world.ready()
        for number in range(3):
            await world.taken(thread=f"$t{number}", author=(ALICE, GINA)[number % 2])
        refused = await world.say()
        assert not refused.accepted
        assert refused.message == (
            "coder has had its 3 messages of today (agents[].limits.messages_per_day). From 00:00 UTC on there are new"
            " ones."
        )
        spent = await world.yard.read(lambda tx: overview.spent_for(tx, world.config, Actor("gitlab", "alice")))
        assert (spent.messages, spent.left) == (2, 498)
        world.yard.pass_by(hours=12)
        await world.taken()
        world.yard.pass_by(days=-400)  # a clock that jumps, in both directions
        await world.taken()
        world.yard.pass_by(days=400)
        spent = await world.yard.read(lambda tx: overview.spent_by(tx, world.config.agents[0]))
        assert (spent.day, spent.messages) == ("2026-01-02", 1)


async def test_the_time_that_an_agent_worked_is_counted_for_it_and_for_who_asked(world: AgentYard) -> None:
    turn_id = await world.taken()
    await world.given(turn_id)
    world.yard.pass_by(seconds=90)
    running = await world.yard.read(lambda tx: overview.spent_by(tx, world.config.agents[0]))
    await world.ended(turn_id, "done")
    world.yard.pass_by(hours=1)
    person = await world.yard.read(lambda tx: overview.spent_for(tx, world.config, ALICE))
    other = await world.yard.read(lambda tx: overview.spent_for(tx, world.config, GINA))
    assert (running.seconds, person.seconds, other.seconds) == (90, 90, 0)


async def test_an_answer_is_passed_on_to_the_agent_that_it_addresses(world: AgentYard) -> None:
    await world.answered(await world.taken(), "@reviewer please check\nline 2")
    conversation = await world.conversation("reviewer")
    turn_id = (await world.yard.read(lambda tx: conversations.open_turns(tx, conversation.id)))[0].id
    message = await world.yard.read(lambda tx: message_of(tx, turn_id))
    assert (message.text, message.author, message.root, message.hops) == (
        "please check\nline 2", Actor("agent", "coder"), ALICE, 1,
    )  # fmt: skip
    assert (conversation.mr, conversation.own_thread) == (MR.ref, False)


@pytest.mark.parametrize(
    "answer",
    [
        "!rave stop !1", "Well, @reviewer please check", "done\n@reviewer please check", "@coder go on",
        "@nobody go on", "@reviewer", "> @reviewer please check", "@all look", "@reviewers look", "reviewer: look",
    ],
)  # fmt: skip
async def test_an_answer_that_addresses_no_other_agent_does_nothing(world: AgentYard, answer: str) -> None:
    await world.answered(await world.taken(), answer)
    assert await world.yard.read(conversations.with_open_turns) == ()
    assert (await world.yard.latest(MR)).state.value == "ready"
    assert await world.remarks() == []


async def test_a_turn_is_never_given_to_a_second_process(world: AgentYard) -> None:
    turn_id = await world.taken()
    process = await world.given(turn_id)

    def give(tx: Transaction, to: ProcessId) -> bool:
        return world.progress.given(tx, turn_id, to, timedelta(minutes=1))

    assert await world.yard.write(lambda tx: give(tx, process.id))
    assert not await world.yard.write(lambda tx: give(tx, ProcessId(process.id + 1)))
    assert (await world.turn(turn_id)).process_id == process.id


async def test_only_an_answer_that_came_to_its_end_is_passed_on(world: AgentYard) -> None:
    turn_id = await world.taken()
    await world.given(turn_id)
    await world.ended(turn_id, "@reviewer please check", TurnState.FAILED)
    assert await world.yard.read(conversations.with_open_turns) == ()


async def test_an_agent_that_may_not_work_there_is_not_asked_by_another(tmp_path: Path) -> None:
    elsewhere = an_agent("reviewer", projects=["other/*"])
    async with an_agent_yard(tmp_path / "state", an_agent(), elsewhere) as world:
        await world.ready()
        await world.answered(await world.taken(), "@reviewer please check")
        (remark,) = await world.remarks()
        assert remark.startswith("reviewer does not get what coder wrote to it. reviewer does not serve group/app.")
        assert await world.yard.read(conversations.with_open_turns) == ()


@pytest.mark.parametrize(("texts", "guard"), [(False, TalkGuard.SAME), (True, TalkGuard.HOPS)])
async def test_two_agents_that_echo_each_other_end_at_the_cap_and_it_is_said_once(
    world: AgentYard, texts: bool, guard: TalkGuard
) -> None:
    turn_id: TurnId | None = await world.taken()
    turns = 0
    while turn_id is not None:
        agent = await agent_of(world, turn_id)
        other = "reviewer" if agent == "coder" else "coder"
        await world.answered(turn_id, f"@{other} echo {turns if texts else ''}")
        turns += 1
        turn_id = await first_open(world)
    assert turns == (5 if texts else 3)
    assert await world.remarks() == [
        f"{other} does not get what {agent} wrote to it. Paused: {guard.value}. It goes on when a person writes to one"
        " of them here."
    ]
    assert {(await world.conversation(name)).paused for name in ("coder", "reviewer")} == {guard.value}
    await world.taken("go on")
    assert {(await world.conversation(name)).paused for name in ("coder", "reviewer")} == {""}


async def test_a_paused_thread_takes_nothing_of_agents_and_says_it_no_second_time(world: AgentYard) -> None:
    for agent in ("coder", "reviewer"):
        await world.answered(await world.taken(agent=agent), "hello")
    turn_id = await world.taken()
    await world.given(turn_id)
    for _ in range(2):
        await world.say("again", author=Actor("agent", "reviewer"), root=ALICE, hops=9)
    await world.ended(turn_id, "@reviewer please check")
    assert len(await world.remarks()) == 1
    assert await world.yard.read(conversations.with_open_turns) == ()
    assert [data["why"] for data in await world.yard.log("agent.paused")] == [TalkGuard.HOPS.value] * 2


async def test_the_log_has_who_and_what_and_never_the_words(world: AgentYard) -> None:
    turn_id = await world.taken("the secret plan")
    await world.answered(turn_id, "a secret answer")
    (asked,), (ended,) = await world.yard.log("agent.asked"), await world.yard.log("agent.turn_ended")
    about = {"agent": "coder", "conversation": 1, "message": 1, "attempt": 1}
    assert (asked, ended) == (about, {**about, "state": "done"})
    assert "secret" not in str(await world.yard.read(lambda tx: [event.data for event in events.newest(tx, 1000)]))
    verified = await world.yard.read(events.verify)
    assert verified.broken_at is None
    assert any(
        "agent.asked" in line.kind
        for line in await world.yard.read(lambda tx: events.lines(tx, 50, Which((MR.ref.project_id,), MR.ref.iid)))
    )


async def test_the_overview_shows_what_runs_what_waits_and_who_paused(world: AgentYard) -> None:
    running = await world.taken("one")
    await world.given(running)
    await world.taken("two")
    await world.yard.write(lambda tx: world.desk.pause_agent(tx, "coder", GINA))
    conversation = await world.conversation()
    pending = await world.yard.read(lambda tx: overview.pending(tx, conversation.id))
    assert pending
    assert pending.running
    assert (pending.running.id, len(pending.waiting)) == (running, 1)
    coder, reviewer = await world.yard.read(lambda tx: overview.agents(tx, world.config))
    assert (coder.running, coder.waiting, coder.paused_by) == (1, 1, "@gina:example.org (matrix)")
    assert (reviewer.name, reviewer.running, reviewer.waiting, reviewer.spent.messages) == ("reviewer", 0, 0, 0)


def tx_conversation(tx: Transaction, turn_id: TurnId) -> ConversationId:
    turn = conversations.turn(tx, turn_id)
    assert turn
    return turn.conversation_id


def message_of(tx: Transaction, turn_id: TurnId) -> AgentMessage:
    turn = conversations.turn(tx, turn_id)
    assert turn
    return conversations.message(tx, turn.message_id)


async def agent_of(world: AgentYard, turn_id: TurnId) -> str:
    found = await world.yard.read(lambda tx: conversations.get(tx, tx_conversation(tx, turn_id)))
    assert found
    return found.agent


async def first_open(world: AgentYard) -> TurnId | None:
    def read(tx: Transaction) -> TurnId | None:
        ids = conversations.with_open_turns(tx)
        return conversations.open_turns(tx, ids[0])[0].id if ids else None

    return await world.yard.read(read)


async def dead_letters(world: AgentYard) -> list[TurnId]:
    return [turn.id for turn in await world.yard.read(lambda tx: agent_queue.dead_letters(tx, 50))]


async def test_one_agent_writes_to_another_at_most_twenty_times_a_minute_in_all_threads(world: AgentYard) -> None:
    by_coder = {"agent": "reviewer", "author": Actor("agent", "coder"), "root": ALICE, "hops": 1}
    for number in range(20):
        assert (await world.say(f"{number}", thread=f"$t{number}", **by_coder)).accepted
    refused = await world.say("one more", thread="$t0", **by_coder)
    assert refused.message.startswith(f"Paused: {TalkGuard.PAIR.value}.")
    world.yard.pass_by(seconds=61)
    assert (await world.say("one more", thread="$t1", **by_coder)).accepted


async def test_agents_write_at_most_thirty_messages_in_a_thread_until_a_person_speaks(world: AgentYard) -> None:
    turns = ("coder", "reviewer")

    async def pass_on(number: int) -> Outcome:
        world.yard.pass_by(seconds=10)
        author = Actor("agent", turns[number % 2])
        return await world.say(f"{number}", agent=turns[1 - number % 2], author=author, root=ALICE, hops=1)

    for number in range(30):
        assert (await pass_on(number)).accepted
    assert (await pass_on(30)).message.startswith(f"Paused: {TalkGuard.IN_A_ROW.value}.")
    await world.taken("go on")
    assert (await pass_on(31)).accepted


Method = Callable[[AgentYard, TurnId, ConversationId], Callable[[Transaction], Outcome]]
METHODS: dict[str, Method] = {
    "cancel": lambda w, _, c: lambda tx: w.desk.cancel(tx, c, GINA),
    "resend": lambda w, t, _: lambda tx: w.desk.resend(tx, t, GINA),
    "drop": lambda w, t, _: lambda tx: w.desk.drop(tx, t, GINA),
    "pause": lambda w, _, c: lambda tx: w.desk.pause(tx, c, GINA),
    "resume": lambda w, _, c: lambda tx: w.desk.resume(tx, c, GINA),
    "pause_agent": lambda w, _t, _c: lambda tx: w.desk.pause_agent(tx, "coder", GINA),
    "resume_agent": lambda w, _t, _c: lambda tx: w.desk.resume_agent(tx, "coder", GINA),
}


@pytest.mark.parametrize("name", METHODS)
async def test_the_second_time_changes_nothing(world: AgentYard, name: str) -> None:
    failed = await world.taken("one")
    await world.given(failed)
    await world.ended(failed, state=TurnState.FAILED)
    running = await world.taken("two")
    await world.given(running)
    conversation = await world.conversation()
    step = METHODS[name](world, failed, conversation.id)
    await world.yard.write(step)
    once = await tables(world)
    await world.yard.write(step)
    assert await tables(world) == once


async def tables(world: AgentYard) -> list[tuple[object, ...]]:
    """Everything that is stored of agents, what is told and what is logged."""
    names = ("conversations", "agent_messages", "agent_turns", "agent_budgets", "paused_agents", "outbox", "events")

    def read(tx: Transaction) -> list[tuple[object, ...]]:
        return [tuple(row) for name in names for row in tx.all(f"SELECT * FROM {name}")]

    return await world.yard.read(read)
