"""Tells something once a week in a room, about the week that is over.

The clock may jump. A week is told if no message about it was added before, and if it is not older than the first one
that was told: a clock that was set back tells nothing again. A week that was told before an earlier one was is told
again when it is over right after that one: the clock was ahead at the time. While the clock is before the first that
was told, either of the two was wrong: then weeks are told that pass from there on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Self

import structlog

from ravebot.clock import from_us, to_us
from ravebot.errors import RavebotError
from ravebot.matrix.content import Content
from ravebot.store import outbox, weekly
from ravebot.store.database import Database, Transaction, get_meta, set_meta
from ravebot.store.targets import Kind, RoomLane

log = structlog.get_logger()

_LOOK_SECONDS = 300.0
_WEEK = timedelta(days=7)
_STEADY = timedelta(days=1)
"""Between two looks at most; more is a clock that jumped, or a bot that was off."""


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


@dataclass(frozen=True)
class BeforeFirst:
    """The clock is before the first week that was told.

    `week` was the last one that was over when that began, or when the clock jumped meanwhile; `at`: the last look.
    """

    week: str
    at: datetime


def before_first(told: Sequence[str], now: datetime, last: BeforeFirst | None) -> BeforeFirst | None:
    """What is so now, after what was at the `last` look; None while the clock is not before the first."""
    over = str(Week.of(now - _WEEK))
    if not told or over >= min(told):
        return None
    goes_on = last is not None and timedelta(0) <= now - last.at <= _STEADY
    return BeforeFirst(last.week if last and goes_on else over, now)


def due(told: Sequence[str], now: datetime, catch_up: int = 1, before: BeforeFirst | None = None) -> tuple[Week, ...]:
    """The weeks to tell, the oldest first. `told`: those that were told, in the order in which they were."""
    weeks = [Week.of(now - _WEEK * back) for back in range(catch_up, 0, -1)]
    if not told:
        return (weeks[-1],)
    earlier = min(told) if before is None else before.week
    found = [week for week in weeks if str(week) > earlier and str(week) not in told]
    if _was_early(told, weeks[-1]):
        found.append(weeks[-1])
    return tuple(found)


def _was_early(told: Sequence[str], week: Week) -> bool:
    """Whether the week was told before an earlier one, and is over now: the one before it was told last."""
    return str(week) in told and told[-1] == str(Week(week.begin - _WEEK))


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
                # What is wrong with one of them must end neither the others nor the bot.
                except Exception:
                    log.exception("weekly news could not be told: this is a bug of ravebot's", what=news.what)
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self, news: WeeklyNews) -> None:
        """Tell what is due. Messages are rendered outside of the writer's transaction, as they may take a while."""
        if await self._database.read(lambda tx: _before(tx, news) != _noted(tx, news)):
            await self._database.write(lambda tx: _note(tx, news))
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
    return due(weekly.told(tx, news.what), tx.now, news.catch_up, _before(tx, news))


def _before(tx: Transaction, news: WeeklyNews) -> BeforeFirst | None:
    return before_first(weekly.told(tx, news.what), tx.now, _noted(tx, news))


def _noted(tx: Transaction, news: WeeklyNews) -> BeforeFirst | None:
    week, _, at = (get_meta(tx, f"weekly_before_first:{news.what}") or "").partition(" ")
    return BeforeFirst(week, from_us(int(at))) if at else None


def _note(tx: Transaction, news: WeeklyNews) -> None:
    found = _before(tx, news)
    set_meta(tx, f"weekly_before_first:{news.what}", f"{found.week} {to_us(found.at)}" if found else "")
