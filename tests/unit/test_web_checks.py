"""When a check may say `ok`."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ravebot.web.checks import Check, State, judge
from tests.support.records import NOON

EVERY = timedelta(minutes=5)


@pytest.mark.parametrize(
    ("ago", "problem", "state"),
    [
        (None, "", State.UNKNOWN),
        (None, "refused", State.FAILED),
        (timedelta(0), "", State.OK),
        (3 * EVERY, "", State.OK),
        (3 * EVERY + timedelta(seconds=1), "", State.UNKNOWN),
        (-timedelta(seconds=1), "", State.OK),  # the clock was set back
        (-3 * EVERY - timedelta(seconds=1), "", State.UNKNOWN),
        (-timedelta(days=365), "", State.UNKNOWN),
        (timedelta(0), "refused", State.FAILED),
        (timedelta(days=1), "refused", State.FAILED),
        (-timedelta(days=1), "refused", State.FAILED),
    ],
)
def test_ok_is_what_was_looked_at_within_three_periods_and_worked(
    ago: timedelta | None, problem: str, state: State
) -> None:
    looked_at = None if ago is None else NOON - ago
    check = judge(looked_at, problem, EVERY, NOON)
    assert check.state is state
    assert check.detail
    assert problem in check.detail
    known = ago is not None and ago >= -3 * EVERY
    assert check.age == (max(timedelta(0), ago) if ago is not None and known else None)


@pytest.mark.parametrize(("state", "fit"), [("ok", True), ("degraded", True), ("failed", False), ("unknown", False)])
def test_only_what_failed_or_is_not_known_makes_the_whole_unready(state: str, fit: bool) -> None:
    assert Check(State(state)).fit is fit
