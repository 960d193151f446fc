"""The access audit's arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ravebot.access.nftables.counts import Count, Totals, Visitor, from_text, grown, merged, to_text, totals
from ravebot.access.rules import Connections

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
SOMEONE = Visitor("192.0.2.7", 2200)


def seconds_ago(seconds: int) -> datetime:
    return NOW - timedelta(seconds=seconds)


def at(connections: int, dropped: int = 0, moved: int = 0) -> Totals:
    return Totals(connections, dropped, moved, seconds_ago(30), seconds_ago(10))


def test_the_last_packet_is_dated_by_what_is_left_of_the_timeout() -> None:
    found = totals({SOMEONE: Count(2, 120, 3570)}, {}, {SOMEONE: Count(9, 900, 3590)}, NOW, 3600)
    assert found == {SOMEONE: at(2, 0, 900)}


def test_a_single_new_connection_is_dated_exactly_and_several_from_the_previous_reading() -> None:
    (one,) = grown({SOMEONE: at(1, 0, 500)}, {}, seconds_ago(60))
    assert one == Connections("192.0.2.7", 2200, 1, 0, 500, seconds_ago(30), seconds_ago(10))
    (three,) = grown({SOMEONE: at(3)}, {}, seconds_ago(60))
    assert (three.connections, three.first_seen) == (3, seconds_ago(60))


def test_only_growth_is_handed_out_and_nothing_when_there_is_none() -> None:
    (more,) = grown({SOMEONE: at(5, 2, 900)}, {SOMEONE: at(3, 1, 500)}, None)
    assert (more.connections, more.dropped, more.bytes) == (2, 1, 400)
    assert grown({SOMEONE: at(5, 2, 900)}, {SOMEONE: at(5, 2, 900)}, None) == []


def test_a_counter_that_began_anew_counts_from_nothing() -> None:
    (again,) = grown({SOMEONE: at(1, 0, 80)}, {SOMEONE: at(7, 0, 9000)}, None)
    assert (again.connections, again.bytes) == (1, 80)


def test_what_was_saved_from_a_rewrite_is_added_to_what_came_after() -> None:
    early = Connections("192.0.2.7", 2200, 1, 0, 10, seconds_ago(90), seconds_ago(80))
    late = Connections("192.0.2.7", 2200, 2, 1, 20, seconds_ago(20), seconds_ago(10))
    other = Connections("192.0.2.8", 2200, 1, 0, 5, seconds_ago(5), seconds_ago(5))
    assert merged([early, other, late]) == (
        Connections("192.0.2.7", 2200, 3, 1, 30, seconds_ago(90), seconds_ago(10)),
        other,
    )


def test_what_was_told_is_read_back() -> None:
    assert Totals.parse(str(at(3, 2, 1))) == Totals(3, 2, 1)


def test_a_visit_saved_from_a_rewrite_is_read_back_and_fits_into_a_comment() -> None:
    visit = Connections("192.0.2.7", 2200, 2**32, 2**32, 2**60, seconds_ago(20), seconds_ago(10))
    assert from_text(SOMEONE, to_text(visit)) == visit
    assert len(to_text(visit)) < 128
    assert from_text(SOMEONE, "") is None
    assert from_text(SOMEONE, "1 1 1 1") is None
    assert from_text(SOMEONE, f"1 1 1 {10**30} {10**30}") is None


@pytest.mark.parametrize("text", ["", "1 2", "1 2 x", "-1 2 3", "1 2 3 4", "٣ 1 1"])
def test_a_ledger_entry_that_is_not_ours_says_nothing(text: str) -> None:
    assert Totals.parse(text) == Totals()
