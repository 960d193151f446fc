"""Pauses grow to a longest one, and are at least what was asked for."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.backoff import Backoff, jitter


@pytest.mark.parametrize(
    ("pauses", "steps"),
    [
        (Backoff.growing(0.5, 15), [0.5, 1, 2, 4, 8, 15, 15, 15]),
        (Backoff.growing(10, 270, factor=3), [10, 30, 90, 270, 270]),
        (Backoff.growing(2, 1), [1, 1]),
        (Backoff((1.0, 5.0)), [1, 5, 5]),
    ],
)
def test_pauses_grow_to_the_longest_and_stay_there(pauses: Backoff, steps: list[float]) -> None:
    assert [pauses.after(failures + 1) for failures in range(len(steps))] == steps
    assert list(islice(pauses, len(steps))) == steps
    assert pauses.after(1_000_000) == steps[-1]


def test_a_pause_is_at_least_what_is_asked_for() -> None:
    assert Backoff.growing(1, 60).after(1, 120.0) == 120
    assert Backoff.growing(1, 60).after(3, 0.5) == 4
    assert Backoff.growing(1, 60).after(1, 120.0, spread=0.0) == 120


@given(st.integers(min_value=1, max_value=50))
def test_jitter_takes_off_half_at_most(failures: int) -> None:
    pauses = Backoff.growing(1, 60)
    assert pauses.after(failures) / 2 <= pauses.after(failures, spread=jitter()) <= pauses.after(failures)
