"""Remembers webhooks that were refused for their secret, until one is accepted."""

from __future__ import annotations

from datetime import datetime, timedelta

from ravebot.clock import Clock

_REMEMBERED = timedelta(hours=1)


class Refusals:
    """Whether GitLab's webhooks are refused: then its secret is not ours. A stranger's forgeries look the same, but
    beside them GitLab's own are accepted."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._count, self._why = 0, ""
        self._first = self._last = clock.now()

    def refused(self, why: str) -> None:
        now = self._clock.now()
        if not self._count:
            self._first = now
        self._count, self._why, self._last = self._count + 1, why, now

    def accepted(self) -> None:
        self._count = 0

    @property
    def problem(self) -> str:
        """What is wrong and what to do; empty when nothing is, or nothing was refused within the last hour."""
        if not self._count or abs(self._clock.now() - self._last) > _REMEMBERED:
            return ""
        since: datetime = self._first
        return (
            f"{self._count} webhooks were refused since {since:%Y-%m-%d %H:%M} UTC, and none was accepted since:"
            f" {self._why}"
        )
