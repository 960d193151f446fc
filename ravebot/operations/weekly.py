"""Tells something once a week in a room, about the week that is over.

The clock may jump. A week is told if no message about it was added before, and if it is not older than the first one
that was told: a clock that was set back tells nothing again. A week that was told before an earlier one was is told
again when it is really over, because the clock was ahead at the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Self

import structlog

from ravebot.errors import RavebotError
from ravebot.matrix.content import Content
from ravebot.store import outbox, weekly
from ravebot.store.database import Database, Transaction
from ravebot.store.targets import Kind, RoomLane

log = structlog.get_logger()

_LOOK_SECONDS = 300.0
_WEEK = timedelta(days=7)


@dataclass(frozen=True, order=True)
class Week:
    """A week of ISO 8601 in UTC; it begins on a Monday."""

    begin: datetime

    @classmethod
    def of(cls, moment: datetime) -> Self:
        """The week in which a moment lies."""
        day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return cls(day - timedelta(days=day.weekday()))

    @property
    def end(self) -> datetime:
        """The first moment of the next week."""
        return self.begin + _WEEK

    def __str__(self) -> str:
        year, week, _ = self.begin.isocalendar()
        return f"{year}-W{week:02}"


@dataclass(frozen=True)
class WeeklyNews:
    """What is told about each week in a configured room.

    `render` makes the message about a week that is over; None: there is nothing to tell of it. `catch_up`: how many
    weeks are told that passed while ravebot was down, the last one included.
    """

    what: str
    room: str
    render: Callable[[Transaction, Week], Content | None]
    catch_up: int = 1


def due(told: Sequence[str], now: datetime, catch_up: int = 1) -> tuple[Week, ...]:
    """The weeks to tell, the oldest first. `told`: those that were told, in the order in which they were."""
    known: set[str] = set()
    earliest = None
    for week in reversed(told):
        if earliest is None or week <= earliest:
            earliest = week
            known.add(week)
    weeks = [Week.of(now - _WEEK * back) for back in range(catch_up, 0, -1)]
    return tuple(
        [week for week in weeks if str(week) not in known and (str(week) > earliest if earliest else week is weeks[-1])]
    )


class Weekly:
    """The loop that tells them."""

    def __init__(self, database: Database, news: Sequence[WeeklyNews]) -> None:
        self._database = database
        self._news = tuple(news)

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            for news in self._news:
                try:
                    await self.look(news)
                except RavebotError as error:
                    log.warning("weekly news could not be told", what=news.what, error=str(error))
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self, news: WeeklyNews) -> None:
        """Tell what is due. Messages are rendered outside of the writer's transaction, as they may take a while."""
        found = await self._database.read(lambda tx: _rendered(tx, news))
        for week, content in found:
            await self._database.write(partial(_tell, news=news, week=week, content=content))


def _rendered(tx: Transaction, news: WeeklyNews) -> list[tuple[Week, Content]]:
    rendered = ((week, news.render(tx, week)) for week in _due(tx, news))
    return [(week, content) for week, content in rendered if content is not None]


def _tell(tx: Transaction, news: WeeklyNews, week: Week, content: Content) -> None:
    if week in _due(tx, news):
        weekly.note_told(tx, news.what, str(week))
        outbox.add(tx, RoomLane(news.room), Kind.REPLY, body={"content": content})
        tx.log("weekly news are told", what=news.what, week=str(week), room=news.room)


def _due(tx: Transaction, news: WeeklyNews) -> tuple[Week, ...]:
    return due(weekly.told(tx, news.what), tx.now, news.catch_up)
