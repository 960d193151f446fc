"""The clock that is injected, and moments as the database keeps them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from ravebot.clock import SystemClock, Wait, from_us, to_us
from tests.support.clock import ManualClock

MOMENTS = st.datetimes(timezones=st.just(UTC))


@given(moment=MOMENTS)
def test_a_moment_comes_back_as_it_was_kept(moment: datetime) -> None:
    assert from_us(to_us(moment)) == moment
    assert from_us(to_us(moment)).tzinfo is UTC


@given(one=MOMENTS, other=MOMENTS)
def test_kept_moments_sort_like_the_moments(one: datetime, other: datetime) -> None:
    assert (to_us(one) < to_us(other)) == (one < other)


def test_a_moment_of_another_zone_is_the_same_moment() -> None:
    there = datetime(2026, 1, 1, 13, 0, tzinfo=timezone(timedelta(hours=1)))
    assert from_us(to_us(there)) == datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def test_microseconds_are_counted_from_1970() -> None:
    assert to_us(datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)) == 1_000_005


def test_the_systems_clock_is_aware_and_goes_on() -> None:
    clock = SystemClock()
    first = clock.now()
    assert first.utcoffset() == timedelta(0)
    assert clock.now() >= first


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock()
    first = clock.now()
    assert clock.now() == first
    clock.advance(timedelta(hours=2))
    assert clock.now() == first + timedelta(hours=2)


def test_a_wait_is_over_at_its_end_and_when_the_clock_was_set_back_to_before_it_began() -> None:
    noon, second = datetime(2026, 1, 1, 12, 0, tzinfo=UTC), timedelta(seconds=1)
    wait = Wait(noon, noon + 2 * second)
    assert [wait.is_over(noon + step * second) for step in (-1, 0, 1, 2)] == [True, False, False, True]
    assert [wait.left(noon + step * second) / second for step in (-1, 0, 1, 2)] == [0, 2, 1, 0]
