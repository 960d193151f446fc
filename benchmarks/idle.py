"""What the running bot costs while nothing happens: its processor time, children such as nft included."""

from __future__ import annotations

import asyncio
import time

import psutil

from benchmarks.figures import Figure
from benchmarks.scene import told_everything
from tests.support.stage import Stage

SECONDS = 60.0
SETTLE_SECONDS = 8.0


async def measure() -> tuple[Figure, ...]:
    """Measure a minute without sandboxes, then a minute with one ready sandbox that nobody uses."""
    async with Stage() as stage:
        await stage.start()
        nothing, _ = await _per_minute(stage)
        await stage.ready(stage.open_merge_request(), 180)
        await told_everything(stage)
        one, memory = await _per_minute(stage)
    return (
        Figure("idle, no sandbox", f"{nothing:.2f} CPU s a minute", note=f"{nothing / 60:.2%} of one processor"),
        Figure("idle, one sandbox ready", f"{one:.2f} CPU s a minute", note=f"{one / 60:.2%} of one processor"),
        Figure("resident memory", f"{memory / 1024**2:.0f} MiB", note="the bot's process alone"),
    )


async def _per_minute(stage: Stage) -> tuple[float, int]:
    """CPU seconds a minute, and resident bytes."""
    await asyncio.sleep(SETTLE_SECONDS)
    assert stage.bot.process
    process = psutil.Process(stage.bot.process.pid)
    began, before = time.monotonic(), _cpu_seconds(process)
    await asyncio.sleep(SECONDS)
    used = _cpu_seconds(process) - before
    return used * 60 / (time.monotonic() - began), process.memory_info().rss


def _cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of the process and its children, ended ones included."""
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total
