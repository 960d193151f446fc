"""The HTTP server on `http.listen`: the webhook, health checks and metrics."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from ravebot.errors import ConfigError
from ravebot.web.checks import Check, Checks, Checkup, State
from ravebot.web.metrics import CONTENT_TYPE, Metrics

WEBHOOK_PATH = "/webhooks/gitlab"
IDLE_SECONDS = 10.0
_MAX_CONNECTIONS, _MAX_BACKLOG = 1000, 128
_BUFFER_BYTES = 16 * 1024
"""aiohttp buffers up to twice this of a body, give or take one read of the socket, before its handler reads it. With
aiohttp's default of 256 KiB, the most connections that are accepted could hold 512 MiB."""
_LOG_INTERVAL_SECONDS = 60.0

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(
    webhook: Handler, checks: Checks, metrics: Metrics, *, add_more: Callable[[web.Application], None] | None = None
) -> web.Application:
    """The app; `checks` are the checks that /readyz runs, by name. `add_more` adds routes of another part."""
    checkup = Checkup(checks)

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        results = await checkup.run()
        ready = all(check.fit for check in results.values())
        body = {"ready": ready, "checks": {name: _as_json(check) for name, check in results.items()}}
        return web.json_response(body, status=200 if ready else 503)

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def close_checkup(_: web.Application) -> None:
        await checkup.close()

    app = web.Application()
    app.on_cleanup.append(close_checkup)
    app.on_response_prepare.append(_add_headers)
    app.router.add_post(WEBHOOK_PATH, webhook)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", show_metrics)
    if add_more is not None:
        add_more(app)
    return app


def _as_json(check: Check) -> dict[str, object]:
    age = None if check.age is None else round(check.age.total_seconds(), 1)
    return {"ok": check.state is State.OK, "state": check.state.value, "detail": check.detail, "age_seconds": age}


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "ravebot"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"


class _ConnectionLimit:
    """Accepts up to `most` connections and closes further ones at once, so that idle clients can't use up the file
    descriptors of the process."""

    def __init__(self, server: web.Server, most: int) -> None:
        self._server = server
        self._most = most
        self._silent_until = 0.0

    def __call__(self) -> asyncio.BaseProtocol:
        if len(self._server.connections) < self._most:
            return self._server()
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _LOG_INTERVAL_SECONDS
            log.warning("too many HTTP connections: new ones are closed", open=self._most)
        return _Rejected()


class _Rejected(asyncio.Protocol):
    """Closes a connection that exceeds the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


@asynccontextmanager
async def serve(
    app: web.Application, host: str, port: int, *, idle_seconds: float = IDLE_SECONDS
) -> AsyncIterator[tuple[str, int]]:
    """Serve while the block runs; yields the address that was bound (port 0 picks one).

    A connection on which no complete request head arrives within `idle_seconds` is closed, as is one whose client reads
    no answer for so long. Raises ConfigError when the address can't be used.
    """
    # aiohttp's keep-alive timeout starts with the connection, and ends when a request's head is complete.
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=5,
        keepalive_timeout=idle_seconds,
        read_bufsize=_BUFFER_BYTES,
    )
    await runner.setup()
    try:
        assert runner.server
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _ConnectionLimit(runner.server, min(_MAX_CONNECTIONS, files // 4))
        # asyncio accepts up to `backlog` connections at once, before any of them can be closed.
        backlog = min(_MAX_BACKLOG, files // 8)
        try:
            server = await asyncio.get_running_loop().create_server(limit, host, port, backlog=backlog)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE  # asyncio writes the address around the system's words
            reason = os.strerror(errno.EADDRINUSE) if in_use else error.strerror or str(error)
            fix = "stop what uses it, or set another address"
            raise ConfigError(f"http.listen: {host}:{port} can't be used: {reason}; {fix}") from error
        try:
            for listening in server.sockets:
                # Inherited by its connections: the kernel ends one whose client reads nothing, which aiohttp does not.
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(idle_seconds * 1000))
            bound = server.sockets[0].getsockname()
            yield bound[0], bound[1]
        finally:
            server.close()
    finally:
        await runner.cleanup()
