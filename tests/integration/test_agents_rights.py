"""Rights count when a turn is given: looked up again, a refusal gives it up, and a GitLab that is away is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ravebot.agents.model import AgentDoor, Conversation, Turn, TurnState
from ravebot.agents.rights import ChainRights, RunRights
from ravebot.agents.runner import AgentRunner
from ravebot.commands.people import People
from ravebot.commands.permissions import Decision
from ravebot.errors import Unavailable
from ravebot.sandboxes.model import Actor, SandboxId
from ravebot.store import conversations, outbox
from tests.support.agent_world import AgentWorld, a_guest_with_the_agent, an_agent_world
from tests.support.agent_yard import MR, ROOM_ID, AgentYard, an_agent_yard
from tests.support.levels import Levels
from tests.support.records import ROOM
from tests.support.sshd import SshGuest

pytestmark = pytest.mark.integration
AGENT = "/home/agent/agent"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AgentYard]:
    async with an_agent_yard(tmp_path / "state") as world:
        await world.ready()
        yield world


async def still_may(world: AgentYard, gitlab: Levels, **facts: Any) -> Decision:
    """Whether a message that was taken may be given, as GitLab is now."""
    turn = await world.turn(await world.taken(**facts))
    found = await world.yard.read(lambda tx: conversations.get(tx, turn.conversation_id))
    assert found
    people = People(world.config, world.yard.database, gitlab)
    return await ChainRights(world.config, world.yard.database, people).still_may(found, turn)


async def map_room(world: AgentYard, room_id: str = ROOM_ID, name: str = ROOM) -> None:
    await world.yard.write(lambda tx: outbox.set_room(tx, name, room_id))


async def test_the_rights_of_owner_and_asker_are_those_of_now(world: AgentYard) -> None:
    await map_room(world)
    assert (await still_may(world, Levels({"alice": 30}))).allowed
    assert (await still_may(world, Levels({"alice": 10}))).rule == "alice is Guest in group/app."


async def test_of_a_message_that_came_through_agents_the_first_persons_right_counts(world: AgentYard) -> None:
    await map_room(world)
    gina = Actor("matrix", "@gina:example.org")
    levels = Levels({"alice": 40, "gina": 20})
    passed_on: dict[str, Any] = {"author": Actor("agent", "reviewer"), "root": gina, "hops": 1}
    decision = await still_may(world, levels, **passed_on)
    assert decision.rule == "gina is Reporter in group/app."


async def test_a_room_that_is_mapped_to_other_projects_now_is_refused(world: AgentYard) -> None:
    other = world.config.matrix.model_copy(
        update={"rooms": (world.config.matrix.rooms[0].model_copy(update={"projects": ("other/*",)}),)}
    )
    await map_room(world)
    world.config = world.config.model_copy(update={"matrix": other})
    assert (await still_may(world, Levels({"alice": 40}))).rule == "This room is not mapped to that project."


async def test_a_room_that_is_configured_no_more_is_no_direct_chat(world: AgentYard) -> None:
    await map_room(world)
    world.config = world.config.model_copy(update={"matrix": world.config.matrix.model_copy(update={"rooms": ()})})
    assert (await still_may(world, Levels({"alice": 40}))).rule == "This room is not mapped to that project."


async def test_a_direct_chat_and_a_merge_requests_comments_need_no_mapping(world: AgentYard) -> None:
    assert (await still_may(world, Levels({"alice": 30}), place="!direct:example.org")).allowed
    comment: dict[str, Any] = {"door": AgentDoor.GITLAB, "place": "7!1", "author": Actor("gitlab", "alice")}
    assert (await still_may(world, Levels({"alice": 30}), **comment)).allowed
    assert not (await still_may(world, Levels({"alice": 10}), **comment)).allowed


async def test_while_gitlab_is_away_it_can_not_be_known(world: AgentYard) -> None:
    with pytest.raises(Unavailable):
        await still_may(world, Levels({}, Unavailable("GitLab is away")))


async def test_a_command_is_started_for_who_still_may_and_for_an_agent_in_its_turn(world: AgentYard) -> None:
    async def why_not(gitlab: Levels, by: Actor) -> str:
        people = People(world.config, world.yard.database, gitlab)
        return await RunRights(world.yard.database, people).why_not(SandboxId(1), MR, by)

    alice, coder = Actor("gitlab", "alice"), Actor("agent", "coder")
    assert await why_not(Levels({"alice": 30}), alice) == ""
    assert await why_not(Levels({"alice": 10}), alice) == "alice may not do that any more. alice is Guest in group/app."
    assert await why_not(Levels({"alice": 30}), coder) == "the agent's turn has ended"
    await map_room(world)
    process = await world.given(await world.taken())
    people = People(world.config, world.yard.database, Levels({}))
    rights = RunRights(world.yard.database, people)
    assert await rights.why_not(process.sandbox_id, MR, coder) == ""
    assert await rights.why_not(process.sandbox_id, MR, Actor("agent", "reviewer")) == "the agent's turn has ended"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshGuest]:
    with a_guest_with_the_agent(tmp_path_factory.mktemp("guest")) as running:
        yield running


@asynccontextmanager
async def running(world: AgentWorld, answer: Callable[[], Decision]) -> AsyncIterator[None]:
    """The runner, with that answer to whether a turn may be given."""

    async def may_give(conversation: Conversation, turn: Turn) -> Decision:
        assert turn.process_id is None
        assert conversation.id == turn.conversation_id
        return answer()

    task = asyncio.create_task(AgentRunner(world.database, replace(world.driver, may_give=may_give)).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_refusal_gives_the_turn_up_and_no_agent_ever_has_it(guest: SshGuest, tmp_path: Path) -> None:
    answers = [Decision(False, "gina is Guest in group/app.", "Ask a Maintainer.")]

    def answer() -> Decision:
        return answers.pop() if answers else Decision(True, "")

    async with an_agent_world(guest, tmp_path, [AGENT], runs=False) as world, running(world, answer):
        refused, taken = await world.say("say one"), await world.say("say two")
        turn = await world.over(refused)
        assert (turn.state, turn.why, turn.process_id) == (
            TurnState.DEAD, "Refused: gina is Guest in group/app. Ask a Maintainer.", None,
        )  # fmt: skip
        assert (await world.over(taken)).answer == "two"
        assert await world.prompts() == [taken]


async def test_while_gitlab_is_away_a_turn_waits_and_no_number_of_tries_gives_it_up(
    guest: SshGuest, tmp_path: Path
) -> None:
    def away() -> Decision:
        raise Unavailable("GitLab is away")

    async with an_agent_world(guest, tmp_path, [AGENT], runs=False) as world, running(world, away):
        turn_id = await world.say("say one")
        turn = await world.until(lambda turn: turn.next_try_at, turn_id)
        assert (turn.state, turn.tries, turn.process_id) == (TurnState.QUEUED, 0, None)
