"""Connections to the API: who is slow, sends no HTTP, or opens as many as there are, and who uses one for long."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ravebot.web.api import listening
from ravebot.web.api.addresses import is_here
from ravebot.web.api.listening import tcp

pytestmark = pytest.mark.integration
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    await Response("yes")(scope, receive, send)


@asynccontextmanager
async def serving(
    most: int = 10, patience: float = 0.3, is_shared: Callable[[str], bool] = is_here
) -> AsyncIterator[int]:
    on = tcp("127.0.0.1", 0)
    try:
        async with listening.listening(_app, on, most=most, patience=patience, is_shared=is_shared):
            yield on.getsockname()[1]
    finally:
        on.close()


async def asked(port: int, request: bytes = GET) -> Stream:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    return reader, writer


async def test_a_connection_in_steady_use_is_never_closed() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        until = asyncio.get_running_loop().time() + 1
        while asyncio.get_running_loop().time() < until:
            writer.write(GET)
            assert (await asyncio.wait_for(reader.readuntil(b"yes"), 5)).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize("begun", [b"", b"GET / HT"], ids=["nothing", "half a line"])
async def test_who_sends_no_whole_head_is_closed(begun: bytes) -> None:
    async with serving() as port:
        for first in (b"", GET):
            reader, writer = await asked(port, first + begun)
            rest = await asyncio.wait_for(reader.read(), 5)
            assert rest.endswith(b"yes" if first else b"")
            writer.close()


async def test_all_who_are_in_are_served_while_nobody_more_is_let_in() -> None:
    async with serving(most=3, patience=10) as port:
        inside = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        late, _ = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(late.read(), 5) == b""
        for reader, writer in inside:
            writer.write(GET)
            assert (await asyncio.wait_for(reader.readuntil(b"\n"), 5)) == b"HTTP/1.1 200 OK\r\n"
            writer.close()


async def test_what_is_no_http_is_answered_with_a_problem_and_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as port:
        reader, _ = await asked(port, b"NONSENSE\r\n\r\n")
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in head
        assert json.loads(body)["status"] == 400
        chunked = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
        reader, writer = await asked(port, chunked)
        await asyncio.wait_for(reader.readuntil(b"yes"), 5)
        with caplog.at_level(logging.WARNING):
            writer.write(b"no chunk\r\n")
            assert await asyncio.wait_for(reader.read(), 5) == b""
        assert caplog.records == []


async def test_one_address_takes_at_most_a_quarter_of_the_connections_and_gets_them_back() -> None:
    async with serving(most=8, patience=10, is_shared=lambda _: False) as port:
        inside = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        late, _ = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(late.read(), 5) == b""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        inside.append((reader, writer))
        for reader, writer in inside:
            writer.write(GET)
            assert (await asyncio.wait_for(reader.readuntil(b"\n"), 5)) == b"HTTP/1.1 200 OK\r\n"
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(60):
            while True:  # the server hears a little later that they are closed
                reader, writer = await asked(port)
                answered = await reader.read(12)
                writer.close()
                if answered == b"HTTP/1.1 200":
                    break


@pytest.mark.parametrize(
    ("address", "is_of_this_host"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("", True),
     ("192.0.2.1", False), ("2001:db8::1", False), ("::ffff:192.0.2.1", False)],
)  # fmt: skip
def test_only_this_host_shares_its_address_among_many(address: str, is_of_this_host: bool) -> None:
    assert is_here(address) is is_of_this_host


def test_a_crowd_counts_everybody_of_one_ipv6_network_together() -> None:
    crowd = listening.Crowd(1, is_here)
    assert crowd.enters("2001:db8::1")
    assert not crowd.enters("2001:db8::2")
    assert crowd.enters("2001:db8:0:1::2")
    for address in ("2001:db8::1", "2001:db8::2"):
        crowd.leaves(address)
    assert crowd.enters("2001:db8::3")
    assert all(crowd.enters("127.0.0.1") for _ in range(5))
