"""Both tables of the design, cell by cell, typed out here once more; and what a sandbox's clock asks for."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.sandboxes.decide import (
    Do,
    Expiry,
    Happened,
    MachineFacts,
    Then,
    decide_expiry,
    decide_machine,
    decide_sandbox,
    kept_until,
    settled_thresholds,
    time_runs,
)
from ravebot.sandboxes.model import UPDATE_STAGES, EndReason, MachineState, Observed, Sandbox, SandboxState, Stage
from tests.support.records import NOON, a_machine, a_sandbox

SEEN = ("absent", "off", "running, agent silent", "running, agent answers", "crashed", "paused", "unknown")
MACHINES = {
    "building": ("create", "start", "probe", "claim", "give up", "give up", "nothing"),
    "warm": ("refill", "stop", "probe", "claim", "stop", "stop", "nothing"),
    "leased": ("lost", "restart", "check", "check", "restart", "free space", "nothing"),
    "stopping": ("forget", "delete", "shut down", "shut down", "destroy", "destroy", "nothing"),
}
MACHINE_CELLS = [(wanted, seen, do) for wanted, row in MACHINES.items() for seen, do in zip(SEEN, row, strict=True)]

HAPPENED = (
    "machine ready", "code updated", "end asked", "start asked", "stage timeout", "expired", "machine lost",
    "restarted", "stage failed", "rebuild", "retry",
)  # fmt: skip
BEHIND = "new one, queued behind it"
SANDBOXES = {
    "queued": ("begin", "take the new SHA", "end", "", "", "", "", "", "", "", "drop the backoff"),
    "starting": (
        "next stage", "restart at copy", "stop", "", "fail", "expire", "retry", "chain again", "fail", "rebuild", "",
    ),
    "ready": (
        "next stage", "update", "stop", "", "keep", "expire", "end, lost", "chain again", "keep", "rebuild", "update",
    ),
    "stopping": ("", "", "", BEHIND, "", "", "end", "", "", BEHIND, BEHIND),
    "ended": ("", "", "", "new one", "", "", "", "", "", "new one", "new one"),
}  # fmt: skip
SANDBOX_CELLS = [
    (state, happened, then or "nothing")
    for state, row in SANDBOXES.items()
    for happened, then in zip(HAPPENED, row, strict=True)
]
HALF_HOUR, TEN_MINUTES = 1800, 600
WARN_BEFORE = (timedelta(minutes=30), timedelta(minutes=10))


@pytest.mark.parametrize(("wanted", "seen", "do"), MACHINE_CELLS)
def test_every_cell_of_the_machines_table(wanted: str, seen: str, do: str) -> None:
    assert decide_machine(MachineState(wanted), Observed(seen), MachineFacts()) == do


@pytest.mark.parametrize(("state", "happened", "then"), SANDBOX_CELLS)
def test_every_cell_of_the_sandboxes_table(state: str, happened: str, then: str) -> None:
    stage = Stage.SETUP if (state, then) == ("ready", "next stage") or state == "starting" else None
    assert decide_sandbox(a_sandbox(state=SandboxState(state), stage=stage), Happened(happened)) == then


def test_the_tables_here_name_every_state_and_event_there_is() -> None:
    assert {wanted for wanted, _, _ in MACHINE_CELLS} | {"gone"} == set(MachineState)
    assert set(SEEN) == set(Observed)
    assert {state for state, _, _ in SANDBOX_CELLS} == set(SandboxState)
    assert set(HAPPENED) == set(Happened)


@pytest.mark.parametrize("wanted", ["building", "warm", "leased", "stopping"])
@pytest.mark.parametrize(
    "facts",
    [
        MachineFacts(state_age=timedelta(days=9)),
        MachineFacts(restarts=5, silent_for=timedelta(days=9)),
        MachineFacts(paused_by_us=True, starting=True),
    ],
)
def test_what_could_not_be_seen_is_left_alone_whatever_else_is_known(wanted: str, facts: MachineFacts) -> None:
    assert decide_machine(MachineState(wanted), Observed.UNKNOWN, facts) is Do.NOTHING


def test_a_machine_that_is_gone_is_nobodys_business() -> None:
    with pytest.raises(KeyError):
        decide_machine(MachineState.GONE, Observed.ABSENT, MachineFacts())


@pytest.mark.parametrize("seen", [Observed.ABSENT, Observed.OFF, Observed.AGENT_SILENT])
def test_a_build_is_given_up_at_its_timeout_and_not_before(seen: Observed) -> None:
    limit = timedelta(minutes=5)
    before = MachineFacts(build_timeout=limit, state_age=limit - timedelta(seconds=1))
    at = MachineFacts(build_timeout=limit, state_age=limit)
    assert decide_machine(MachineState.BUILDING, seen, before) is not Do.GIVE_UP
    assert decide_machine(MachineState.BUILDING, seen, at) is Do.GIVE_UP


def test_a_build_that_answers_at_last_is_taken_however_late() -> None:
    late = MachineFacts(build_timeout=timedelta(minutes=5), state_age=timedelta(hours=1))
    assert decide_machine(MachineState.BUILDING, Observed.AGENT_ANSWERS, late) is Do.CLAIM


def test_a_restarted_machine_that_is_gone_is_lost_and_never_replaced_by_an_empty_one() -> None:
    assert decide_machine(MachineState.BUILDING, Observed.ABSENT, MachineFacts(restarts=1)) is Do.LOST


def test_a_warm_machine_that_we_paused_is_resumed() -> None:
    assert decide_machine(MachineState.WARM, Observed.PAUSED, MachineFacts(paused_by_us=True)) is Do.RESUME


@pytest.mark.parametrize("seen", [Observed.OFF, Observed.CRASHED])
def test_a_leased_machine_is_restarted_once_and_then_counts_as_lost(seen: Observed) -> None:
    assert decide_machine(MachineState.LEASED, seen, MachineFacts(restarts=0)) is Do.RESTART
    assert decide_machine(MachineState.LEASED, seen, MachineFacts(restarts=1)) is Do.LOST


@pytest.mark.parametrize("seen", [Observed.AGENT_SILENT, Observed.AGENT_ANSWERS])
def test_three_minutes_of_silence_restart_a_leased_machine_once(seen: Observed) -> None:
    def after(minutes: float, restarts: int = 0) -> Do:
        facts = MachineFacts(silent_for=timedelta(minutes=minutes), restarts=restarts)
        return decide_machine(MachineState.LEASED, seen, facts)

    assert after(2.9) is Do.CHECK
    assert after(3) is Do.RESTART
    assert after(99, restarts=1) is Do.CHECK


def test_while_the_chain_runs_silence_is_the_chains_business() -> None:
    facts = MachineFacts(silent_for=timedelta(hours=1), starting=True)
    assert decide_machine(MachineState.LEASED, Observed.AGENT_SILENT, facts) is Do.CHECK


@pytest.mark.parametrize("seen", [Observed.AGENT_SILENT, Observed.AGENT_ANSWERS])
def test_a_guest_is_asked_to_shut_down_until_the_grace_is_over(seen: Observed) -> None:
    grace = timedelta(seconds=30)
    before = MachineFacts(grace=grace, state_age=timedelta(seconds=29))
    at = MachineFacts(grace=grace, state_age=grace)
    assert decide_machine(MachineState.STOPPING, seen, before) is Do.SHUT_DOWN
    assert decide_machine(MachineState.STOPPING, seen, at) is Do.DESTROY


def test_a_full_disk_never_restarts_a_machine() -> None:
    facts = MachineFacts(silent_for=timedelta(hours=1))
    assert decide_machine(MachineState.LEASED, Observed.PAUSED, facts) is Do.FREE_SPACE


@pytest.mark.parametrize(
    ("attempt", "then"), [(1, Then.RETRY), (2, Then.RETRY), (3, Then.END_LOST), (9, Then.END_LOST)]
)
def test_a_lost_machine_is_replaced_while_starting_at_most_three_in_all(attempt: int, then: Then) -> None:
    sandbox = a_sandbox(state=SandboxState.STARTING, attempt=attempt)
    assert decide_sandbox(sandbox, Happened.MACHINE_LOST) is then


@pytest.mark.parametrize("attempt", [1, 3, 9])
def test_a_failed_build_is_tried_again_without_limit_but_not_that_of_a_machine_that_was_in_use(attempt: int) -> None:
    sandbox = a_sandbox(state=SandboxState.STARTING, attempt=attempt)
    assert decide_sandbox(sandbox, Happened.MACHINE_LOST, a_machine()) is Then.RETRY
    assert decide_sandbox(sandbox, Happened.MACHINE_LOST, a_machine(restarts=1)) is Then.END_LOST


@pytest.mark.parametrize("stage", [None, *Stage])
def test_new_code_restarts_a_chain_only_where_the_old_is_inside_already(stage: Stage | None) -> None:
    early = stage in (None, Stage.HOST_KEYS, Stage.AUTHORIZE)
    then = decide_sandbox(a_sandbox(state=SandboxState.STARTING, stage=stage), Happened.CODE_UPDATED)
    assert then is (Then.TAKE_SHA if early else Then.RESTART_AT_COPY)


@pytest.mark.parametrize("stage", UPDATE_STAGES)
def test_a_retry_leaves_an_update_alone_that_is_under_way(stage: Stage) -> None:
    updating = a_sandbox(state=SandboxState.READY, stage=stage)
    assert decide_sandbox(updating, Happened.RETRY) is Then.NOTHING
    assert decide_sandbox(updating, Happened.CODE_UPDATED) is Then.UPDATE


def test_a_ready_sandbox_that_is_not_being_updated_has_no_next_stage() -> None:
    assert decide_sandbox(a_sandbox(state=SandboxState.READY), Happened.MACHINE_READY) is Then.NOTHING


@pytest.mark.parametrize("state", SandboxState)
def test_only_what_was_ready_and_still_has_a_machine_can_run_out_of_time(state: SandboxState) -> None:
    assert time_runs(a_sandbox(state=state, expires_at=NOON)) is (state in (SandboxState.STARTING, SandboxState.READY))
    assert not time_runs(a_sandbox(state=state))


def a_kept_one(**facts: object) -> Sandbox:
    known = a_sandbox(state=SandboxState.READY, end_reason=EndReason.FAILED, expires_at=NOON + timedelta(minutes=5))
    return replace(known, **facts)  # type: ignore[arg-type] # tests name the fields


def test_one_that_is_kept_fails_again_and_runs_out_of_time_only_between_two_tries() -> None:
    trying = a_kept_one(stage=Stage.SETUP)
    assert decide_sandbox(trying, Happened.STAGE_FAILED) is Then.FAIL
    assert decide_sandbox(trying, Happened.STAGE_TIMEOUT) is Then.FAIL
    assert time_runs(a_kept_one())
    assert not time_runs(trying)


KEEP, LONGEST = timedelta(minutes=15), timedelta(hours=8)


@pytest.mark.parametrize("stage", [None, *Stage])
def test_a_machine_is_kept_when_a_stage_fails_after_its_people_were_let_in(stage: Stage | None) -> None:
    early = stage in (None, Stage.HOST_KEYS, Stage.AUTHORIZE)
    starting = a_sandbox(state=SandboxState.STARTING, stage=stage)
    assert kept_until(starting, KEEP, LONGEST, NOON) == (None if early else NOON + KEEP)


def test_no_machine_is_kept_without_the_setting_or_after_it_was_ready() -> None:
    starting = a_sandbox(state=SandboxState.STARTING, stage=Stage.SETUP)
    assert kept_until(starting, timedelta(0), LONGEST, NOON) is None
    assert kept_until(replace(starting, ready_at=NOON), KEEP, LONGEST, NOON) is None


@pytest.mark.parametrize(
    ("minutes", "left", "then"),
    [(10, 5, 25), (10, 60, 70), (475, 5, 480), (475, 20, 495), (480, 0, None)],
    ids=["longer", "never shorter", "at most the longest", "not shorter then either", "over"],
)
def test_one_that_fails_again_is_kept_no_shorter_and_not_for_ever(minutes: int, left: int, then: int | None) -> None:
    now = NOON + timedelta(minutes=minutes)
    trying = a_kept_one(stage=Stage.TEST, state_since=NOON, expires_at=now + timedelta(minutes=left))
    assert kept_until(trying, KEEP, LONGEST, now) == (None if then is None else NOON + timedelta(minutes=then))


def expiry(left: timedelta, warned: frozenset[int] = frozenset(), warn_before: tuple[timedelta, ...] = WARN_BEFORE,
           now: datetime = NOON) -> Expiry:  # fmt: skip
    sandbox = a_sandbox(state=SandboxState.READY, expires_at=now + left, warned=warned)
    return decide_expiry(sandbox, warn_before, now)


def test_nothing_is_asked_while_there_is_time() -> None:
    assert expiry(timedelta(minutes=31)) == Expiry()


def test_each_threshold_warns_once() -> None:
    assert expiry(timedelta(minutes=30)) == Expiry(warn=HALF_HOUR, warned=frozenset({HALF_HOUR}))
    assert expiry(timedelta(minutes=20), frozenset({HALF_HOUR})).warn is None
    both = frozenset({HALF_HOUR, TEN_MINUTES})
    assert expiry(timedelta(minutes=10), frozenset({HALF_HOUR})) == Expiry(warn=TEN_MINUTES, warned=both)
    assert expiry(timedelta(minutes=1), both) == Expiry(warned=both)


def test_two_thresholds_passed_at_once_make_one_warning() -> None:
    found = expiry(timedelta(minutes=10))
    assert (found.warn, found.warned) == (TEN_MINUTES, frozenset({HALF_HOUR, TEN_MINUTES}))


def test_the_order_in_which_thresholds_are_configured_does_not_matter() -> None:
    assert expiry(timedelta(minutes=10), warn_before=WARN_BEFORE[::-1]) == expiry(timedelta(minutes=10))


def test_it_expires_at_the_moment_when_the_last_warning_was_given() -> None:
    assert expiry(timedelta(0), frozenset({HALF_HOUR, TEN_MINUTES})) == Expiry(expire=True)
    assert not expiry(timedelta(seconds=1), frozenset({HALF_HOUR, TEN_MINUTES})).expire


@pytest.mark.parametrize("late", [timedelta(0), timedelta(seconds=1), timedelta(days=3)])
@pytest.mark.parametrize("warned", [frozenset[int](), frozenset({HALF_HOUR})])
def test_after_a_downtime_nobody_ends_unwarned_but_gets_ten_minutes(late: timedelta, warned: frozenset[int]) -> None:
    found = expiry(-late, warned)
    assert not found.expire
    assert found.warn == TEN_MINUTES
    assert found.expires_at == NOON + timedelta(minutes=10)


def test_a_downtime_that_ends_just_before_expiry_leaves_ten_minutes_too() -> None:
    found = expiry(timedelta(seconds=5), frozenset({HALF_HOUR}))
    assert found.warn == TEN_MINUTES
    assert found.expires_at == NOON + timedelta(minutes=10)


def test_a_warning_that_is_a_few_seconds_late_moves_nothing() -> None:
    assert expiry(timedelta(minutes=9, seconds=50), frozenset({HALF_HOUR})).expires_at is None


def test_without_warnings_configured_it_simply_expires() -> None:
    assert expiry(timedelta(0), warn_before=()) == Expiry(expire=True)


@given(
    lefts=st.lists(st.integers(-10_000, 10_000), min_size=1, max_size=30),
    thresholds=st.lists(st.integers(1, 5_000), max_size=4, unique=True),
)
def test_whatever_the_clock_does_an_end_comes_only_after_a_warning_for_it(
    lefts: list[int], thresholds: list[int]
) -> None:
    """Jumps of any size, forwards and back: `lefts` are the moments, relative to the first expiry, of the looks."""
    warn_before = tuple(timedelta(seconds=seconds) for seconds in thresholds)
    sandbox = a_sandbox(state=SandboxState.READY, expires_at=NOON)
    warnings = 0
    for left in lefts:
        found = decide_expiry(sandbox, warn_before, NOON - timedelta(seconds=left))
        if found.expire:
            assert warnings or not thresholds
            return
        warnings += found.warn is not None
        sandbox = replace(sandbox, warned=found.warned, expires_at=found.expires_at or sandbox.expires_at)


def test_thresholds_beyond_the_whole_lifetime_are_settled_from_the_start() -> None:
    assert settled_thresholds(WARN_BEFORE, timedelta(minutes=20)) == frozenset({HALF_HOUR})
    assert settled_thresholds(WARN_BEFORE, timedelta(hours=2)) == frozenset()
