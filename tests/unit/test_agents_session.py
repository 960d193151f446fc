"""What an agent says is read without holding up anything else."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from ravebot.agents.transports.acp.lines import LineReader
from ravebot.agents.transports.acp.protocol import LONGEST_LINE, read_line
from ravebot.agents.transports.acp.session import AgentSession
from ravebot.agents.transports.acp.stdio import CHUNK_BYTES, Attached

LINE = b'{"jsonrpc":"2.0","x":[' + b"{}," * (LONGEST_LINE // 3 - 20) + b"0]}"
ATTEMPTS = 5
"""On a busy machine, whoever else runs holds the event loop up now and then, but not each time."""


def alone() -> float:
    """Seconds that the line takes where nothing runs beside."""
    began = time.perf_counter()
    read_line(LINE)
    return time.perf_counter() - began


async def longest_pause() -> float:
    """For how many seconds nothing else could run while the line was read."""
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
    for start in range(0, len(LINE), CHUNK_BYTES):
        attached._held += LINE[start : start + CHUNK_BYTES]
        assert await session.heard() == []
    attached._held += b"\n"
    assert len(await session.heard()) == 1
    await asyncio.sleep(0.01)  # a pause that has not ended is measured, too
    beats.cancel()
    return longest


async def test_a_line_that_takes_long_to_read_does_not_hold_up_the_event_loop() -> None:
    measured = [(await longest_pause(), alone()) for _ in range(ATTEMPTS)]
    assert min(pause / seconds for pause, seconds in measured) < 0.5, measured
