"""The door to models for one sandbox: a server on a Unix socket, which says whose requests they are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from aiohttp import web

from ravebot.agents.models.exchange import Exchange, ExchangeParts
from ravebot.agents.models.refusals import ModelRefusal, error_body
from ravebot.config.model import AgentConfig
from ravebot.errors import StoreError
from ravebot.sandboxes.model import SandboxId

log = structlog.get_logger()

_BUFFER_BYTES = 64 * 1024
_LOG_INTERVAL_SECONDS = 10.0
_silent = logging.Logger("ravebot.models.http", logging.CRITICAL + 1)
"""aiohttp would log every malformed request of a guest, with what was malformed."""


class ModelMetrics(Protocol):
    """What is counted of requests to models."""

    def model_answered(self, result: str, seconds: float, tokens: int) -> None:
        """`result`: answered, refused or failed. `tokens`: what it counts as, reserved or used."""


@dataclass(frozen=True)
class GatewayLimits:
    """What one sandbox may take. `idle_seconds`: for a request's head, and between requests."""

    requests: int = 4
    connections: int = 32
    idle_seconds: float = 30.0
    linger_seconds: float = 2.0
    """How long the rest of a refused request is read, so that its client gets to see the answer."""
    refusal_seconds: float = 0.05
    """A refusal takes so long, so that a guest that asks in a loop costs little."""


class ModelGateway:
    """Serves each sandbox at a socket of its own."""

    name = "models"
    port = 4180
    path = ""

    def __init__(self, parts: ExchangeParts, metrics: ModelMetrics, limits: GatewayLimits | None = None) -> None:
        self.parts = parts
        self._metrics = metrics
        self._limits = limits or GatewayLimits()

    def is_for(self, agent: AgentConfig) -> bool:
        """Agents without models can't find out which there are."""
        return bool(agent.models)

    @asynccontextmanager
    async def serve(self, sandbox_id: SandboxId, path: Path) -> AsyncIterator[None]:
        """Serve a sandbox while the block runs. Raises OSError if the socket can't be made."""
        door = _SandboxDoor(self.parts, self._metrics, self._limits, sandbox_id)
        server = web.Server(
            door.handle,
            handler_cancellation=True,
            access_log=None,
            logger=_silent,
            keepalive_timeout=self._limits.idle_seconds,
            lingering_time=self._limits.linger_seconds,
            read_bufsize=_BUFFER_BYTES,
            auto_decompress=False,
            tcp_keepalive=False,
        )

        loop, fresh = asyncio.get_running_loop(), 0

        def counted() -> None:
            nonlocal fresh
            fresh -= 1

        def connected() -> asyncio.BaseProtocol:
            nonlocal fresh
            if len(server.connections) + fresh >= self._limits.connections:
                return _Closed()
            fresh += 1  # the server itself counts it only in the loop's next round, right after `counted`
            loop.call_soon(counted)
            return server()

        listening = await loop.create_unix_server(connected, str(path), backlog=self._limits.connections)
        try:
            await asyncio.to_thread(path.chmod, 0o600)
            yield
        finally:
            listening.close()
            await server.shutdown(timeout=1.0)
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def close(self) -> None:
        await self.parts.upstream.close()
        self.parts.threads.shutdown(wait=False, cancel_futures=True)


class _Closed(asyncio.Protocol):
    """Closes a connection that exceeds the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _SandboxDoor:
    """One sandbox's requests: a few at once, the others wait."""

    def __init__(
        self, parts: ExchangeParts, metrics: ModelMetrics, limits: GatewayLimits, sandbox_id: SandboxId
    ) -> None:
        self.parts, self._metrics, self._limits, self._sandbox_id = parts, metrics, limits, sandbox_id
        self._places = asyncio.Semaphore(limits.requests)
        self._silent_until, self._unsaid = 0.0, 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        async with self._places:
            began = time.monotonic()
            exchange = Exchange(self.parts, self._sandbox_id, request)
            refusal: ModelRefusal | None = None
            try:
                return await exchange.run()
            except ModelRefusal as error:
                refusal = error
            except StoreError:
                refusal = ModelRefusal(503, "its database can't be used at the moment. Try again later.")
            except ConnectionError:
                raise  # the guest has left
            # A bug that a guest triggers must not stay unseen: aiohttp's own log is off.
            except Exception:
                log.exception("a request to a model failed: this is a bug of ravebot's", sandbox=self._sandbox_id)
                refusal = ModelRefusal(500, "it made a mistake, which its log has.")
            finally:
                self._report(exchange, refusal, time.monotonic() - began)
            if exchange.begun is not None:  # a refusal can't be told any more
                exchange.cut()
                return exchange.begun
            await asyncio.sleep(self._limits.refusal_seconds)
            response = web.Response(
                status=refusal.status,
                body=error_body(refusal.status, refusal.text),
                headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
            )
            if not request.content.is_eof():
                response.force_close()
            return response

    def _report(self, exchange: Exchange, refusal: ModelRefusal | None, seconds: float) -> None:
        """One line for a request that was sent; of those that were refused, now and then one."""
        reservation = exchange.reservation
        tokens = exchange.tokens if exchange.tokens is not None else reservation.tokens if reservation else 0
        failed = refusal is not None or exchange.trouble or exchange.status >= 400 or not exchange.status
        result = "refused" if reservation is None else "failed" if failed else "answered"
        self._metrics.model_answered(result, seconds, tokens)
        if reservation is not None:
            log.info(
                "request to a model",
                model=exchange.model,
                agent=reservation.turn.agent,
                turn=reservation.turn.turn_id,
                sandbox=self._sandbox_id,
                status=exchange.status or (refusal.status if refusal else 0),
                tokens=tokens,
                settled=exchange.tokens is not None,
                milliseconds=round(seconds * 1000),
                **({"why": refusal.text if refusal else exchange.trouble} if refusal or exchange.trouble else {}),
            )
            return
        now = time.monotonic()
        if now < self._silent_until:
            self._unsaid += 1
            return
        log.info(
            "request to a model refused",
            model=exchange.model,
            sandbox=self._sandbox_id,
            status=refusal.status if refusal else 0,
            others=self._unsaid,
        )
        self._silent_until, self._unsaid = now + _LOG_INTERVAL_SECONDS, 0


def parse_threads() -> ThreadPoolExecutor:
    """The thread that parses large requests: one, so that only one of them takes memory at a time."""
    return ThreadPoolExecutor(1, "models")
