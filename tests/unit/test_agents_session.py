"""What an agent says is read without holding up anything else."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from ravebot.agents.transports.acp.lines import LineReader
from ravebot.agents.transports.acp.protocol import LONGEST_LINE, read_line
from ravebot.agents.transports.acp.session import AgentSession
from ravebot.agents.transports.acp.stdio import CHUNK_BYTES, Attached


async def test_a_line_that_takes_long_to_read_does_not_hold_up_the_event_loop() -> None:
    line = b'{"jsonrpc":"2.0","x":[' + b"{}," * (LONGEST_LINE // 3 - 20) + b"0]}"
    began = time.perf_counter()
    read_line(line)
    alone = time.perf_counter() - began
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)

    attached = Attached(cast(Any, None), b"", asyncio.get_running_loop().create_future(), 0, asyncio.Event())
    session = AgentSession(attached, LineReader(0))
    beats = asyncio.create_task(beat())
    await asyncio.sleep(0.01)
    for start in range(0, len(line), CHUNK_BYTES):
        attached._held += line[start : start + CHUNK_BYTES]
        assert await session.heard() == []
    attached._held += b"\n"
    assert len(await session.heard()) == 1
    beats.cancel()
    assert longest < alone / 2
