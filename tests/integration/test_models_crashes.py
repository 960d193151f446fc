"""`kill -9` of ravebot while agents use models: what was reserved stays counted, and nothing is counted twice."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ravebot.clock import SystemClock
from ravebot.store import model_uses
from ravebot.store.database import Database
from tests.support.models import COSTS, a_gateway, a_model, a_request, a_service, client, serve_until_killed

pytestmark = pytest.mark.integration
PATH = "http://x/local/v1/chat/completions"


async def test_reservations_that_are_open_at_a_kill_stand_and_settled_ones_stay_settled(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with a_gateway(tmp_path) as gateway:
            config, sandbox_id = gateway.config, gateway.sandbox_id
        service = await stack.enter_async_context(a_service())
        config = config.model_copy(update={"models": (a_model(service.url),)})
        socket = tmp_path / "again.sock"
        arguments = (tmp_path / "state", config, sandbox_id, socket)
        process = multiprocessing.get_context("spawn").Process(target=serve_until_killed, args=arguments)
        process.start()
        try:
            async with asyncio.timeout(30):
                while not socket.exists():
                    await asyncio.sleep(0.02)
            session = await stack.enter_async_context(client(socket))

            async def ask() -> int:
                async with session.post(PATH, json=a_request()) as answer:
                    return answer.status

            assert await ask() == 200

            async def hangs(*_: Any) -> web.Response:
                await asyncio.sleep(60)
                return web.Response()

            service.answer = hangs
            asking = [asyncio.create_task(ask()) for _ in range(3)]
            async with asyncio.timeout(30):
                while len(service.asked) < 4:
                    await asyncio.sleep(0.01)
        finally:
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert all(isinstance(one, Exception) for one in await asyncio.gather(*asking, return_exceptions=True))
    async with Database(tmp_path / "state" / "ravebot.db", SystemClock()) as database:
        rows = await database.read(lambda tx: tx.all("SELECT reserved, used FROM model_uses ORDER BY id"))
        used = await database.read(lambda tx: model_uses.used_in(tx, sandbox_id))
    assert [row["used"] for row in rows] == [COSTS["chat"], None, None, None]
    assert used == COSTS["chat"] + sum(row["reserved"] for row in rows[1:])
    assert rows[1]["reserved"] > 32_000
