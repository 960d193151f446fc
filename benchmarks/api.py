"""Calls of the API and MCP over loopback; who asks shares the process, so its own work is part of the figures."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from benchmarks.figures import Figure, median, ms, percentile, spread
from benchmarks.scene import paced
from ravebot.operations.tokens.reports import TokenMade
from tests.support.api_yard import ApiYard, an_api_yard

PER_SECOND = 100
SECONDS = 20
TOKENS = 10
CALLS = 300
AIM_CALL_SECONDS, AIM_REQUEST_SECONDS = 0.010, 0.025
ERAS = {"legacy": "2025-11-25", "2026-07-28": "2026-07-28"}


async def measure() -> tuple[Figure, ...]:
    """MCP one call after the other in both eras of the protocol; REST at a steady rate from several tokens."""
    with TemporaryDirectory(prefix="ravebot-bench-") as folder:
        async with an_api_yard(Path(folder) / "state") as yard:
            await yard.ready()
            calls = [await _calls(yard, mode) for mode in ERAS]
            return (*calls, await _requests(yard))


async def _calls(yard: ApiYard, mode: str) -> Figure:
    seconds: list[float] = []
    made = [await yard.token() for _ in range(1 + CALLS // 100)]  # within each one's limit
    for number, token in enumerate(made):
        async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {token.text}"}) as http:
            transport: Any = streamable_http_client(f"{yard.url}/mcp", http_client=http)
            async with Client(transport, mode=mode) as client:
                for _ in range(CALLS // len(made)):
                    began = time.perf_counter()
                    result = await client.call_tool("sandbox_get", {"ref": yard.mr.full_ref})
                    seconds.append(time.perf_counter() - began)
                    assert not result.is_error, number
    middle = median(seconds)
    about = f"sandbox_get by Python's SDK, protocol {ERAS[mode]}; {len(seconds)} calls"
    return Figure(
        f"MCP call, {ERAS[mode]}",
        spread(seconds),
        f"median < {ms(AIM_CALL_SECONDS)}",
        middle < AIM_CALL_SECONDS,
        about,
    )


async def _requests(yard: ApiYard) -> Figure:
    tokens = [await yard.token() for _ in range(TOKENS)]
    paths = ("/whoami", f"/sandboxes/{yard.mr.full_ref}", "/sandboxes")
    seconds: list[float] = []

    async def ask(number: int, token: TokenMade) -> None:
        began = time.perf_counter()
        heard = await yard.get(paths[number % len(paths)], token)
        seconds.append(time.perf_counter() - began)
        assert heard.status == 200, heard

    for token in tokens:  # each one's first use is written down
        await ask(0, token)
    seconds.clear()
    async with asyncio.TaskGroup() as group:
        async for number in paced(PER_SECOND * SECONDS, PER_SECOND):
            group.create_task(ask(number, tokens[number % TOKENS]))
    late = percentile(seconds, 99)
    return Figure(
        f"API request at {PER_SECOND}/s",
        spread(seconds),
        f"p99 < {ms(AIM_REQUEST_SECONDS)}",
        late < AIM_REQUEST_SECONDS,
        f"{len(seconds)} looks by {TOKENS} tokens; longest {ms(max(seconds))}",
    )
