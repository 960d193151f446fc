"""Tells weekly news and takes alerts in a process of its own, which kills itself right before or after a commit.

`python -m tests.support.news_dying FOLDER before|after|never N`; it prints the port of the alerts' door once the weekly
look is over, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

from aiohttp import web

from ravebot.gitlab.refusals import Refusals
from ravebot.intake.alerts import AlertIntake
from ravebot.operations.audit.weekly import render_head
from ravebot.operations.weekly import Weekly, WeeklyNews
from ravebot.store.alerts import Heard
from ravebot.web.alerts.door import AlertDoor
from ravebot.web.alerts.reading import AlertDelivery
from ravebot.web.metrics import Metrics
from ravebot.web.server import make_app, serve
from tests.support.clock import ManualClock
from tests.support.dying import MortalDatabase

OPS = "#ops:example.org"
TOKEN = "the token"


async def main(folder: Path, when: str, at: int) -> None:
    clock = ManualClock()
    async with MortalDatabase(folder / "ravebot.db", clock) as database:
        database.dies(when, at)
        await Weekly(database, ()).look(WeeklyNews("log head", OPS, render_head))
        intake = AlertIntake(database, OPS)

        async def take(delivery: AlertDelivery) -> Counter[Heard]:
            return await intake.take(delivery.alerts, delivery.left_out)

        async def no_webhooks(_: web.Request) -> web.StreamResponse:
            raise web.HTTPNotFound

        door = AlertDoor(TOKEN, take, Metrics(), Refusals(clock))
        async with serve(make_app(no_webhooks, {}, Metrics(), add_more=door.add_to), "127.0.0.1", 0) as (_, port):
            print(port, flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
