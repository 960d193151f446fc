"""What guests and services do wrong at the gateway to models is bounded and said, and others notice nothing."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ravebot.agents.models.exchange import ExchangeLimits
from ravebot.agents.models.gateway import GatewayLimits
from ravebot.agents.models.upstream import UpstreamLimits
from tests.support.models import GatewayYard, a_gateway, a_request, client, sse, stream

pytestmark = pytest.mark.integration
PATH = "/local/v1/chat/completions"
MOST = 8 * 1024**2
SLOWEST_SECONDS = 2.0
"""How long a neighbour's request may take on a busy machine; without a hostile guest it takes some milliseconds."""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayYard]:
    quick = ExchangeLimits(body_seconds=0.5, write_seconds=0.5, answer_bytes=MOST, event_bytes=100_000)
    async with a_gateway(
        tmp_path,
        limits=GatewayLimits(idle_seconds=0.5, linger_seconds=0.2, refusal_seconds=0),
        exchange=quick,
        upstream=UpstreamLimits(connect_seconds=1.0, silence_seconds=0.5),
    ) as gateway:
        yield gateway


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[GatewayYard]:
    """One whose usual limits of time end nothing here, however slow the machine is."""
    exchange = ExchangeLimits(answer_bytes=MOST, event_bytes=100_000)
    limits = GatewayLimits(linger_seconds=0.2, refusal_seconds=0)
    async with a_gateway(tmp_path, limits=limits, exchange=exchange) as gateway:
        yield gateway


def head(length: int | str, *more: bytes, path: str = PATH) -> bytes:
    lines = [b"POST %s HTTP/1.1" % path.encode(), b"Host: x", b"Content-Length: %s" % str(length).encode(), *more]
    return b"\r\n".join((*lines, b"", b""))


def request(path: str = PATH, **more: object) -> bytes:
    body = json.dumps(a_request(**more)).encode()
    return head(len(body), path=path) + body


@asynccontextmanager
async def noticed_by_nobody(
    gateway: GatewayYard, clock: Callable[[], float] = time.monotonic, at_most: float = SLOWEST_SECONDS
) -> AsyncIterator[None]:
    """While the block runs, another sandbox's requests are answered as always: within `at_most` seconds, and within
    SLOWEST_SECONDS of what `clock` counts."""
    async with gateway.neighbour() as path, client(path) as session:
        slowest = slowest_counted = 0.0

        async def ask() -> None:
            nonlocal slowest, slowest_counted
            while True:
                began, counted = time.monotonic(), clock()
                async with session.post(f"http://x{PATH}", json=a_request(max_tokens=7)) as answer:
                    assert answer.status == 200
                slowest, slowest_counted = (
                    max(slowest, time.monotonic() - began),
                    max(slowest_counted, clock() - counted),
                )
                await asyncio.sleep(0.02)

        asking = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        yield
        await asyncio.sleep(0.05)
        assert not asking.done()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        assert 0 < slowest < at_most
        assert 0 < slowest_counted < SLOWEST_SECONDS


def only_for(answer: Callable[[web.Request, dict[str, Any]], Any]) -> Callable[[web.Request, dict[str, Any]], Any]:
    """Does that to the hostile guest's requests, and answers the neighbour's."""

    def choose(request: web.Request, body: dict[str, Any]) -> Any:
        if body.get("max_tokens") == 7:
            return web.json_response({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})
        return answer(request, body)

    return choose


async def sends_until_closed(writer: asyncio.StreamWriter, piece: bytes, most: int) -> int:
    """Send the same again and again; how many bytes were taken before the connection was closed."""
    sent = 0
    with suppress(ConnectionError):
        while sent < most:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 5)
            sent += len(piece)
    return sent


@pytest.mark.parametrize("chunked", [False, True], ids=["as announced", "chunked"])
async def test_a_guest_that_sends_1_gib_is_stopped_at_the_limit(patient: GatewayYard, *, chunked: bool) -> None:
    piece = b"x" * 100_000
    async with noticed_by_nobody(patient):
        reader, writer = await asyncio.open_unix_connection(str(patient.socket))
        if chunked:
            writer.write(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
            piece = b"%x\r\n%s\r\n" % (len(piece), piece)
        else:
            writer.write(head(1024**3))
        sending = asyncio.create_task(sends_until_closed(writer, piece, 1024**3))
        answer = await reader.readuntil(b"}}")
        assert b"413 Request Entity Too Large" in answer
        assert b"8,388,608 bytes: make it smaller" in answer
        assert await sending < 1024**3
        writer.close()
    assert all(body["max_tokens"] == 7 for _, _, body in patient.service.asked)


async def test_a_body_that_is_announced_as_too_large_is_refused_before_it_comes(gateway: GatewayYard) -> None:
    assert b"413" in (await gateway.raw(head(1024**3))).splitlines()[0]


async def test_a_body_without_end_and_one_that_trickles_are_given_up(gateway: GatewayYard) -> None:
    answer = await gateway.raw(head(1000) + b'{"model": ')
    assert b"408" in answer.splitlines()[0]
    assert b"did not come in time" in answer
    assert gateway.service.asked == []


@pytest.mark.parametrize("streamed", [False, True], ids=["in one piece", "streamed"])
async def test_a_guest_that_reads_nothing_is_cut_off(gateway: GatewayYard, *, streamed: bool) -> None:
    async def endless(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        if not streamed:
            return web.json_response({"pad": "x" * (MOST - 1000)})
        return await stream(request, [sse({"choices": [], "pad": "x" * 50_000})] * 10_000)

    gateway.service.answer = only_for(endless)
    async with noticed_by_nobody(gateway):
        reader, writer = await asyncio.open_unix_connection(str(gateway.socket), limit=1000)
        writer.write(request(stream=streamed))
        await asyncio.sleep(1.2)  # longer than the guest may read nothing
        async with asyncio.timeout(60):
            while "failed" not in gateway.metrics.results:
                await asyncio.sleep(0.01)
        writer.close()
        del reader
    assert await gateway.used() > 32_000


async def test_an_answer_without_end_is_cut_off(gateway: GatewayYard) -> None:
    async def endless(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, [sse({"choices": [], "pad": "x" * 50_000})] * 1000)

    gateway.service.answer = endless
    answer = await gateway.raw(request(stream=True), seconds=20)
    assert MOST - 1_000_000 < len(answer) < MOST + 200_000
    assert not answer.endswith(b"0\r\n\r\n")
    gateway.service.answer = lambda request, _: stream(request, [b"data: " + b"x" * 300_000])
    answer = await gateway.raw(request(stream=True))
    assert len(answer) < 110_000
    gateway.service.answer = lambda *_: web.json_response({"pad": "x" * MOST})
    assert (await gateway.refused())[0] == 502


SMUGGLED = {
    "two lengths": head(5, b"Content-Length: 60"),
    "length and chunks": head(5, b"Transfer-Encoding: chunked"),
    "a space before the colon": head(5, b"Transfer-Encoding : chunked"),
    "unknown encoding of the transfer": head(5).replace(b"Content-Length: 5", b"Transfer-Encoding: xchunked"),
    "a folded header": head(5, b"X: 1", b" Content-Length: 60"),
    "a length with a sign": head("+5"),
    "a null in a header": head(5, b"X: \x00"),
    "a header without a name": head(5, b": x"),
    "a bare line feed": head(5).replace(b"\r\n", b"\n", 1),
    "chunks with a wrong length": head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"5x\r\nhello",
    "too long a header": head(5, b"X: " + b"x" * 20_000),
    "too many headers": head(5, *(b"X%d: x" % number for number in range(200))),
}


async def test_what_could_smuggle_a_second_request_is_refused(gateway: GatewayYard) -> None:
    for name, sent in SMUGGLED.items():
        answer = await gateway.raw(sent + b"hello" + request())
        # One answer: nothing of what follows is taken for a request.
        assert re.findall(rb"HTTP/1[.][01] ([0-9]{3})", answer) in ([b"400"], [b"408"]), (name, answer)
    assert gateway.service.asked == []


REFUSED = (
    (request(path="/local/v1/files"), 404, b"Use one of: /local/v1/messages"),
    (request(path="/local/v1/../v1/chat/completions"), 404, b"nothing at this address"),
    (request(path="/local/v1/chat%2Fcompletions"), 404, b"nothing at this address"),
    (request(path="/local//v1/chat/completions"), 404, b"nothing at this address"),
    (request(path="/other/v1/chat/completions"), 404, b"nothing at this address"),
    (request(path="http://elsewhere.example.org/local/v1/chat/completions"), 404, b"nothing at this address"),
    (request(path=f"{PATH}?key=mine"), 404, b"nothing after the '?'"),
    (request(path=f"{PATH}?beta=true"), 404, b"nothing after the '?'"),
    (request(path="/local/v1/messages?beta=true&key=mine"), 404, b"nothing after the '?'"),
    (request().replace(b"POST", b"GET", 1), 405, b"use POST"),
    (request(model="gpt-9"), 403, b"'gpt-9' is not among the models that local allows: tiny, claude-*"),
    (request(tools=[{"type": "web_search_20260101"}]), 403, b"server_tools: allow"),
    (head(2, b"Upgrade: websocket", b"Connection: upgrade") + b"{}", 400, b"can't be upgraded"),
    (head(2, b"Content-Encoding: gzip") + b"{}", 415, b"without compression"),
    (head(4) + b"nope", 400, b"not JSON"),
    (head(40_000) + b"[" * 40_000, 400, b"not JSON"),
    (head(400_000) + b"[" * 400_000, 413, b"too many values"),
)  # fmt: skip


async def test_other_paths_hosts_models_and_forms_are_refused_with_a_mend(gateway: GatewayYard) -> None:
    for sent, status, word in REFUSED:
        answer = await gateway.raw(sent.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        assert (int(answer.split()[1]), word in answer) == (status, True), (sent[:100], answer)
    assert gateway.service.asked == []
    assert await gateway.used() == 0


async def test_the_connect_method_reaches_no_other_host(gateway: GatewayYard) -> None:
    answer = await gateway.raw(b"CONNECT elsewhere.example.org:443 HTTP/1.1\r\nHost: elsewhere.example.org:443\r\n\r\n")
    assert answer.split()[1] in (b"400", b"404", b"405")
    assert gateway.service.asked == []


def opens(path: Path, count: int) -> list[socket.socket]:
    """Connects as fast as the machine can."""
    opened = []
    for _ in range(count):
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(path))
        opened.append(one)
    return opened


def is_open(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def test_a_guest_that_opens_1000_connections_at_once_gets_32_and_others_notice_nothing(tmp_path: Path) -> None:
    async with a_gateway(tmp_path) as gateway, noticed_by_nobody(gateway):
        opened = await asyncio.to_thread(opens, gateway.socket, 1000)
        await asyncio.sleep(0.1)
        assert sum(map(is_open, opened)) == GatewayLimits().connections
        for one in opened:
            one.close()
        async with asyncio.timeout(60):
            while isinstance((await asyncio.gather(gateway.ask(), return_exceptions=True))[0], Exception):
                await asyncio.sleep(0.05)


async def test_connections_that_are_accepted_at_once_are_counted_like_others(tmp_path: Path) -> None:
    async with a_gateway(tmp_path) as gateway:
        opened = await asyncio.to_thread(opens, gateway.socket, 20)
        await asyncio.sleep(0.1)
        opened += opens(gateway.socket, 30)  # while the event loop stands
        await asyncio.sleep(0.1)
        assert sum(map(is_open, opened)) == GatewayLimits().connections
        for one in opened:
            one.close()


async def test_of_many_requests_at_once_four_are_with_the_service_and_the_others_wait(patient: GatewayYard) -> None:
    at_once, most = 0, 0

    async def counts(*_: object) -> web.Response:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1
        return web.json_response({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    patient.service.answer = only_for(counts)
    async with noticed_by_nobody(patient):
        answers = await asyncio.gather(*(patient.ask() for _ in range(12)))
    assert {status for status, _, _ in answers} == {200}
    assert most == 4


async def test_an_idle_connection_and_one_that_never_ends_its_head_are_closed(gateway: GatewayYard) -> None:
    assert await gateway.raw(b"") == b""
    assert await gateway.raw(b"POST /local HTTP/1.1\r\nHost: x\r\n") == b""


@pytest.mark.parametrize("part", ["before the head", "in the answer", "in the stream"])
async def test_a_service_that_hangs_is_given_up_and_said(gateway: GatewayYard, part: str) -> None:
    async def hangs(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        if part == "before the head":
            await asyncio.sleep(30)
        kind = "text/event-stream" if part == "in the stream" else "application/json"
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        await response.write(sse({"choices": []}))
        await asyncio.sleep(30)
        return response

    gateway.service.answer = only_for(hangs)
    async with noticed_by_nobody(gateway):
        answer = await gateway.raw(request(stream=True).replace(b"Host: x", b"Host: x\r\nConnection: close"))
    if part == "in the stream":
        assert b'"choices": []' in answer
        assert not answer.endswith(b"0\r\n\r\n")
    else:
        assert b"502 Bad Gateway" in answer
        assert (b"took too long" if part == "before the head" else b"broke off in its answer") in answer
    assert await gateway.used() > 32_000


async def test_a_turn_s_time_bounds_its_requests(gateway: GatewayYard) -> None:
    async def trickles(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(sse({"choices": []}))
            await asyncio.sleep(0.1)

    gateway.service.answer = trickles
    gateway.agents.yard.pass_by(seconds=30 * 60 - 1)
    began = time.monotonic()
    answer = await gateway.raw(request(stream=True), seconds=10)
    assert b'"choices": []' in answer
    assert 0.9 < time.monotonic() - began < 8


async def test_a_body_that_breaks_off_or_is_malformed_is_refused(gateway: GatewayYard) -> None:
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    reader, writer = await asyncio.open_unix_connection(str(gateway.socket))
    writer.write(chunked + b"5\r\nhello\r\n")
    await asyncio.sleep(0.1)  # its request is being read
    writer.write(b"zz\r\nhello")
    assert (await reader.read()).split()[1] in (b"400", b"408")
    writer.close()
    reader, writer = await asyncio.open_unix_connection(str(gateway.socket))
    writer.write(head(1000) + b"{")
    await asyncio.sleep(0.1)
    writer.close()
    async with asyncio.timeout(60):
        while len(gateway.metrics.results) < 2:
            await asyncio.sleep(0.01)
    assert gateway.service.asked == []


async def test_requests_that_take_long_to_check_are_noticed_by_nobody(tmp_path: Path) -> None:
    def body(metadata: str) -> bytes:
        return b'{"model":"tiny","messages":[],"metadata":%s}' % metadata.encode()

    heavy = [
        body("[" + '"' + "\\n" * 3_500_000 + '"]'),
        body("[" + "[]," * 90_000 + "1]"),
        body("{" + ",".join(f'"{number}":1' for number in range(45_000)) + "}"),
    ]
    async with a_gateway(tmp_path) as gateway:
        gateway.service.answer = only_for(lambda *_: web.json_response({}))
        # Seconds of the processor, of which this process, and so the gateway, has few beside machines that boot.
        async with noticed_by_nobody(gateway, time.process_time, at_most=20):
            answers = await asyncio.gather(*(gateway.ask(data=one) for one in heavy * 2))
    assert [status for status, _, _ in answers] == [200] * 6


async def test_a_flood_of_small_events_is_taken_in_small_pieces_so_that_others_have_their_turn(
    gateway: GatewayYard,
) -> None:
    event = sse({"choices": [{"index": 0, "delta": {}}], "usage": {"completion_tokens": 1}})
    gateway.service.answer = lambda request, _: stream(request, [event * 40_000])
    answer = await gateway.raw(request(stream=True).replace(b"Host: x", b"Host: x\r\nConnection: close"), seconds=20)
    sizes = [int(size, 16) for size in re.findall(rb"\r\n([0-9a-f]{1,8})\r\n", answer)]
    assert sum(sizes) == len(event) * 40_000
    assert max(sizes) <= 500 * len(event)
