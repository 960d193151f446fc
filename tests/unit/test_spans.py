"""`--since` and `--until` take what people have at hand: a date, a week, a time, or how long ago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ravebot.operations.spans import span
from tests.support.records import NOON


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("36h", NOON - timedelta(hours=36)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-W05", datetime(2026, 1, 26, tzinfo=UTC)),
        ("2026-01-31T12:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_a_time_is_a_date_a_week_or_how_long_ago(text: str, moment: datetime) -> None:
    assert span(text, None, NOON) == (moment, None)
    assert span(None, text, NOON) == (None, moment)
