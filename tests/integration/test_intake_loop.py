"""The loop over the inbox, on a real database: everything once, in order within a lane, with a long backlog too."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from ravebot.clock import SystemClock
from ravebot.intake.loop import MOST_OF_A_SOURCE, Intake, Step
from ravebot.store import inbox
from ravebot.store.database import Database, Transaction
from ravebot.store.inbox import Request
from tests.support.clock import ManualClock
from tests.support.records import pending

pytestmark = pytest.mark.integration


class Remembers:
    """Acts on a request by remembering it."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.acted: list[int] = []

    async def handle(self, request: Request) -> Step:
        self.asked.append(request.id)
        await asyncio.sleep(0.001 * (request.id % 5))

        def step(_: Transaction) -> str:
            self.acted.append(request.id)
            return "done"

        return step

    def delayed(self, tx: Transaction, request: Request, why: str) -> None:
        raise AssertionError(why)

    def failed(self, tx: Transaction, request: Request, why: str) -> None:
        raise AssertionError(why)


async def test_every_request_of_a_long_backlog_is_asked_for_and_acted_on_once_and_in_its_lanes_order(
    tmp_path: Path,
) -> None:
    handler = Remembers()
    async with Database(tmp_path / "state" / "ravebot.db", SystemClock()) as database:

        def fill(tx: Transaction) -> None:
            for number in range(600):
                key, lane = str(number), f"1!{number % 40}"
                inbox.add(tx, source="gitlab", key=key, lane=lane, kind="merge_request", body="x" * 3000)

        await database.write(fill)
        loop = asyncio.create_task(Intake(database, {"gitlab": handler}).run())
        try:
            async with asyncio.timeout(60):
                while await database.read(pending):
                    await asyncio.sleep(0.02)
        finally:
            loop.cancel()
            await asyncio.wait({loop})
    assert Counter(handler.acted) == dict.fromkeys(range(1, 601), 1)
    assert Counter(handler.asked) == dict.fromkeys(range(1, 601), 1)
    for lane in range(40):
        ours = [number for number in handler.acted if (number - 1) % 40 == lane]
        assert ours == sorted(ours)


async def test_a_request_is_kept_while_the_database_is_locked_and_acted_on_once_afterwards(tmp_path: Path) -> None:
    handler = Remembers()
    async with Database(tmp_path / "ravebot.db", SystemClock(), patience_seconds=0.1) as database:
        loop = asyncio.create_task(Intake(database, {"gitlab": handler}).run())
        try:
            with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
                await database.write(
                    lambda tx: inbox.add(tx, source="gitlab", key="1", lane="1!1", kind="merge_request", body="{}")
                )
                other.execute("BEGIN IMMEDIATE")
                await asyncio.sleep(0.5)
                assert handler.asked
                assert not handler.acted
                assert not loop.done()
                other.execute("ROLLBACK")
            async with asyncio.timeout(10):
                while await database.read(pending):
                    await asyncio.sleep(0.02)
        finally:
            loop.cancel()
            await asyncio.wait({loop})
    assert handler.acted == [1]


class Hangs(Remembers):
    """Waits for an answer that does not come until it is told to, as requests to a GitLab that hangs do."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()

    async def handle(self, request: Request) -> Step:
        self.asked.append(request.id)
        await self.answers.wait()
        return await super().handle(request)


def lanes_of(source: str, count: int, tx: Transaction) -> None:
    for number in range(count):
        inbox.add(tx, source=source, key=str(number), lane=f"1!{number}", kind="note", body="{}")


async def test_a_source_whose_requests_hang_holds_up_no_other_however_many_they_are(tmp_path: Path) -> None:
    hangs, quick = Hangs(), Remembers()
    async with Database(tmp_path / "ravebot.db", SystemClock()) as database:
        await database.write(partial(lanes_of, "gitlab", 60))
        loop = asyncio.create_task(Intake(database, {"gitlab": hangs, "matrix": quick}).run())
        try:
            while len(hangs.asked) < MOST_OF_A_SOURCE:
                await asyncio.sleep(0.01)
            await database.write(partial(lanes_of, "matrix", 20))
            async with asyncio.timeout(10):
                while len(quick.acted) < 20:
                    await asyncio.sleep(0.01)
            assert hangs.acted == []
        finally:
            hangs.answers.set()
            loop.cancel()
            await asyncio.wait({loop})


async def test_the_least_recently_tried_comes_first_also_among_more_than_are_looked_at(tmp_path: Path) -> None:
    """Requests that are due again and again must not keep those from their turn that were never tried."""
    clock = ManualClock()
    async with Database(tmp_path / "ravebot.db", clock) as database:
        await database.write(partial(lanes_of, "gitlab", 60))
        tried: list[str] = []
        for _ in range(6):
            clock.advance(timedelta(minutes=1))
            found = await database.read(lambda tx: inbox.heads(tx, 10))
            tried += [request.lane for request in found]
            for request in found:
                await database.write(partial(inbox.postpone, request_id=request.id, delay=timedelta(seconds=1)))
        assert Counter(tried) == {f"1!{number}": 1 for number in range(60)}
