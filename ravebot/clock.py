"""The clock, which is passed to every part that needs the time, so that tests can set it.

Times may jump. A pause is a `Wait` (columns `postponed_at`, `next_attempt_at`); an elapsed time is `age` or
`tx.seconds_since`; something periodic uses `is_due`; `sandboxes/pool/moments.py` corrects the stored times of sandboxes
at the next pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """The current time as an aware UTC datetime."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


def is_due(last: datetime | None, every: timedelta, now: datetime) -> bool:
    """Whether something last done at `last` is due again; also true if the clock was set back since."""
    return last is None or not timedelta(0) <= now - last < every


def age(moment: datetime, now: datetime) -> timedelta:
    """How long ago that was; zero if the clock was set back to before it."""
    return max(timedelta(0), now - moment)


@dataclass(frozen=True)
class Wait:
    """A pause. It ends at `until`, or as soon as the clock is before `since` (it was set back)."""

    since: datetime
    until: datetime

    def is_over(self, now: datetime) -> bool:
        return not self.since <= now < self.until

    def left(self, now: datetime) -> timedelta:
        """The rest of the pause; zero if it is over."""
        return timedelta(0) if self.is_over(now) else self.until - now


def moment(at: datetime, day: datetime) -> str:
    """A moment as people read it: `14:40 UTC`, with its date unless that is the day on which the text is dated."""
    return f"{at:%H:%M} UTC" if at.date() == day.date() else f"{at:%Y-%m-%d %H:%M} UTC"


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 in UTC: the form of times in the database."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """The moment that `to_us` wrote."""
    return _EPOCH + timedelta(microseconds=microseconds)
