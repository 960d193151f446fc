"""How turns follow their sandbox: what waits, what is given up, and what a sandbox's end means: row by row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from ravebot.agents.model import AgentDoor, ApprovalState, TurnId, TurnState
from ravebot.agents.transports.acp.situation import MOST_TRIES, Settling
from ravebot.agents.waiting import WaitingLoop
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.model import RAVEBOT, EndReason, MachineState
from ravebot.store import approvals, conversations, machines, merge_requests, restored, sandboxes
from ravebot.store.database import Transaction
from tests.support.agent_yard import ALICE, GINA, MR, AgentYard, an_agent, an_agent_yard
from tests.support.records import BY_ALICE, A, B, a_merge_request

pytestmark = pytest.mark.integration
S, P = TurnState, ApprovalState


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AgentYard]:
    async with an_agent_yard(tmp_path / "state") as world:
        yield world


async def recorded(world: AgentYard) -> None:
    """The merge request is known, and has no sandbox."""
    await world.yard.told(MR, may_start=False)


async def stop(world: AgentYard) -> None:
    await world.yard.write(lambda tx: world.yard.intents.stop(tx, MR, BY_ALICE))


async def end(world: AgentYard) -> None:
    """Its machine is gone, after it was stopped."""
    machine = await world.yard.machine(MR)
    await world.yard.write(lambda tx: machine_life.gone(tx, world.yard.lifecycle, machine))


async def lose(world: AgentYard) -> None:
    machine = await world.yard.machine(MR)
    await world.yard.write(lambda tx: machine_life.lost(tx, world.yard.lifecycle, machine))


async def restart(world: AgentYard) -> None:
    machine = await world.yard.machine(MR)
    await world.yard.write(lambda tx: machine_life.restarted(tx, world.yard.lifecycle, machine))


async def rebuild(world: AgentYard) -> None:
    await world.yard.write(lambda tx: world.yard.intents.rebuild(tx, MR, BY_ALICE))


async def expire(world: AgentYard) -> None:
    world.yard.pass_by(hours=3)
    while not await world.yard.is_in(MR, "stopping"):  # it is warned of first
        await world.yard.happens(await world.yard.latest(MR), Happened.EXPIRED)
        world.yard.pass_by(hours=1)


async def merge(world: AgentYard) -> None:
    await world.yard.told(replace(MR, state="merged"))


async def become_ready(world: AgentYard) -> None:
    """Go on with the queued sandbox until it is announced."""
    await world.yard.begin(await world.yard.latest(MR))
    await chain(world)


async def chain(world: AgentYard) -> None:
    """Its machine is up, and its chain runs to the end."""
    machine = await world.yard.machine(MR)
    await world.yard.write(lambda tx: machine_life.claim(tx, world.yard.lifecycle, machine))
    await world.yard.announced(await world.yard.latest(MR))


async def let_start(world: AgentYard) -> None:
    """A person answers yes, which is carried out."""
    (asked,) = await world.start_asked()
    await world.decide(asked, P.GRANTED)

    def carry_out(tx: Transaction) -> None:
        mr = merge_requests.get(tx, MR.ref)
        assert mr
        assert approvals.done(tx, asked, world.yard.intents.start(tx, mr, ALICE).message)

    await world.yard.write(carry_out)


async def test_with_a_ready_sandbox_a_message_is_queued_and_nothing_is_asked(world: AgentYard) -> None:
    await world.ready()
    assert await world.state(await world.taken()) is S.QUEUED
    assert await world.start_asked() == []
    assert await world.remarks() == []


async def test_while_its_sandbox_is_started_a_message_waits_and_is_queued_when_it_is_ready(world: AgentYard) -> None:
    await world.yard.queued(MR)
    outcome = await world.say()
    assert outcome.message == "The sandbox of group/app!1 is being started: coder gets the message when it is ready."
    turn_id = outcome.turn_id
    assert turn_id
    await world.taken("another")
    assert await world.promote() == 0
    await world.yard.begin(await world.yard.latest(MR))
    machine = await world.yard.machine(MR)
    await world.yard.write(lambda tx: machine_life.claim(tx, world.yard.lifecycle, machine))
    assert (await world.promote(), await world.state(turn_id)) == (0, S.ACCEPTED)
    await world.yard.announced(await world.yard.latest(MR))
    assert (await world.promote(), await world.state(turn_id)) == (2, S.QUEUED)
    assert await world.promote() == 0
    assert await world.remarks() == []


async def test_where_no_words_answer_a_message_it_is_said_once_what_it_waits_for(world: AgentYard) -> None:
    await world.yard.queued(MR)
    for text in ("one", "two"):
        await world.taken(text, door=AgentDoor.GITLAB, place="7!1", thread="discussion", author=BY_ALICE)
    said = "The sandbox of group/app!1 is being started: coder gets the message when it is ready."
    assert await world.remarks() == [said]


async def test_without_a_sandbox_who_asked_is_asked_once_whether_to_start_one(world: AgentYard) -> None:
    await recorded(world)
    first = await world.say()
    assert first.message == (
        "group/app!1 has no sandbox: approval 1 asks @alice:example.org whether to start one. coder gets the message"
        " when it is ready."
    )
    await world.say("another", author=GINA)
    (asked,) = await world.start_asked()
    assert (asked.only_by, asked.turn_id, asked.mr, asked.state) == (ALICE.name, first.turn_id, MR.ref, P.OPEN)
    assert await world.promote() == 0
    assert first.turn_id
    assert await world.state(first.turn_id) is S.ACCEPTED


async def test_a_yes_starts_the_sandbox_and_then_the_message_is_given(world: AgentYard) -> None:
    await recorded(world)
    turn_id = await world.taken()
    await let_start(world)
    assert (await world.promote(), await world.state(turn_id)) == (0, S.ACCEPTED)
    await become_ready(world)
    assert (await world.promote(), await world.state(turn_id)) == (1, S.QUEUED)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (P.DENIED, f"{ALICE} did not want a sandbox to be started. Ask again to be asked once more."),
        (P.EXPIRED, "Nobody answered in time whether to start a sandbox. Start one, then ask again."),
    ],
)  # fmt: skip
async def test_a_no_gives_up_what_waited_and_a_later_message_is_asked_for_again(
    world: AgentYard, state: ApprovalState, why: str
) -> None:
    await recorded(world)
    turns = [await world.taken(text) for text in ("one", "two")]
    (asked,) = await world.start_asked()
    world.yard.pass_by(seconds=10)
    await world.decide(asked, state)
    assert await world.promote() == 2
    assert [((await world.turn(one)).state, (await world.turn(one)).why) for one in turns] == [(S.DEAD, why)] * 2
    world.yard.pass_by(seconds=10)
    later = await world.taken("three")
    assert (await world.promote(), await world.state(later)) == (0, S.ACCEPTED)
    assert len(await world.start_asked()) == 2


async def test_a_start_that_was_granted_and_could_not_be_made_gives_up_with_its_reason(world: AgentYard) -> None:
    await recorded(world)
    turn_id = await world.taken()
    (asked,) = await world.start_asked()
    await world.decide(asked, P.GRANTED)
    assert (await world.promote(), await world.state(turn_id)) == (0, S.ACCEPTED)
    await world.yard.write(lambda tx: approvals.done(tx, asked, "gina has not the right any more."))
    assert await world.promote() == 1
    assert (await world.turn(turn_id)).why == "No sandbox was started: gina has not the right any more."


async def test_when_the_turn_is_cancelled_for_which_was_asked_the_next_one_asks(world: AgentYard) -> None:
    await recorded(world)
    await world.taken("one")
    behind = await world.taken("two", author=GINA)
    conversation = await world.conversation()
    await world.yard.write(lambda tx: world.desk.cancel(tx, conversation.id, ALICE))
    (asked,) = await world.start_asked()
    await world.decide(asked, P.WITHDRAWN, RAVEBOT)
    assert await world.promote() == 1
    assert [(one.turn_id, one.only_by) for one in (await world.start_asked())[1:]] == [(behind, GINA.name)]
    assert await world.promote() == 0


async def test_what_waits_longer_than_a_day_is_given_up(world: AgentYard) -> None:
    await world.yard.queued(MR)
    turn_id = await world.taken()
    world.yard.pass_by(hours=23)
    assert await world.promote() == 0
    world.yard.pass_by(hours=2)
    assert await world.promote() == 1
    turn = await world.turn(turn_id)
    assert (turn.state, "waited a day" in turn.why) == (S.DEAD, True)


async def test_a_clock_that_is_set_back_gives_nothing_up(world: AgentYard) -> None:
    await world.yard.queued(MR)
    turn_id = await world.taken()
    world.yard.pass_by(days=-30)
    assert (await world.promote(), await world.state(turn_id)) == (0, S.ACCEPTED)


async def test_when_the_merge_request_closes_what_waits_dies_and_says_why(world: AgentYard) -> None:
    await world.yard.queued(MR)
    turn_id = await world.taken()
    await merge(world)
    assert await world.promote() == 1
    turn = await world.turn(turn_id)
    assert (turn.state, turn.why) == (S.DEAD, "group/app!1 is merged, so coder does not work on it any more.")


Change = Callable[[AgentYard], Awaitable[None]]


@pytest.mark.parametrize(
    ("change", "running", "waiting", "why"),
    [
        (stop, S.UNCERTAIN, S.ACCEPTED, "how far coder got: its sandbox ended"),
        (expire, S.UNCERTAIN, S.ACCEPTED, "how far coder got: its sandbox ended"),
        (lose, S.UNCERTAIN, S.ACCEPTED, "how far coder got: its sandbox ended"),
        (rebuild, S.UNCERTAIN, S.ACCEPTED, "how far coder got: its sandbox ended"),
        (restart, S.UNCERTAIN, S.ACCEPTED, "how far coder got: its machine was restarted"),
        (merge, S.UNCERTAIN, S.DEAD, "how far coder got: its sandbox ended"),
    ],
)
async def test_what_a_change_of_the_sandbox_does_to_what_runs_and_what_waits(
    world: AgentYard, change: Change, running: TurnState, waiting: TurnState, why: str
) -> None:
    await world.ready()
    runs, waits = await world.taken("one"), await world.taken("two")
    process = await world.given(runs)
    await change(world)
    assert await world.promote() > 0
    turn = await world.turn(runs)
    assert (turn.state, await world.state(waits)) == (running, waiting)
    assert why in turn.why
    assert turn.why.endswith("To have it done again, say `!rave resend` here.")
    ended = await world.yard.read(lambda tx: conversations.process(tx, process.id))
    assert ended
    assert ended.ended_at
    told = await world.remarks()
    assert len(told) == (waiting is S.ACCEPTED)
    assert await world.promote() == 0
    assert await world.remarks() == told


async def test_what_waits_is_given_in_the_next_sandbox(world: AgentYard) -> None:
    await world.ready()
    waits = await world.taken()
    await restart(world)
    await world.promote()
    assert await world.state(waits) is S.ACCEPTED
    await chain(world)
    assert (await world.promote(), await world.state(waits)) == (1, S.QUEUED)


async def test_an_agent_that_did_nothing_is_known_to_be_gone_with_its_sandbox(world: AgentYard) -> None:
    await world.ready()
    turn_id = await world.taken()
    process = await world.given(turn_id)
    await world.ended(turn_id, "done")
    await stop(world)
    await end(world)
    assert await world.promote() == 1
    ended = await world.yard.read(lambda tx: conversations.process(tx, process.id))
    assert ended
    assert ended.ended == "its sandbox ended"
    assert await world.state(turn_id) is S.DONE


async def test_what_runs_goes_on_when_the_machine_is_unwell_and_what_is_new_waits(world: AgentYard) -> None:
    await world.ready()
    runs, queued = await world.taken("one"), await world.taken("two")
    await world.given(runs)
    await set_unwell(world, True)
    outcome = await world.say("three", thread="$other")
    assert outcome.message == "The machine of group/app!1 does not answer: coder gets the message when it does."
    new = outcome.turn_id
    assert new
    assert await world.promote() == 0
    assert [await world.state(one) for one in (runs, queued, new)] == [S.DELIVERED, S.QUEUED, S.ACCEPTED]
    await set_unwell(world, False)
    assert (await world.promote(), await world.state(new)) == (1, S.QUEUED)


async def test_that_an_agent_cant_be_reached_is_said_once_long_before_its_message_is_given_up(world: AgentYard) -> None:
    await world.ready()
    turn_id = await world.taken()
    told = []
    for _ in range(MOST_TRIES - 1):
        turn = await world.turn(turn_id)
        await world.yard.write(partial(Settling(world.progress).postpone, turn=turn, process=None, why="no answer"))
        told.append(await world.remarks())
    said = "coder can't be reached: no answer. It is tried again; you need not ask again."
    assert told == [[], [], *[[said]] * (MOST_TRIES - 3)]
    await world.yard.write(lambda tx: Settling(world.progress).postpone(tx, turn, None, "no answer"))
    assert await world.state(turn_id) is TurnState.DEAD


async def test_a_cancelled_agent_that_cant_be_reached_leaves_its_turn_uncertain_within_a_minute(
    world: AgentYard,
) -> None:
    await world.ready()
    turn_id = await world.taken()
    process = await world.given(turn_id)
    settling, waited = Settling(world.progress), timedelta(0)

    async def fails() -> timedelta:
        turn = await world.turn(turn_id)
        await world.yard.write(partial(settling.postpone, turn=turn, process=process, why="no answer"))
        turn = await world.turn(turn_id)
        return turn.next_try_at - world.yard.clock.now() if turn.next_try_at else timedelta(0)

    for _ in range(10):
        assert await fails()
    turn = await world.turn(turn_id)
    outcome = await world.yard.write(lambda tx: world.desk.cancel(tx, turn.conversation_id, ALICE))
    assert outcome.accepted
    assert (await world.turn(turn_id)).next_try_at is None, "it is tried at once"
    while pause := await fails():
        waited += pause
        world.yard.pass_by(seconds=pause.total_seconds())
    assert timedelta(minutes=1) <= waited <= timedelta(minutes=2)
    ended = await world.turn(turn_id)
    assert ended.state is S.UNCERTAIN
    assert "could not be reached to have it stop, as @alice:example.org (matrix) wants" in ended.why


async def test_new_code_under_a_turn_is_said_once_and_the_turn_goes_on(world: AgentYard) -> None:
    await world.ready()
    turn_id = await world.taken()
    await world.given(turn_id)
    assert (await world.turn(turn_id)).sha == A
    await run_code(world, B)
    assert await world.promote() == 1
    said = "Commit bbbbbbbb was copied into the sandbox while coder works on aaaaaaaa."
    assert await world.remarks() == [f"{said} It goes on, and may not know of the new code."]
    assert await world.promote() == 0
    assert await world.state(turn_id) is S.DELIVERED
    await world.ended(turn_id, "done")
    await run_code(world, A)
    assert await world.promote() == 0


async def test_an_agent_works_in_a_sandbox_that_is_kept_after_its_set_up_failed(world: AgentYard) -> None:
    await world.ready()
    sandbox = await world.yard.latest(MR)
    await world.yard.write(lambda tx: sandboxes.save(tx, replace(sandbox, end_reason=EndReason.FAILED)))
    assert await world.state(await world.taken()) is S.QUEUED


async def test_agents_that_were_taken_from_the_configuration_get_nothing_that_waited(tmp_path: Path) -> None:
    async with an_agent_yard(tmp_path / "state", an_agent(), an_agent("other")) as world:
        await world.ready()
        turn_id = await world.taken(agent="other")
        less = world.config.model_copy(update={"agents": (an_agent(),)})
        binding = replace(world.binding, config=less)
        assert await world.yard.write(binding.promote) == 1
        turn = await world.turn(turn_id)
        assert (turn.state, turn.why.startswith("No agent called other is configured.")) == (S.DEAD, True)


async def test_a_forks_start_lets_in_its_head_by_the_same_answer(tmp_path: Path) -> None:
    fork = a_merge_request(source_project_id=8)
    async with an_agent_yard(tmp_path / "state", an_agent(forks=True)) as world:
        await world.yard.told(fork)
        await world.taken()
        (asked,) = await world.start_asked()
        assert asked.head_sha == fork.head_sha
        assert "which comes from a fork" in asked.title


async def test_the_loop_wakes_when_a_sandbox_changes_or_a_person_answered(world: AgentYard) -> None:
    await recorded(world)
    turn_id = await world.taken()
    loop = asyncio.create_task(WaitingLoop(world.yard.database, world.binding).run())
    try:
        (asked,) = await world.start_asked()
        await world.decide(asked, P.DENIED)
        await until(world, turn_id, S.DEAD)
        await rebuild(world)
        await become_ready(world)
        turn_id = await world.taken()
        await stop(world)
        await until(world, turn_id, S.ACCEPTED)
    finally:
        loop.cancel()
        await asyncio.wait({loop})


async def test_after_a_restore_nothing_is_given_that_may_have_been_given_since_the_backup(world: AgentYard) -> None:
    await world.ready()
    running, waits, other = await world.taken("one"), await world.taken("two"), await world.taken(thread="$other")
    await world.given(running)
    world.yard.pass_by(minutes=5)
    backup_of = world.yard.clock.now()
    await world.yard.write(lambda tx: restored.mark(tx, backup_of, "head", RAVEBOT))
    world.yard.pass_by(seconds=1)
    assert await world.promote() > 0
    for turn_id in (running, waits, other):
        turn = await world.turn(turn_id)
        assert turn.state is S.UNCERTAIN
        assert "restored from a backup" in turn.why
        assert "`!rave resend`" in turn.why
    assert await world.promote() == 0
    fresh = await world.taken("three")
    assert (await world.promote(), await world.state(fresh)) == (0, S.QUEUED)
    await world.given(fresh)
    assert (await world.promote(), await world.state(fresh)) == (0, S.DELIVERED)


async def until(world: AgentYard, turn_id: TurnId, state: TurnState) -> None:
    async with asyncio.timeout(30):
        while await world.state(turn_id) is not state:
            await asyncio.sleep(0.01)


async def set_unwell(world: AgentYard, unwell: bool) -> None:
    machine = await world.yard.machine(MR)
    assert machine.state is MachineState.LEASED
    await world.yard.write(lambda tx: machines.save(tx, replace(machine, unhealthy_told=unwell)))


async def run_code(world: AgentYard, sha: str) -> None:
    sandbox = await world.yard.latest(MR)
    await world.yard.write(lambda tx: sandboxes.save(tx, replace(sandbox, running_sha=sha)))
