"""Serves an ASGI app by uvicorn's protocol, on a socket of ours and in our event loop, within limits.

`uvicorn.Server` would take the signals, end the process if a port is taken, and tick ten times a second for each
socket.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from starlette.types import ASGIApp
from uvicorn.config import Config as UvicornConfig
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

HEAD_SECONDS = 10.0
"""How long a client may take for the head of a request, and stay silent between two."""
_LARGEST_HEAD_BYTES = 16 * 1024
_BACKLOG = 128
_SHUTDOWN_SECONDS = 2.0
for _name in ("uvicorn.error", "uvicorn.access", "mcp"):  # what clients do wrong is theirs; our own failures we log
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class PatientProtocol(H11Protocol):
    """Ends a connection on which no request is under way for a while: uvicorn waits for ever for the first one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.most:
            transport.close()  # without a word: an answer would cost more than who floods pays
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEAD_SECONDS, self._look)

    @property
    def most(self) -> int:
        return self.limit_concurrency or 100

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
            return
        self._patience = self.loop.call_later(HEAD_SECONDS, self._look)


@asynccontextmanager
async def listening(app: ASGIApp, on: socket.socket, *, most: int) -> AsyncIterator[None]:
    """Serve on a socket that is bound, with at most so many connections; the socket is closed at the end."""
    config = UvicornConfig(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=most,
        timeout_keep_alive=int(HEAD_SECONDS),
        h11_max_incomplete_event_size=_LARGEST_HEAD_BYTES,
    )
    config.load()
    state = ServerState()
    made = partial(PatientProtocol, config=config, server_state=state, app_state={})
    server = await asyncio.get_running_loop().create_server(made, sock=on, backlog=_BACKLOG)
    try:
        yield
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            _, late = await asyncio.wait(state.tasks, timeout=_SHUTDOWN_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


def tcp(host: str, port: int) -> socket.socket:
    """A listening socket's address. Raises OSError if it can't be used."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # The kernel ends a connection whose client reads nothing.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(HEAD_SECONDS * 1000))
        made.bind(address)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def reason(error: OSError) -> str:
    """The system's own words."""
    return os.strerror(error.errno) if error.errno else str(error)
