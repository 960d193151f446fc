"""Remembers webhooks that were refused for their secret or signature, until one is accepted."""

from __future__ import annotations

from datetime import datetime, timedelta

from ravebot.clock import Clock

_REMEMBERED = timedelta(hours=1)


class Refusals:
    """Whether all webhooks are refused: then GitLab has another secret, or another clock.

    A stranger's forgeries are refused as well, but GitLab's own webhooks are accepted between them.
    """

    def __init__(self, clock: Clock, what: str = "webhooks") -> None:
        self._clock, self._what = clock, what
        self._count, self._why = 0, ""
        self._first = self._last = clock.now()
        self.last_at: datetime | None = None
        """When one was refused last."""

    def refused(self, why: str) -> None:
        now = self._clock.now()
        if not self._count:
            self._first = now
        self._count, self._why, self._last, self.last_at = self._count + 1, why, now, now

    def accepted(self) -> None:
        self._count = 0

    @property
    def problem(self) -> str:
        """What is wrong and what to do; empty when nothing is, or nothing was refused within the last hour."""
        if not self._count or abs(self._clock.now() - self._last) > _REMEMBERED:
            return ""
        return (
            f"{self._what} are refused ({self._count} since {self._first:%Y-%m-%d %H:%M} UTC, none was accepted since):"
            f" {self._why}"
        )
