"""Connections to the API: who is slow, sends no HTTP, or opens as many as there are, and who uses one for long."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ravebot.web.api import listening
from ravebot.web.api.listening import tcp

pytestmark = pytest.mark.integration
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    await Response("yes")(scope, receive, send)


@asynccontextmanager
async def serving(most: int = 10, patience: float = 0.3) -> AsyncIterator[int]:
    on = tcp("127.0.0.1", 0)
    try:
        async with listening.listening(_app, on, most=most, patience=patience):
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
