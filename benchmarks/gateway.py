"""What the gateway to models costs: the first byte of a stream, and a long stream, compared with asking directly.

Service, gateway and client are processes of their own; the client is on the host's side of the sandbox's socket.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from aiohttp import web

from benchmarks.figures import Figure, median, ms, spread
from ravebot.clock import SystemClock, to_us
from tests.support.models import a_gateway, a_model, a_request, a_service, chat_stream, client, serve_until_killed, sse

REQUESTS = 300
STREAMS = 8
STREAM_EVENTS = 250_000
PACE_BYTES, PACED_EVENTS = 20_000_000, 100_000
AIM_SECONDS, AIM_SHARE = 0.003, 0.8
_PATH = "/v1/chat/completions"
_WORD = sse(
    {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": " word" * 20}}], "usage": None}
)
_PROMPT = "x" * 40_000
"""About what an agent sends with each request."""


async def measure() -> tuple[Figure, ...]:
    """Each request is made directly and through the gateway, in turns."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(_process(_serve_model, folder / "url"))
        async with a_gateway(folder) as yard:
            config = yard.config.model_copy(update={"models": (a_model(url, allow=["*"], max_output=1000),)})
            sandbox_id, state_dir = yard.sandbox_id, folder / "state"
            until = to_us(SystemClock().now() + timedelta(hours=1))
            await yard.agents.yard.write(lambda tx: tx.execute("UPDATE agent_turns SET deadline = ?", (until,)))
        socket = folder / "models.sock"
        copies = folder / "copies.sock"
        stack.enter_context(_running(_serve_gateway, state_dir, config, sandbox_id, socket))
        stack.enter_context(_running(_serve_copies, url, copies))
        await _until_there(socket)
        await _until_there(copies)
        async with aiohttp.ClientSession() as direct, client(socket) as through, client(copies) as copied:
            ways = ((direct, url + _PATH), (through, f"http://x/local{_PATH}"), (copied, f"http://x{_PATH}"))
            firsts = await _first_bytes(ways)
            rates = await _throughput(ways, STREAMS, STREAM_EVENTS)
            paced = await _throughput(ways, 3, PACED_EVENTS, top_p=1)
    added = median(firsts[1]) - median(firsts[0])
    share, at_pace = (median(found[1]) / median(found[0]) for found in (rates, paced))
    of_copies = median(rates[1]) / median(rates[2])
    copying = median(firsts[2]) - median(firsts[0])
    return (
        Figure(
            "added until the first byte",
            ms(added),
            f"≤ {ms(AIM_SECONDS)}",
            added <= AIM_SECONDS,
            f"medians of {REQUESTS} streams; directly {spread(firsts[0])}; through the gateway {spread(firsts[1])};"
            f" a proxy that only copies adds {ms(copying)}",
        ),
        Figure(
            "throughput of a stream that comes as fast as it goes",
            f"{share:.0%} of directly",
            f"≥ {AIM_SHARE:.0%}",
            share >= AIM_SHARE,
            f"medians of {STREAMS}; directly {median(rates[0]):.0f} MB/s, through the gateway"
            f" {median(rates[1]):.0f} MB/s; a proxy that only copies, of the same library and without any check,"
            f" {median(rates[2]):.0f} MB/s, {median(rates[2]) / median(rates[0]):.0%} of directly: three processes"
            f" share {os.cpu_count()} processors then, not two",
        ),
        Figure(
            "the same, of a proxy that only copies",
            f"{of_copies:.0%} of copying",
            f"≥ {AIM_SHARE:.0%}",
            of_copies >= AIM_SHARE,
            "what the gateway's checks cost, without what any proxy costs",
        ),
        Figure(
            f"throughput of a stream that comes with {PACE_BYTES / 1e6:.0f} MB/s",
            f"{at_pace:.0%} of directly",
            f"≥ {AIM_SHARE:.0%}",
            at_pace >= AIM_SHARE,
            f"some thousand times what models send; directly {median(paced[0]):.1f} MB/s, through the gateway"
            f" {median(paced[1]):.1f} MB/s",
        ),
    )


async def _first_bytes(ways: tuple[tuple[aiohttp.ClientSession, str], ...]) -> tuple[list[float], ...]:
    taken: tuple[list[float], ...] = tuple([] for _ in ways)
    for number in range(REQUESTS + 20):
        for times, (session, url) in zip(taken, ways, strict=True):
            began = time.perf_counter()
            async with session.post(url, json=_request(0)) as answer:
                await answer.content.readany()
                seconds = time.perf_counter() - began
                await answer.read()
            if number >= 20:  # both sides have run it before
                times.append(seconds)
    return taken


async def _throughput(
    ways: tuple[tuple[aiohttp.ClientSession, str], ...], streams: int, events: int, **more: object
) -> tuple[list[float], ...]:
    """In megabytes a second."""
    rates: tuple[list[float], ...] = tuple([] for _ in ways)
    for _ in range(streams):
        for found, (session, url) in zip(rates, ways, strict=True):
            began, came = time.perf_counter(), 0
            async with session.post(url, json=_request(events, **more)) as answer:
                async for chunk in answer.content.iter_any():
                    came += len(chunk)
            assert came >= events * len(_WORD)
            found.append(came / 1e6 / (time.perf_counter() - began))
    return rates


def _request(events: int, **more: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": _PROMPT}]
    return a_request(stream=True, stream_options={"include_usage": True}, seed=events, messages=messages, **more)


def _serve_gateway(*arguments: Any) -> None:
    with open(os.devnull, "w") as nowhere:  # a line for each request, which costs what it costs
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=nowhere))
        serve_until_killed(*arguments)


def _serve_copies(url: str, socket: Path) -> None:
    asyncio.run(_copies(url, socket))


async def _copies(url: str, socket: Path) -> None:
    """A proxy that checks, counts and limits nothing: what a gateway written with these parts reaches at most."""

    async def copy(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        async with session.post(
            url + request.raw_path, data=body, headers={"Content-Type": "application/json"}
        ) as answer:
            response = web.StreamResponse(headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response

    async with aiohttp.ClientSession() as session:
        await asyncio.get_running_loop().create_unix_server(web.Server(copy), str(socket))
        await asyncio.Event().wait()


def _serve_model(told: Path) -> None:
    asyncio.run(_model(told))


async def _model(told: Path) -> None:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        began, sent = time.monotonic(), 0
        for _ in range(0, body["seed"], 50):
            await response.write(_WORD * 50)
            sent += 50 * len(_WORD)
            if "top_p" in body:  # at that pace
                await asyncio.sleep(max(0, began + sent / PACE_BYTES - time.monotonic()))
        await response.write(b"".join(chat_stream()))
        return response

    async with a_service() as service:
        service.answer = answer
        partly = told.with_suffix(".new")
        await asyncio.to_thread(partly.write_text, json.dumps(service.url))
        await asyncio.to_thread(partly.rename, told)
        await asyncio.Event().wait()


async def _until_there(path: Path) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(path.exists):
            await asyncio.sleep(0.02)


@contextmanager
def _running(function: Callable[..., None], *arguments: object) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


@contextmanager
def _process(function: Callable[[Path], None], told: Path) -> Iterator[str]:
    """A process that tells what it is found by in that file."""
    with _running(function, told):
        until = time.monotonic() + 30
        while not told.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        yield json.loads(told.read_text())
