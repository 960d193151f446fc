"""What strangers can make the receiver take: over the sockets and the server that the bot listens with."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import pytest

from ravebot.clock import SystemClock
from ravebot.gitlab.receiver import webhook_handler
from ravebot.gitlab.refusals import Refusals
from ravebot.gitlab.webhook import WebhookDelivery, WebhookSecrets, signing_key
from ravebot.web.metrics import Metrics
from ravebot.web.server import make_app, serve

pytestmark = pytest.mark.integration

MIB = 1024**2
KEY = signing_key("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
BOTH, SIGNED, TOKEN = WebhookSecrets("a plain secret", KEY), WebhookSecrets(None, KEY), WebhookSecrets("a plain secret")
OURS = {"X-Gitlab-Token": "a plain secret"}
LARGEST = 5 * MIB
"""The most that is read of one body before its signature can be checked."""
ROOM = 16 * MIB
"""The most of all of them together."""


@asynccontextmanager
async def receiving(secrets: WebhookSecrets = BOTH, seconds: float = 1.0) -> AsyncIterator[tuple[str, int]]:
    """The receiver as the bot serves it, but for the time that a body may take; yields its address."""

    async def accept(_: WebhookDelivery) -> bool:
        return True

    clock = SystemClock()
    handler = webhook_handler(secrets, clock, accept, lambda *_: None, Refusals(clock), body_seconds=seconds)
    async with serve(make_app(handler, {}, Metrics()), "127.0.0.1", 0) as address:
        yield address
        await asyncio.sleep(0.1)  # the server sees who hung up, and waits for none of them


def made_up() -> dict[str, str]:
    """The headers of a signature that is none of ours, though it looks like one."""
    now = str(int(time.time()))
    return {"webhook-id": "msg_1", "webhook-timestamp": now, "webhook-signature": f"v1,{'A' * 43}="}


def signed(body: bytes) -> dict[str, str]:
    headers = made_up()
    digest = hmac.new(KEY, f"msg_1.{headers['webhook-timestamp']}.".encode() + body, hashlib.sha256).digest()
    return {**headers, "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}


def event(size_bytes: int) -> bytes:
    """A webhook that asks nothing of us, and is that large."""
    text = json.dumps({"object_kind": "push", "x": ""})
    return text.replace('""', f'"{"x" * (size_bytes - len(text))}"').encode()


class Stranger:
    """One connection that speaks byte by byte, and keeps no copy of what it sends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def begin(self, headers: dict[str, str]) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        await self.send(f"POST /webhooks/gitlab HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())

    async def send(self, data: bytes | memoryview) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, data)

    async def answer(self) -> str:
        """Status line and headers; "" when the connection was closed without any."""
        received = await asyncio.get_running_loop().sock_recv(self._connection, 65536)
        return received.decode()


@asynccontextmanager
async def stranger(address: tuple[str, int]) -> AsyncIterator[Stranger]:
    with socket.socket() as connection:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
        yield Stranger(connection)


@asynccontextmanager
async def holding(address: tuple[str, int]) -> AsyncIterator[None]:
    """Strangers who announce as much as there is room for, and never send it."""
    async with (
        stranger(address) as one,
        stranger(address) as two,
        stranger(address) as three,
        stranger(address) as four,
    ):
        for each in (one, two, three, four):
            await each.begin({**made_up(), "Content-Length": str(ROOM // 4)})
        await asyncio.sleep(0.05)
        yield


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


async def post(address: tuple[str, int], body: bytes, headers: dict[str, str]) -> tuple[int, str | None]:
    """The status, and after how many seconds to come back."""
    host, port = address
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{host}:{port}/webhooks/gitlab", data=body, headers=headers) as response,
    ):
        return response.status, response.headers.get("Retry-After")


@pytest.mark.parametrize("how", ["with its length", "in chunks", "compressed"])
async def test_the_bodies_of_strangers_take_no_more_memory_than_there_is_room_for(how: str) -> None:
    """Forty with signatures that only look like one; each sends all of its body but the end."""
    plain = memoryview(bytes(LARGEST - 1))
    squeezed = memoryview(gzip.compress(plain))

    async def come(address: tuple[str, int]) -> str:
        async with stranger(address) as one:
            if how == "with its length":
                await one.begin({**made_up(), "Content-Length": str(LARGEST)})
                sending = asyncio.create_task(one.send(plain))
            elif how == "compressed":
                about = {"Content-Encoding": "gzip", "Content-Length": str(len(squeezed))}
                await one.begin({**made_up(), **about})
                sending = asyncio.create_task(one.send(squeezed[:-1]))
            else:
                await one.begin({**made_up(), "Transfer-Encoding": "chunked"})
                await one.send(f"{len(plain):x}\r\n".encode())
                sending = asyncio.create_task(one.send(plain))
            try:
                return await one.answer()
            finally:
                sending.cancel()
                await asyncio.wait({sending})

    async with receiving() as address:
        with traced():
            before, _ = tracemalloc.get_traced_memory()
            answers = await asyncio.gather(*(come(address) for _ in range(40)))
            _, peak = tracemalloc.get_traced_memory()
        await asyncio.sleep(0.5)  # the server sees who hung up
    assert peak - before < 3 * ROOM
    late = [answer for answer in answers if " 503 " in answer]
    assert late
    assert all("Retry-After: 10\r\n" in answer for answer in late)
    assert {answer.split()[1] for answer in answers} <= {"503", "408"}


@pytest.mark.parametrize(
    ("secrets", "changed"),
    [
        (TOKEN, {}),
        (TOKEN, {"X-Gitlab-Token": "a guess"}),
        (SIGNED, {"webhook-signature": ""}),
        (SIGNED, {"webhook-signature": "x"}),
        (SIGNED, {"webhook-signature": "v1,AAAA"}),
        (SIGNED, {"webhook-signature": f"v2,{'A' * 43}="}),
        (SIGNED, {"webhook-signature": f"v1,{'-' * 43}="}),
        (SIGNED, {"webhook-signature": f"v1,{'A' * 43}= " * 30}),
        (SIGNED, {"webhook-id": "x" * 1025}),
        (SIGNED, {"webhook-timestamp": "now"}),
        (SIGNED, {"webhook-timestamp": "999999999999"}),
        (SIGNED, {"webhook-timestamp": "1700000000"}),
        (BOTH, {"webhook-timestamp": ""} | OURS),
        (WebhookSecrets(), OURS),
    ],
)
async def test_what_no_body_could_prove_is_refused_before_the_body_comes(
    secrets: WebhookSecrets, changed: dict[str, str]
) -> None:
    async with receiving(secrets) as address, stranger(address) as one:
        await one.begin({**made_up(), **changed, "Content-Length": "90000"})
        assert " 401 " in await asyncio.wait_for(one.answer(), 5)


async def test_a_signature_means_nothing_where_no_signing_key_is_configured() -> None:
    async with receiving(TOKEN) as address:
        assert await post(address, event(6 * MIB), made_up() | OURS) == (200, None)


async def test_the_right_token_beside_the_right_signature_lets_the_largest_bodies_in() -> None:
    body = event(LARGEST + 1)
    async with receiving() as address:
        assert (await post(address, body, signed(body) | OURS))[0] == 200
        assert (await post(address, body, made_up() | OURS))[0] == 401
        assert (await post(address, body, signed(body)))[0] == 413


async def test_while_strangers_take_all_the_room_webhooks_with_the_token_and_small_signed_ones_go_through() -> None:
    small, large = event(10_000), event(MIB)
    async with receiving(seconds=2) as address, holding(address):
        waiting = asyncio.create_task(post(address, large, signed(large)))
        await asyncio.sleep(0.05)
        assert await post(address, large, OURS) == (200, None)
        assert await post(address, large, signed(large) | OURS) == (200, None)
        assert await post(address, small, signed(small)) == (200, None)
        assert not waiting.done()
        assert await waiting == (503, "10")


async def test_a_signed_webhook_waits_for_room_and_is_taken_when_there_is_some() -> None:
    large = event(MIB)
    async with receiving(seconds=4) as address:
        async with holding(address):
            waiting = asyncio.create_task(post(address, large, signed(large)))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        assert await waiting == (200, None)


async def test_whichever_way_a_stranger_goes_the_room_is_free_again() -> None:
    """Each way is gone more often than there is room, and then all the room is needed."""
    body = event(ROOM // 4)
    broken = {**made_up(), "Content-Encoding": "gzip"}

    async def silent(address: tuple[str, int]) -> str:
        async with stranger(address) as one:
            await one.begin({**made_up(), "Content-Length": str(len(body))})
            return await one.answer()

    async def endless(address: tuple[str, int]) -> str:
        async with stranger(address) as one:
            await one.begin({**made_up(), "Transfer-Encoding": "chunked"})
            await one.send(f"{LARGEST + 1:x}\r\n".encode() + bytes(LARGEST + 1))
            return await one.answer()

    async with receiving() as address:
        for _ in range(5):
            assert (await post(address, body, made_up()))[0] == 401
            assert (await post(address, body, broken))[0] == 400
            assert " 413 " in await endless(address)
            async with stranger(address) as one:
                await one.begin({**made_up(), "Content-Length": str(len(body))})
                await one.send(body[:1000])
        answers = await asyncio.gather(*(silent(address) for _ in range(8)))
        assert {answer.split()[1] for answer in answers} == {"408", "503"}
        whole = await asyncio.gather(*(post(address, body, signed(body)) for _ in range(4)))
        assert whole == [(200, None)] * 4
