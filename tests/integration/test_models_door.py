"""The door to models itself: its socket, who works at it, and what happens when ravebot's own parts fail."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from ravebot.agents.models.accounts import ModelAccounts, Reservation
from ravebot.agents.models.exchange import ExchangeLimits
from ravebot.agents.models.gateway import GatewayLimits, ModelGateway
from ravebot.errors import StoreError
from ravebot.sandboxes.model import SandboxId
from ravebot.store.agent_work import TurnUnderWay
from tests.support.agent_yard import an_agent
from tests.support.models import GatewayYard, a_gateway, a_request, client, sse, stream

pytestmark = pytest.mark.integration
T = TypeVar("T")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayYard]:
    async with a_gateway(tmp_path) as gateway:
        yield gateway


@asynccontextmanager
async def a_door(
    gateway: GatewayYard, door_limits: GatewayLimits | None = None, **parts: Any
) -> AsyncIterator[GatewayYard]:
    """Another door to the same sandbox, some of whose parts are others."""
    door = ModelGateway(replace(gateway.gateway.parts, **parts), gateway.metrics, door_limits)
    path = gateway.folder / "another.sock"
    async with door.serve(gateway.sandbox_id, path):
        yield replace(gateway, gateway=door, socket=path)


async def test_only_ravebot_s_user_can_use_a_door_and_it_is_gone_when_it_closes(gateway: GatewayYard) -> None:
    async with a_door(gateway) as door:
        assert stat.S_IMODE(door.socket.stat().st_mode) == 0o600
    assert not door.socket.exists()


def test_only_agents_with_models_have_a_door() -> None:
    parts: Any = None
    door = ModelGateway(parts, parts)
    assert door.is_for(an_agent(models=["local"]))
    assert not door.is_for(an_agent())


async def test_a_refusal_takes_its_time_and_of_many_one_is_logged(gateway: GatewayYard) -> None:
    async with a_door(gateway, GatewayLimits(refusal_seconds=0.1)) as door, client(door.socket) as session:
        began = time.monotonic()
        with capture_logs() as logs:
            for _ in range(3):
                async with session.post("http://x/nothing", json={}) as answer:
                    assert answer.status == 404
        assert time.monotonic() - began >= 0.3
    assert [line["event"] for line in logs] == ["request to a model refused"]


async def test_after_a_refusal_in_the_middle_of_a_body_the_connection_is_closed(gateway: GatewayYard) -> None:
    async with a_door(gateway, GatewayLimits(linger_seconds=0.2, refusal_seconds=0)) as door:
        head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
        answer = await door.raw(head)
    assert b"404 Not Found" in answer
    assert b"\r\nConnection: close\r\n" in answer


class CountingThreads(ThreadPoolExecutor):
    """A pool that knows how often it was used."""

    used = 0

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        self.used += 1
        return super().submit(fn, *args, **kwargs)


async def test_what_is_large_is_parsed_in_a_thread(gateway: GatewayYard) -> None:
    with CountingThreads(1) as threads:
        async with a_door(gateway, threads=threads) as door:
            await door.ask()
            assert threads.used == 0
            await door.ask(body=a_request(messages=[{"role": "user", "content": "x" * 70_000}]))
            assert threads.used == 1


class BrokenStore(ModelAccounts):
    """Accounts of a database that fails."""

    async def turn(self, sandbox_id: SandboxId, model: str) -> TurnUnderWay:
        raise StoreError("the disk is full")


class ForgetfulStore(ModelAccounts):
    """Accounts of a database that fails at the first look at a turn."""

    looks = 0

    async def runs(self, sandbox_id: SandboxId, turn: TurnUnderWay) -> bool:
        type(self).looks += 1
        if self.looks == 1:
            raise StoreError("the disk is full")
        return await super().runs(sandbox_id, turn)


class SlowStore(ModelAccounts):
    """Accounts that give up waiting when an answer has come."""

    async def settle(self, reservation: Reservation, used: int) -> None:
        raise TimeoutError


async def test_only_the_end_of_a_turn_is_said_to_be_one(gateway: GatewayYard) -> None:
    known = gateway.gateway.parts.accounts
    async with a_door(gateway, accounts=SlowStore(known.config, known.database, known.telling)) as door:
        status, message = await door.refused()
    assert (status, "made a mistake" in message) == (500, True)


async def test_with_a_database_that_fails_a_request_is_to_be_tried_later(gateway: GatewayYard) -> None:
    known = gateway.gateway.parts.accounts
    async with a_door(gateway, accounts=BrokenStore(known.config, known.database, known.telling)) as door:
        status, message = await door.refused()
    assert (status, "Try again later" in message) == (503, True)
    assert gateway.service.asked == []


async def test_a_look_at_a_turn_that_fails_is_made_again(gateway: GatewayYard) -> None:
    async def hangs(*_: object) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    gateway.service.answer = hangs
    known = gateway.gateway.parts.accounts
    accounts = ForgetfulStore(known.config, known.database, known.telling)
    async with a_door(gateway, accounts=accounts, limits=ExchangeLimits(turn_seconds=0.05)) as door:
        asking = asyncio.create_task(door.refused())
        async with asyncio.timeout(60):
            while accounts.looks < 2:
                await asyncio.sleep(0.01)
            assert not asking.done()
            await gateway.agents.ended(gateway.turn_id)
            assert (await asking)[0] == 403


async def test_the_connection_of_a_guest_that_reads_nothing_is_ended_after_a_while(gateway: GatewayYard) -> None:
    event = sse({"choices": [], "pad": "x" * 50_000})
    gateway.service.answer = lambda request, _: stream(request, [event] * 200)
    body = json.dumps(a_request(stream=True)).encode()
    head = b"POST /local/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)

    async with a_door(gateway, limits=ExchangeLimits(write_seconds=0.3)) as door:
        with socket.socket(socket.AF_UNIX) as guest:
            guest.connect(str(door.socket))
            guest.send(head + body)
            ends = select.poll()
            ends.register(guest, select.POLLHUP)
            async with asyncio.timeout(10):
                while not ends.poll(0):
                    await asyncio.sleep(0.05)
    assert gateway.metrics.results == ["failed"]
