"""Where a turn belongs that waits: one decision for any surroundings, and its shortcut for many turns at once. And when
a process can't be running any more."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.model import (
    AgentDoor,
    Approval,
    ApprovalId,
    ApprovalKind,
    ApprovalState,
    Conversation,
    ConversationId,
    MessageId,
    Process,
    ProcessId,
    Turn,
    TurnId,
    TurnState,
)
from ravebot.agents.processes import why_gone
from ravebot.agents.transports.acp.situation import Situation
from ravebot.agents.waiting import LONGEST_WAIT, Surroundings, all_stay, place_of
from ravebot.config.model import AgentConfig
from ravebot.sandboxes.model import Actor, Machine, MachineId, MachineState, Sandbox, SandboxId, SandboxState
from ravebot.store.agent_queue import Waiters
from tests.support.records import NOON, a_machine, a_merge_request, a_sandbox

ALICE = Actor("matrix", "@alice:example.org")
AGENT = AgentConfig.model_validate(
    {"name": "coder", "owner": "alice", "projects": ["group/*"], "acp": {"command": ["agent"]}}
)
AGES = st.integers(0, 60).map(lambda hours: NOON - timedelta(hours=hours))
WAITING = st.sampled_from([TurnState.ACCEPTED, TurnState.QUEUED])


def a_turn(number: int, state: TurnState, created_at: datetime = NOON) -> Turn:
    known = Turn(TurnId(number), MessageId(number), ConversationId(1), state, NOON)
    return replace(known, created_at=created_at)


@st.composite
def questions(draw: st.DrawFn) -> Approval | None:
    state = draw(st.sampled_from([None, *ApprovalState]))
    if state is None:
        return None
    asked_at = draw(AGES)
    decided = None if state is ApprovalState.OPEN else asked_at + timedelta(minutes=draw(st.integers(0, 30)))
    return Approval(
        ApprovalId(1), ApprovalKind.START, state, "Start?", "{}", "", ALICE, AgentDoor.MATRIX, "!room", "$thread",
        asked_at, asked_at, "salt", turn_id=TurnId(draw(st.integers(1, 4))), decided_at=decided, decided_by=ALICE,
        done_at=draw(st.sampled_from([None, decided])), outcome="it could not be started",
    )  # fmt: skip


@st.composite
def surroundings(draw: st.DrawFn) -> Surroundings:
    mr = a_merge_request(
        state=draw(st.sampled_from(["opened", "opened", "opened", "locked", "closed", "merged"])),
        source_project_id=draw(st.sampled_from([7, 7, 7, 8])),
    )
    live = [None, SandboxState.QUEUED, SandboxState.STARTING, SandboxState.READY, SandboxState.READY]
    state = draw(st.sampled_from(live))
    newest = a_sandbox(1, SandboxState.ENDED, created_at=draw(AGES)) if draw(st.booleans()) else None
    if state is None:
        return Surroundings(draw(st.sampled_from([AGENT, None])), mr, newest=newest, asked=draw(questions()))
    machine = a_machine(
        1,
        state=draw(st.sampled_from([MachineState.LEASED, MachineState.LEASED, MachineState.BUILDING])),
        unhealthy_told=draw(st.booleans()),
        paused_since=draw(st.sampled_from([None, NOON])),
    )
    sandbox = a_sandbox(1, state, machine_id=MachineId(1))
    return Surroundings(AGENT, mr, sandbox, None if state is SandboxState.QUEUED else machine, sandbox)


@given(surroundings(), WAITING, AGES)
def test_a_turn_is_queued_only_with_a_ready_sandbox_and_given_up_only_with_a_reason(
    around: Surroundings, state: TurnState, since: datetime
) -> None:
    place = place_of(a_turn(1, state, since), "coder", around, NOON)
    assert bool(place.why) is (place.state is TurnState.DEAD)
    if place.state is TurnState.QUEUED:
        assert around.is_usable or (state is TurnState.QUEUED and around.is_unwell)
    if around.is_usable and around.mr and around.mr.state == "opened" and not around.mr.from_fork:
        assert place.state is TurnState.QUEUED


@given(surroundings(), WAITING, AGES)
def test_where_a_turn_belongs_it_stays(around: Surroundings, state: TurnState, since: datetime) -> None:
    turn = a_turn(1, state, since)
    place = place_of(turn, "coder", around, NOON)
    if not place.state.is_over:
        assert place_of(replace(turn, state=place.state), "coder", around, NOON) == place


@given(surroundings(), st.lists(st.tuples(WAITING, AGES), min_size=1, max_size=4))
def test_the_shortcut_overlooks_no_turn_that_is_to_be_moved(
    around: Surroundings, waiting: list[tuple[TurnState, datetime]]
) -> None:
    turns = [a_turn(number, state, since) for number, (state, since) in enumerate(waiting, 1)]
    states = [turn.state for turn in turns]
    waiters = Waiters(
        ConversationId(1),
        states.count(TurnState.ACCEPTED),
        states.count(TurnState.QUEUED),
        min(turn.created_at for turn in turns),
    )
    if all_stay(waiters, "coder", around, NOON):
        assert [place_of(turn, "coder", around, NOON).state for turn in turns] == states


def test_a_day_is_waited_for() -> None:
    around = Surroundings(AGENT, a_merge_request(), a_sandbox(1, SandboxState.QUEUED))
    turn = a_turn(1, TurnState.ACCEPTED)
    assert place_of(turn, "coder", around, NOON + LONGEST_WAIT).state is TurnState.ACCEPTED
    assert place_of(turn, "coder", around, NOON + LONGEST_WAIT + timedelta(seconds=1)).state is TurnState.DEAD


READY = a_sandbox(1, SandboxState.READY, machine_id=MachineId(1))
LEASED = a_machine(1, state=MachineState.LEASED)


@pytest.mark.parametrize(
    ("sandbox", "machine", "why"),
    [
        (READY, LEASED, ""),
        (replace(READY, state=SandboxState.STARTING), LEASED, ""),
        (None, LEASED, "its sandbox ended"),
        (replace(READY, state=SandboxState.STOPPING), LEASED, "its sandbox ended"),
        (replace(READY, state=SandboxState.ENDED), LEASED, "its sandbox ended"),
        (READY, None, "its sandbox got a new machine"),
        (replace(READY, machine_id=MachineId(2)), LEASED, "its sandbox got a new machine"),
        (READY, replace(LEASED, restarts=1), "its machine was restarted"),
        (READY, replace(LEASED, state=MachineState.STOPPING), "its machine is taken down"),
    ],
)
def test_a_process_lives_as_long_as_its_sandbox_has_its_machine_and_that_was_not_restarted(
    sandbox: Sandbox | None, machine: Machine | None, why: str
) -> None:
    process = Process(ProcessId(1), ConversationId(1), SandboxId(1), MachineId(1), 0, "1-a", NOON)
    assert why_gone(process, sandbox, machine) == why


def test_a_paused_agent_gets_nothing_new_from_a_driver_that_is_connected() -> None:
    conversation = Conversation(ConversationId(1), "coder", AgentDoor.MATRIX, "!room", "$thread", NOON)
    now = Situation(NOON, conversation, AGENT, a_turn(1, TurnState.QUEUED))
    assert now.may_go_on
    assert not replace(now, paused=True).may_go_on
    working = replace(a_turn(1, TurnState.WORKING), process_id=ProcessId(1))
    assert replace(now, turn=working, paused=True).may_go_on
