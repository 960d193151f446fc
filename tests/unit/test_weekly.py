"""Which weeks are told, whatever the clock does. Weeks of ISO 8601 begin on Monday: 2026-W48 on November 23."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from random import Random

import pytest

from ravebot.operations.weekly import BeforeFirst, Week, before_first, due

MONDAY = datetime(2026, 11, 30, tzinfo=UTC)  # the first moment after 2026-W48


class Room:
    """What a room was told, by a clock that is set to each moment in turn."""

    def __init__(self, catch_up: int = 1) -> None:
        self.catch_up = catch_up
        self.stored: list[str] = []
        self.told: list[str] = []
        self.before: BeforeFirst | None = None

    def look(self, *moments: datetime) -> list[str]:
        """Look several times at each moment; returns what was told."""
        before = len(self.told)
        for moment in moments:
            for _ in range(3):
                self.before = before_first(self.stored, moment, self.before)
                for week in map(str, due(self.stored, moment, self.catch_up, self.before)):
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


def days(first: int, last: int) -> list[datetime]:
    """A moment of each of those days after MONDAY."""
    return [MONDAY + timedelta(days=day, hours=3) for day in range(first, last)]


def test_a_clock_that_was_decades_ahead_at_the_first_telling_delays_the_next_by_a_week_at_most() -> None:
    room = Room()
    assert room.look(datetime(2099, 3, 9, tzinfo=UTC)) == ["2099-W10"]
    assert room.look(*days(0, 22)) == ["2026-W49", "2026-W50", "2026-W51"]


def test_a_clock_that_was_ahead_by_weeks_at_the_first_telling_tells_the_weeks_that_pass_meanwhile() -> None:
    room = Room()
    assert room.look(MONDAY + timedelta(days=21)) == ["2026-W51"]
    assert room.look(*days(0, 29)) == ["2026-W49", "2026-W50", "2026-W51", "2026-W52"]


def test_a_clock_that_was_years_behind_for_weeks_makes_nothing_be_told_again() -> None:
    room = Room()
    room.look(*days(0, 36))
    assert room.look(*days(-400, -380)) == [
        "2025-W43",
        "2025-W44",
        "2025-W45",
    ]  # they passed there, as far as anybody knows
    assert room.look(*days(36, 43)) == ["2027-W01"]
    assert room.look(*days(-800, -799), *days(-500, -499), *days(43, 50)) == ["2027-W02"]
    assert sorted(set(room.told)) == sorted(room.told)


def test_a_clock_that_jumps_about_at_random_tells_nothing_twice_and_no_week_is_lost_for_good() -> None:
    for seed in range(100):
        chance = Random(seed)
        room = Room(catch_up=chance.choice([1, 4]))
        room.look(*days(0, 15))
        for _ in range(20):
            jump = chance.choice([timedelta(hours=3), timedelta(weeks=1), timedelta(weeks=5), timedelta(days=4000)])
            room.look(MONDAY + timedelta(days=15) + jump * chance.choice([-1, 1]), MONDAY + timedelta(days=15))
        assert sorted(set(room.told)) == sorted(room.told), seed
        room.look(*days(15, 37))
        assert {"2026-W50", "2026-W51", "2026-W52", "2026-W53"} <= set(room.told)
