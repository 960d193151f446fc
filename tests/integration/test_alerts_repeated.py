"""What several Alertmanagers and Prometheus say of one alert, in any order: one message for each time that it fired."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from ravebot.intake.alerts import AlertIntake
from ravebot.matrix.content import Content
from ravebot.operations.audit.weekly import render_head
from ravebot.operations.weekly import Week, Weekly, WeeklyNews
from ravebot.sandboxes.model import RAVEBOT, EventKind
from ravebot.store import events
from ravebot.store.alerts import Alert, AlertStatus
from ravebot.store.database import Transaction
from tests.support.records import NOON, World, a_world

pytestmark = pytest.mark.integration

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


def fires(began: datetime = NOON) -> Alert:
    return Alert("f" * 16, began, AlertStatus.FIRING, "QueueStuck")


def over(began: datetime, ended: datetime | None) -> Alert:
    return Alert("f" * 16, began, AlertStatus.RESOLVED, "QueueStuck", ends_at=ended)


async def hear(world: World, *said: Alert) -> list[str]:
    """What each meant, told one after the other."""
    found: list[str] = []
    for one in said:
        meant = await AlertIntake(world.database, "#ops:example.org").take([one], 0)
        found += meant
    return found


async def stored(world: World) -> list[tuple[str, datetime]]:
    rows = await world.read(lambda tx: tx.all("SELECT status, starts_at FROM alerts ORDER BY id"))
    return [(row["status"], datetime.fromtimestamp(row["starts_at"] / 1e6, UTC)) for row in rows]


async def test_several_prometheus_that_saw_it_begin_at_different_times_make_one_message_that_ends(world: World) -> None:
    earlier, later = NOON - 15 * SECOND, NOON + 20 * SECOND
    said = (fires(), fires(earlier), fires(later), over(earlier, NOON + HOUR), over(NOON, NOON + HOUR))
    assert await hear(world, *said) == ["new", "repeated", "repeated", "resolved", "repeated"]
    assert await stored(world) == [("resolved", NOON)]


async def test_word_of_a_time_that_is_over_neither_ends_nor_revives_what_fires_now(world: World) -> None:
    again = NOON + 2 * HOUR
    await hear(world, fires(), over(NOON, NOON + HOUR))
    world.pass_by(hours=3)
    assert await hear(world, fires(again), over(NOON, NOON + HOUR), fires(), over(NOON - HOUR, NOON - MINUTE)) == [
        "new", "repeated", "late", "late",
    ]  # fmt: skip
    assert await stored(world) == [("resolved", NOON), ("firing", again), ("resolved", NOON - HOUR)]


async def test_an_alert_whose_end_nobody_told_is_over_when_it_fires_anew(world: World) -> None:
    """Prometheus and Alertmanager were both started anew meanwhile: they know nothing of before."""
    await hear(world, fires())
    world.pass_by(hours=5)
    anew = NOON + 4 * HOUR
    assert await hear(world, fires(anew), fires(anew), over(anew, None)) == ["new", "repeated", "resolved"]
    assert await stored(world) == [("resolved", NOON), ("resolved", anew)]


async def test_what_resolved_first_and_is_told_with_another_beginning_is_late_too(world: World) -> None:
    assert await hear(world, over(NOON, NOON + MINUTE), fires(NOON - 5 * SECOND)) == ["late", "late"]
    assert await world.outbox() == []


async def test_weekly_news_that_can_not_be_made_keep_no_others_from_being_told(world: World) -> None:
    def broken(_: Transaction, __: Week) -> Content | None:
        raise ZeroDivisionError

    ops = "#ops:example.org"
    await world.write(lambda tx: events.append(tx, EventKind.SANDBOX_READY, RAVEBOT))
    news = (WeeklyNews("usage", ops, broken), WeeklyNews("log head", ops, render_head))
    task = asyncio.create_task(Weekly(world.database, news).run())
    async with asyncio.timeout(5):
        while not await world.outbox():
            await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})


async def test_that_there_are_more_alerts_is_told_once_a_day_though_the_clock_jumps_by_hours(world: World) -> None:
    intake = AlertIntake(world.database, "#ops:example.org")
    for hours in (0, 5, -9, 3, -1, 7):
        world.pass_by(hours=hours)
        await intake.take([], 3)
    assert [kind for _, _, kind, _ in await world.outbox()] == ["news"]
    world.pass_by(hours=30)
    await intake.take([], 3)
    assert [kind for _, _, kind, _ in await world.outbox()] == ["news", "news"]


@pytest.mark.parametrize("seed", range(12))
async def test_any_order_of_repeated_words_tells_each_time_that_it_fired_once_at_most(world: World, seed: int) -> None:
    chance = Random(seed)
    times = 5
    met = Counter[str]()
    for number in range(times):
        began = NOON + number * 3 * HOUR
        views = [began + chance.randrange(-30, 30) * SECOND for _ in range(2)]  # of two Prometheus
        firing = [fires(chance.choice(views)) for _ in range(10)]
        ended = [over(chance.choice(views), began + HOUR) for _ in range(10)]
        late = [chance.choice(firing) for _ in range(3)]
        chance.shuffle(mixed := [*ended[1:], *late])
        met.update(await hear(world, *firing, ended[0], *mixed))
        world.clock.advance(chance.choice([3 * HOUR, -9 * HOUR, 3 * DAY, 4000 * DAY, -4000 * DAY]))
    assert (met["new"], met["again"]) == (times, 0)
    assert {status for status, _ in await stored(world)} == {"resolved"}
