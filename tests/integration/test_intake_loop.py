"""The loop over the inbox, on a real database: everything once, in order within a lane, with a long backlog too."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from ravebot.clock import SystemClock
from ravebot.intake.loop import Intake, Step
from ravebot.store import inbox
from ravebot.store.database import Database, Transaction
from ravebot.store.inbox import Request

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
                while await database.read(inbox.pending):
                    await asyncio.sleep(0.02)
        finally:
            loop.cancel()
            await asyncio.wait({loop})
    assert Counter(handler.acted) == dict.fromkeys(range(1, 601), 1)
    assert Counter(handler.asked) == dict.fromkeys(range(1, 601), 1)
    for lane in range(40):
        ours = [number for number in handler.acted if (number - 1) % 40 == lane]
        assert ours == sorted(ours)
