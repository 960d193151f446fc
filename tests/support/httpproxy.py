"""A real little HTTP proxy on loopback, for TLS (CONNECT) and plain requests; with a login if it wants one."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class HttpProxy:
    """`asked` are the first lines of what clients sent."""

    def __init__(self, login: str = "") -> None:
        self._wanted = f"Basic {b64encode(login.encode()).decode()}" if login else ""
        self.asked: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._one(reader, writer)
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.asked.append(first)
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if self._wanted and fields.get("proxy-authorization") != self._wanted:
            writer.write(b"HTTP/1.1 407 Log in\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        method, target, _ = first.split(" ")
        connect = method == "CONNECT"
        to = urlsplit(f"//{target}" if connect else target)
        there, onward = await asyncio.open_connection(to.hostname, to.port)
        if connect:
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:
            path = target.partition(to.netloc)[2]
            kept = "\r\n".join(line for line in lines if not line.lower().startswith(("proxy-", "connection")))
            onward.write(f"{method} {path} HTTP/1.1\r\nConnection: close\r\n{kept}".encode("latin-1"))
        await asyncio.gather(_pump(reader, onward), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def http_proxy(login: str = "") -> AsyncIterator[HttpProxy]:
    proxy = HttpProxy(login)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
