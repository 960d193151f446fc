"""Remembers requests that were refused for their secret or signature, until one is accepted."""

from __future__ import annotations

from datetime import datetime, timedelta

from ravebot.clock import Clock

_REMEMBERED = timedelta(hours=1)


class Refusals:
    """Whether all webhooks are refused: then GitLab has another secret, or another clock.

    A stranger's forgeries are refused as well, and GitLab's own webhooks may be rare: what is refused is a problem only
    if something came to light meanwhile that a webhook should have told.
    """

    def __init__(self, clock: Clock, what: str = "webhooks") -> None:
        self._clock, self._what = clock, what
        self._count, self._why = 0, ""
        self._first = self._last = clock.now()
        self._missed_at: datetime | None = None
        self.last_at: datetime | None = None
        """When one was refused last."""

    def refused(self, why: str) -> None:
        now = self._clock.now()
        if not self._count:
            self._first = now
        self._count, self._why, self._last, self.last_at = self._count + 1, why, now, now

    def missed(self) -> None:
        """Something came to light that one should have told before."""
        self._missed_at = self._clock.now()

    def accepted(self) -> None:
        self._count, self._missed_at = 0, None

    @property
    def said(self) -> str:
        """What was refused and why, whoever sent it; empty when nothing was within the last hour."""
        if not self._count or not self._lately(self._last):
            return ""
        return (
            f"{self._what} are refused ({self._count} since {self._first:%Y-%m-%d %H:%M} UTC, none was accepted since):"
            f" {self._why}"
        )

    @property
    def problem(self) -> str:
        """What is wrong and what to do; empty when nothing is, as far as is known."""
        return self.said if self._missed_at is not None and self._lately(self._missed_at) else ""

    def _lately(self, moment: datetime) -> bool:
        return abs(self._clock.now() - moment) <= _REMEMBERED
