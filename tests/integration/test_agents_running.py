"""Which turns run in a sandbox: what an agent there may do without a token is what its running turn may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ravebot.agents.model import ProcessId, TurnId, TurnState
from ravebot.sandboxes.model import SandboxId
from ravebot.store import agent_work, conversations
from ravebot.store.agent_work import TurnUnderWay
from ravebot.store.database import Transaction
from tests.support.agent_yard import ALICE, AgentYard, an_agent, an_agent_yard
from tests.support.records import a_merge_request

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AgentYard]:
    async with an_agent_yard(tmp_path / "state", an_agent(), an_agent("reviewer")) as world:
        await world.ready()
        yield world


async def running(world: AgentYard, sandbox_id: SandboxId) -> tuple[TurnUnderWay, ...]:
    return await world.yard.read(lambda tx: agent_work.running_in(tx, sandbox_id))


async def end_process(world: AgentYard, process_id: ProcessId) -> None:
    def step(tx: Transaction) -> None:
        process = conversations.process(tx, process_id)
        assert process
        conversations.save_process(tx, replace(process, ended_at=tx.now, ended="gone"))

    await world.yard.write(step)


async def test_a_turn_runs_from_the_moment_its_agent_may_have_it_until_it_is_over(world: AgentYard) -> None:
    turn_id = await world.taken()
    await world.promote()
    here = (await world.yard.latest(a_merge_request())).id
    assert await running(world, here) == ()
    process = await world.given(turn_id)
    found = await running(world, here)
    assert [(one.turn_id, one.agent, one.root) for one in found] == [(turn_id, "coder", ALICE)]
    assert process.sandbox_id == here
    turn = await world.turn(turn_id)
    assert (found[0].given_at, found[0].deadline) == (turn.given_at, turn.deadline)
    await world.ended(turn_id)
    assert await running(world, here) == ()


async def test_a_turn_whose_acknowledgement_is_not_here_yet_runs_already(world: AgentYard) -> None:
    turn_id = await world.taken()
    await world.given(turn_id)
    await world.yard.write(
        lambda tx: tx.execute("UPDATE agent_turns SET state = ? WHERE id = ?", (TurnState.QUEUED, turn_id))
    )
    here = (await world.yard.latest(a_merge_request())).id
    assert [one.turn_id for one in await running(world, here)] == [turn_id]


async def test_a_turn_of_another_sandbox_or_of_an_ended_process_does_not_run_here(world: AgentYard) -> None:
    other = a_merge_request(2)
    await world.ready(other)
    turn_id = await world.taken(mr=other.ref, thread="$other")
    process = await world.given(turn_id)
    here, there = (await world.yard.latest(a_merge_request())).id, (await world.yard.latest(other)).id
    assert await running(world, here) == ()
    assert [one.turn_id for one in await running(world, there)] == [turn_id]
    await end_process(world, process.id)
    assert await running(world, there) == ()


async def test_of_several_turns_the_one_that_was_given_last_comes_first(world: AgentYard) -> None:
    turns: list[TurnId] = []
    for agent in ("coder", "reviewer"):
        turns.append(await world.taken(agent=agent))
        await world.given(turns[-1])
        world.yard.pass_by(seconds=1)
    here = (await world.yard.latest(a_merge_request())).id
    assert [(one.turn_id, one.agent) for one in await running(world, here)] == [
        (turns[1], "reviewer"),
        (turns[0], "coder"),
    ]
