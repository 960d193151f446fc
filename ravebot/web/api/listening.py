"""Serves an ASGI app by uvicorn's protocol, on a socket of ours and in our event loop, within limits.

`uvicorn.Server` would take the signals, end the process if a port is taken, and tick ten times a second for each
socket.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
from starlette.types import ASGIApp
from uvicorn.config import Config as UvicornConfig
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ravebot.tools.problems import ProblemKind
from ravebot.web.api.addresses import is_here, network_of
from ravebot.web.api.answers import problem

HEAD_SECONDS = 10.0
"""How long a client may take for the head of a request, at most twice that after an earlier one, and stay silent."""
_LARGEST_HEAD_BYTES = 16 * 1024
_BACKLOG = 128
_SHUTDOWN_SECONDS = 2.0
for _name in ("uvicorn.error", "uvicorn.access", "mcp"):  # what clients do wrong is theirs; our own failures we log
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@dataclass
class Crowd:
    """Who is connected: of each address at most so many, or all where others' connections come from there.

    `is_shared`: whether they may, as from a proxy on the same host; it limits its clients itself.
    """

    most_of_one: int
    is_shared: Callable[[str], bool]
    _inside: Counter[str] = field(default_factory=Counter)

    def enters(self, address: str) -> bool:
        """Count a connection in; False if there are too many of that address. It must leave in any case."""
        network = network_of(address)
        self._inside[network] += 1
        return self.is_shared(address) or self._inside[network] <= self.most_of_one

    def leaves(self, address: str) -> None:
        network = network_of(address)
        self._inside[network] -= 1
        if not self._inside[network]:
            del self._inside[network]


class PatientProtocol(H11Protocol):
    """Ends a connection on which no request is under way for a while: uvicorn waits for ever for the first one."""

    def __init__(self, patience: float, crowd: Crowd, **parts: Any) -> None:
        super().__init__(**parts)
        self._patience_seconds = patience
        self._crowd = crowd

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._from = _address(transport)
        is_too_many = not self._crowd.enters(self._from)
        if is_too_many or len(self.connections) + 1 >= (self.limit_concurrency or 100):
            transport.close()  # without a word: an answer would cost more than who floods pays
        super().connection_made(transport)
        self._seen = self.cycle
        self._patience = self.loop.call_later(self._patience_seconds, self._look)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered as all else is, unless it comes behind a request that has its answer."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        found = problem(ProblemKind.MALFORMED, "This is no request in HTTP/1.1: send what an HTTP client sends.")
        headers = [*found.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=bytes(found.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        self._crowd.leaves(self._from)
        super().connection_lost(exc)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._seen:  # since the last look: between two requests, one may be on its way
            self.transport.close()
            return
        self._seen = self.cycle
        self._patience = self.loop.call_later(self._patience_seconds, self._look)


@asynccontextmanager
async def listening(
    app: ASGIApp,
    on: socket.socket,
    *,
    most: int,
    patience: float = HEAD_SECONDS,
    is_shared: Callable[[str], bool] = is_here,
) -> AsyncIterator[None]:
    """Serve on a socket that is bound, with at most so many connections, and a quarter of them from one address that
    is not shared; the socket is closed at the end."""
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
        limit_concurrency=most + 1,  # of which one more is never let in: uvicorn would refuse all who are in, too
        timeout_keep_alive=int(HEAD_SECONDS),
        h11_max_incomplete_event_size=_LARGEST_HEAD_BYTES,
    )
    config.load()
    state = ServerState()
    crowd = Crowd(max(1, most // 4), is_shared)
    made = partial(PatientProtocol, patience, crowd, config=config, server_state=state, app_state={})
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


def _address(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else ""


def reason(error: OSError) -> str:
    """The system's own words."""
    return os.strerror(error.errno) if error.errno else str(error)
