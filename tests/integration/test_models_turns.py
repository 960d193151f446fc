"""Requests to models live as long as the turn that they are of, and count for the UTC day on which they began."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ravebot.agents.model import TurnState
from ravebot.agents.models.exchange import ExchangeLimits
from ravebot.clock import to_us
from ravebot.sandboxes.model import Actor
from ravebot.store import model_uses
from ravebot.store.database import Transaction
from tests.support.agent_yard import LIMIT
from tests.support.models import COSTS, GatewayYard, a_gateway, a_request, sse

pytestmark = pytest.mark.integration
PATH = "/local/v1/chat/completions"
USAGE = {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayYard]:
    async with a_gateway(tmp_path, exchange=ExchangeLimits(turn_seconds=0.05)) as gateway:
        yield gateway


class Slow:
    """A service that answers once it may; `before`: what a stream has until then."""

    def __init__(self, before: bytes = b"") -> None:
        self.before, self.go_on, self.begun = before, asyncio.Event(), asyncio.Event()

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            self.begun.set()
            await self.go_on.wait()
            return web.json_response({"usage": USAGE})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(self.before)
        self.begun.set()
        await self.go_on.wait()
        await response.write(sse({"choices": [], "usage": USAGE}))
        return response


async def begun(gateway: GatewayYard, slow: Slow, **more: object) -> asyncio.Task[bytes]:
    """A request that is with the service; the task has all that the guest gets for it."""
    gateway.service.answer = slow.answer
    body = json.dumps(a_request(**more)).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    asking = asyncio.create_task(gateway.raw(head % (PATH.encode(), len(body)) + body))
    await asyncio.wait_for(slow.begun.wait(), 5)
    return asking


async def end_process(gateway: GatewayYard) -> None:
    def end(tx: Transaction) -> None:
        tx.execute("UPDATE agent_processes SET ended_at = ?", (tx.now_us,))

    await gateway.agents.yard.write(end)


@pytest.mark.parametrize("state", [TurnState.DONE, TurnState.CANCELLED, TurnState.FAILED, None])
async def test_a_request_is_cut_soon_after_its_turn_or_its_process_has_ended(
    gateway: GatewayYard, state: TurnState | None
) -> None:
    asking = await begun(gateway, slow := Slow())
    if state is None:
        await end_process(gateway)
    else:
        await gateway.agents.ended(gateway.turn_id, state=state)
    answer = await asking
    assert b"403 Forbidden" in answer
    assert b"is not worked on any more" in answer
    assert not slow.go_on.is_set()
    assert await gateway.used() > 32_000  # nobody knows what it cost
    assert gateway.metrics.results == ["failed"]


async def test_a_stream_is_cut_without_an_end_and_settled_only_if_its_usage_was_seen(gateway: GatewayYard) -> None:
    unknown = await begun(gateway, Slow(sse({"choices": [{"delta": {"content": "so far"}}]})), stream=True)
    known = await begun(gateway, Slow(sse({"choices": [], "usage": USAGE})), stream=True)
    await gateway.agents.ended(gateway.turn_id)
    assert b"so far" in await unknown
    for answer in await asyncio.gather(unknown, known):
        assert not answer.endswith(b"0\r\n\r\n")
    uses = await gateway.agents.yard.read(lambda tx: tx.all("SELECT used FROM model_uses ORDER BY id"))
    assert [row["used"] for row in uses] == [None, COSTS["chat"]]


async def test_a_request_goes_on_while_a_person_is_asked_and_another_turn_s_end_is_not_its_own(
    gateway: GatewayYard,
) -> None:
    other = await gateway.agents.taken(thread="$other")
    await gateway.agents.given(other)
    asking = await begun(gateway, slow := Slow())  # of the turn that was given last

    def waits(tx: Transaction) -> None:
        tx.execute("UPDATE agent_turns SET state = 'waiting' WHERE id = ?", (other,))

    await gateway.agents.yard.write(waits)
    await gateway.agents.ended(gateway.turn_id)
    await asyncio.sleep(0.3)
    assert not asking.done()
    slow.go_on.set()
    assert b"200 OK" in await asking
    assert await gateway.used() == COSTS["chat"]


async def test_a_turn_that_is_given_again_is_another_one_for_the_requests_of_the_first(gateway: GatewayYard) -> None:
    asking = await begun(gateway, Slow())
    await gateway.agents.ended(gateway.turn_id)
    await gateway.agents.given(await gateway.agents.taken("and now"))
    assert b"403 Forbidden" in await asking


async def moved(gateway: GatewayYard, **span: float) -> None:
    """Move the clock, as if the turn had begun then."""
    yard = gateway.agents.yard
    yard.pass_by(**span)
    until = to_us(yard.clock.now() + LIMIT)
    await yard.write(lambda tx: tx.execute("UPDATE agent_turns SET deadline = ?", (until,)))


async def used_on(gateway: GatewayYard, *days: str) -> list[int]:
    """What counts for the agent on these days."""
    agent = Actor("agent", "coder")
    return await gateway.agents.yard.read(lambda tx: [model_uses.tokens_on(tx, day, agent) for day in days])


@pytest.mark.parametrize(("hours", "other"), [(12, "2026-01-02"), (-13, "2025-12-31")], ids=["midnight", "set back"])
async def test_what_began_on_a_day_counts_for_that_day_and_another_day_has_its_own_budget(
    tmp_path: Path, hours: int, other: str
) -> None:
    async with a_gateway(tmp_path, agent_tokens=40_000, sandbox_tokens=70_000) as gateway:
        asking = await begun(gateway, slow := Slow())
        status, message = await gateway.refused()
        assert (status, "coder today has used 32," in message) == (403, True)
        await moved(gateway, hours=hours)
        second = await begun(gateway, later := Slow())
        reserved = await used_on(gateway, "2026-01-01", other)
        assert all(32_000 < tokens <= 40_000 for tokens in reserved)
        assert await gateway.used() == sum(reserved)
        status, message = await gateway.refused()
        assert (status, "This sandbox has used 64," in message) == (403, True)  # it has one budget over its life
        slow.go_on.set()
        later.go_on.set()
        for answer in await asyncio.gather(asking, second):
            assert b"200 OK" in answer
        assert await used_on(gateway, "2026-01-01", other) == [COSTS["chat"], COSTS["chat"]]
        assert await gateway.used() == 2 * COSTS["chat"]


async def test_a_day_that_comes_again_because_the_clock_was_set_back_goes_on_where_it_was(tmp_path: Path) -> None:
    async with a_gateway(tmp_path) as gateway:
        for hours in (0, 12, -12):
            await moved(gateway, hours=hours)
            assert (await gateway.ask())[0] == 200
        assert await used_on(gateway, "2026-01-01", "2026-01-02") == [2 * COSTS["chat"], COSTS["chat"]]


async def test_with_the_clock_set_back_a_request_is_still_cut_when_its_turn_ends(gateway: GatewayYard) -> None:
    asking = await begun(gateway, Slow())
    gateway.agents.yard.pass_by(days=-400)
    late = await begun(gateway, Slow())  # its deadline seems to be far away
    await gateway.agents.ended(gateway.turn_id)
    for answer in await asyncio.gather(asking, late):
        assert b"403 Forbidden" in answer
