"""Scrapes of /metrics over loopback while 1,000 sandboxes run, and what measuring these takes of the event loop."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import aiohttp
from aiohttp import web

from benchmarks.figures import Figure, ms, percentile, spread
from ravebot.store.figures import RunningMachine
from ravebot.web.metrics import Metrics, running
from ravebot.web.server import make_app, serve

MACHINES = 1000
PROJECTS = 100
SCRAPES = 200
AIM_SECONDS = 0.050


async def measure() -> tuple[Figure, ...]:
    """Who asks shares the process, so its own work is part of the figures."""
    metrics, machines = Metrics(), [_machine(number) for number in range(MACHINES)]
    written = []
    for _ in range(SCRAPES):
        series = running.written(machines)  # by a thread of the database's
        began = time.perf_counter()
        metrics.running_seen(machines, MACHINES, MACHINES, series)
        written.append(time.perf_counter() - began)
    scraped, size = await _scrapes(metrics)
    return (
        _figure("scrape of /metrics", scraped, f"{size:,} bytes; {MACHINES:,} machines of {PROJECTS} projects"),
        _figure("taking what was measured", written, "every 10 seconds; the event loop does nothing else meanwhile"),
    )


async def _scrapes(metrics: Metrics) -> tuple[list[float], int]:
    seconds, body = [], b""
    async with (
        serve(make_app(_no_webhooks, {}, metrics), "127.0.0.1", 0) as (host, port),
        aiohttp.ClientSession() as http,
    ):
        for _ in range(SCRAPES):
            began = time.perf_counter()
            async with http.get(f"http://{host}:{port}/metrics") as answer:
                body = await answer.read()
            seconds.append(time.perf_counter() - began)
            assert answer.status == 200
    assert body.count(b"ravebot_machine_vcpus{") == MACHINES
    return seconds, len(body)


def _figure(name: str, seconds: list[float], note: str) -> Figure:
    return Figure(name, spread(seconds), f"p99 < {ms(AIM_SECONDS)}", percentile(seconds, 99) < AIM_SECONDS, note)


def _machine(number: int) -> RunningMachine:
    now = datetime.now(UTC)
    return RunningMachine(
        project=f"group/project-{number % PROJECTS}", iid=number, name=f"rave-main-{number}", vcpus=2,
        memory_bytes=4 * 1024**3, cpu_seconds=number / 7, memory_used_bytes=1024**3, disk_used_bytes=3 * 1024**3,
        open_files=40, received_bytes=number * 1000, sent_bytes=number * 100, ready_at=now,
        expires_at=now + timedelta(hours=1), measured_at=now, busy_since=None, visited_at=now,
    )  # fmt: skip


async def _no_webhooks(_: web.Request) -> web.Response:
    raise web.HTTPNotFound
