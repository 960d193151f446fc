"""Which weeks are told, whatever the clock does. Weeks of ISO 8601 begin on Monday: 2026-W48 on November 23."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from ravebot.operations.weekly import Week, due

MONDAY = datetime(2026, 11, 30, tzinfo=UTC)  # the first moment after 2026-W48


class Room:
    """What a room was told, by a clock that is set to each moment in turn."""

    def __init__(self, catch_up: int = 1) -> None:
        self.catch_up = catch_up
        self.stored: list[str] = []
        self.told: list[str] = []

    def look(self, *moments: datetime) -> list[str]:
        """Look several times at each moment; returns what was told."""
        before = len(self.told)
        for moment in moments:
            for _ in range(3):
                for week in map(str, due(self.stored, moment, self.catch_up)):
                    self.stored = [*(one for one in self.stored if one != week), week]
                    self.told.append(week)
        return self.told[before:]


@pytest.mark.parametrize(
    ("moment", "week"),
    [
        (datetime(2026, 11, 29, 23, 59, 59, tzinfo=UTC), "2026-W48"),
        (MONDAY, "2026-W49"),
        (datetime(2026, 11, 30, 0, 30, tzinfo=timezone(timedelta(hours=1))), "2026-W48"),  # Sunday in UTC
        (datetime(2027, 1, 3, tzinfo=UTC), "2026-W53"),
        (datetime(2027, 1, 4, tzinfo=UTC), "2027-W01"),
        (datetime(2024, 12, 30, tzinfo=UTC), "2025-W01"),
    ],
)
def test_a_moment_lies_in_the_week_that_iso_8601_says(moment: datetime, week: str) -> None:
    found = Week.of(moment)
    assert str(found) == week
    assert found.begin <= moment < found.end


def test_a_week_is_told_once_it_is_over_and_never_again() -> None:
    room = Room()
    assert room.look(MONDAY) == ["2026-W48"]
    assert room.look(MONDAY + timedelta(days=6, hours=23)) == []
    assert room.look(MONDAY + timedelta(days=7)) == ["2026-W49"]


def test_every_week_of_many_years_is_told_exactly_once() -> None:
    room = Room()
    room.look(*(MONDAY + timedelta(days=day) for day in range(0, 366 * 7, 3)))
    assert room.told == sorted(set(room.told))
    assert len(room.told) == 366
    assert {"2026-W53", "2032-W53"} < set(room.told)


def test_a_clock_that_is_set_back_tells_nothing_again() -> None:
    room = Room()
    room.look(*(MONDAY + timedelta(days=7 * week) for week in range(6)))
    for back in (timedelta(seconds=1), timedelta(days=10), timedelta(days=400)):
        assert room.look(MONDAY + timedelta(days=35) - back, MONDAY + timedelta(days=35)) == []


def test_a_week_that_was_told_while_the_clock_was_ahead_is_told_when_it_is_over() -> None:
    room = Room()
    assert room.look(MONDAY, MONDAY + timedelta(days=70), MONDAY) == ["2026-W48", "2027-W05"]
    passed = room.look(*(MONDAY + timedelta(days=7 * week) for week in range(1, 14)))
    assert passed == [str(Week.of(MONDAY + timedelta(days=7 * week))) for week in range(13)]


def test_weeks_that_passed_while_ravebot_was_down_are_told_as_far_back_as_asked() -> None:
    room = Room(catch_up=3)
    assert room.look(MONDAY) == ["2026-W48"]
    assert room.look(MONDAY + timedelta(days=35)) == ["2026-W51", "2026-W52", "2026-W53"]
    without = Room()
    assert without.look(MONDAY, MONDAY + timedelta(days=35)) == ["2026-W48", "2026-W53"]
