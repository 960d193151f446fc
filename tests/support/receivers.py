"""Receivers of webhooks on loopback: real HTTP servers that verify signatures, and servers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from standardwebhooks.webhooks import Webhook

SIGNING_KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAAAAAAAAAAA="


@dataclass(frozen=True)
class GotWebhook:
    """A webhook whose signature the library found right."""

    id: str
    type: str
    data: dict[str, Any]


@dataclass
class Receiver:
    """What came in; each status of `statuses` is answered once, then 204. `on_message` runs before the answer."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    got: list[GotWebhook] = field(default_factory=list)
    on_message: Callable[[GotWebhook], Awaitable[None]] | None = None
    pause: asyncio.Event | None = None
    """Nothing is answered before it happened."""

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        verified = Webhook(SIGNING_KEY).verify(body, dict(request.headers))
        got = GotWebhook(request.headers["webhook-id"], verified["type"], verified["data"])
        self.got.append(got)
        if self.on_message is not None:
            await self.on_message(got)
        if self.pause is not None:
            await self.pause.wait()
        status = self.statuses.pop(0) if self.statuses else 204
        return web.Response(status=status, headers=self.headers)

    @property
    def messages(self) -> list[GotWebhook]:
        return [one for one in self.got if one.type == "turn.given"]


@asynccontextmanager
async def a_receiver(*statuses: int, **how: Any) -> AsyncIterator[Receiver]:
    receiver = Receiver(statuses=list(statuses), **how)
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        if receiver.pause is not None:
            receiver.pause.set()
        await runner.cleanup()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def a_rude_receiver(talk: Talk) -> AsyncIterator[str]:
    """A server that reads and writes what a test wants; yields the address."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    finally:
        server.close()
