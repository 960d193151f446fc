"""Shared by several benchmarks: the whole bot with its only place taken, webhooks sent as GitLab does, and a reader."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from tests.support.crashes import rows
from tests.support.gitlab import MergeRequest, payloads
from tests.support.stage import Stage

SECRET = "correct horse battery"  # the stage's webhook secret
QUIET = {"gitlab": {"poll": "1h", "request_limit": "5s"}, "pool": {"max_running": 1, "lifetime": "4h"}}


@asynccontextmanager
async def busy_stage() -> AsyncIterator[Stage]:
    """All parts are real; a ready sandbox takes the only place, so that all further ones queue."""
    async with Stage(QUIET) as stage:
        await stage.start()
        await stage.ready(stage.open_merge_request("The first", "first"), 180)
        await told_everything(stage)
        stage.gitlab.hooks_paused = True  # from now on the benchmark sends them itself
        yield stage


async def told_everything(stage: Stage) -> None:
    """Wait until nothing is left in inbox and outbox."""
    await stage.until(lambda: not _waiting(stage), 240, "the bot does not finish")


def _waiting(stage: Stage) -> list[sqlite3.Row]:
    return rows(
        stage,
        "SELECT 1 FROM outbox WHERE delivered_at IS NULL UNION ALL SELECT 1 FROM inbox WHERE handled_at IS NULL",
    )


def webhook_body(stage: Stage, mr: MergeRequest, action: str) -> dict[str, object]:
    """The body that GitLab would send now, for `Webhooks`."""
    changes: dict[str, object] = {} if action == "open" else {"title": {"previous": "", "current": mr.title}}
    return payloads.merge_request_event(stage.gitlab.url, mr, stage.alice, action, changes=changes)


class Webhooks:
    """Posts like GitLab: a new connection for each."""

    def __init__(self, stage: Stage) -> None:
        self._url = f"{stage.http}/webhooks/gitlab"
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def post(self, body: bytes) -> tuple[int, float]:
        """The status, and the seconds until it arrived."""
        headers = {
            "Content-Type": "application/json",
            "X-Gitlab-Event": "Merge Request Hook",
            "X-Gitlab-Token": SECRET,
            "Idempotency-Key": str(uuid.uuid4()),
        }
        began = time.perf_counter()
        async with self._session.post(self._url, data=body, headers=headers) as answer:
            await answer.read()
            return answer.status, time.perf_counter() - began


async def paced(count: int, per_second: float) -> AsyncIterator[int]:
    """Yield each number below `count`, at a fixed rate, whatever happened to earlier ones."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number / per_second - loop.time()))
        yield number


def database_bytes(stage: Stage) -> int:
    return sum(path.stat().st_size for path in Path(stage.state_dir).glob("ravebot.db*"))
