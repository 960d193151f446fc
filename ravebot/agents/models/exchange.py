"""One request to a model: checked, counted, sent, and its answer passed on with what it cost."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ravebot.agents.models.accounts import ModelAccounts, Reservation
from ravebot.agents.models.events import LONGEST_EVENT_BYTES, EventCutter, EventTooLong
from ravebot.agents.models.google import GoogleCall, read_address
from ravebot.agents.models.refusals import ModelRefusal, forbidden
from ravebot.agents.models.requests import CheckedRequest, check_google_request, check_request
from ravebot.agents.models.upstream import NotSent, Upstream, headers_back, headers_for, refused_by_service
from ravebot.agents.models.usage import StreamedUsage, of_answer
from ravebot.config.model import ModelConfig
from ravebot.config.modelapis import ModelApi, address_of, api_of
from ravebot.errors import StoreError
from ravebot.sandboxes.model import SandboxId
from ravebot.store.agent_work import TurnUnderWay

T = TypeVar("T")
_SMALL_BYTES = 64 * 1024
"""What is parsed in the event loop, anything larger in a thread; and what is written at once."""
_PIECE_BYTES = 256 * 1024
"""What is read of a stream at once."""
_SEND_BUFFER_BYTES = 212_992
"""What Linux lets everybody have, and doubles: with its default, writing a piece takes several turns."""


@dataclass(frozen=True)
class ExchangeLimits:
    """What one request may take. `write_seconds`: how long a client may read nothing.

    `turn_seconds`: how often is looked whether the turn still runs.
    """

    body_seconds: float = 60.0
    write_seconds: float = 60.0
    turn_seconds: float = 2.0
    answer_bytes: int = 64 * 1024**2
    event_bytes: int = LONGEST_EVENT_BYTES
    error_bytes: int = 64 * 1024


@dataclass(frozen=True)
class ExchangeParts:
    """What every exchange works with."""

    models: tuple[ModelConfig, ...]
    accounts: ModelAccounts
    upstream: Upstream
    threads: Executor
    limits: ExchangeLimits = ExchangeLimits()


@dataclass(frozen=True)
class _Target:
    """What is asked of which service; `path` with its query, `call` for those whose address names the model."""

    config: ModelConfig
    api: ModelApi
    path: str
    call: GoogleCall | None


@dataclass
class Exchange:
    """One request. `model`, `reservation`, `status` and `tokens` say afterwards what became of it."""

    parts: ExchangeParts
    sandbox_id: SandboxId
    request: web.BaseRequest
    model: str = ""
    reservation: Reservation | None = None
    status: int = 0
    tokens: int | None = None  # None: the reservation stands
    trouble: str = ""
    begun: web.StreamResponse | None = field(default=None, repr=False)
    """The answer whose head the client has."""

    async def run(self) -> web.StreamResponse:
        """Raises ModelRefusal."""
        target = self._target()
        config, api = target.config, target.api
        self._check_head(config)
        # An agent's requests outside a turn are refused before their bodies are read.
        await self.parts.accounts.turn(self.sandbox_id, config.name)
        checked = await self._checked(target)
        reservation = await self.parts.accounts.reserve(self.sandbox_id, config.name, checked.reserve)
        self.reservation = reservation
        deadline = reservation.turn.deadline
        seconds = max(1.0, (deadline - reservation.now).total_seconds()) if deadline else 1.0
        headers = headers_for(api, self.request.headers, stream=checked.stream)
        sending = self.parts.upstream.send(config, target.path, headers, io.BytesIO(checked.body), seconds)
        checked = replace(checked, body=b"")  # it may be large, and answers take long
        try:
            async with self._while_it_runs(reservation.turn), sending as answer:
                self.status = answer.status
                if refusal := refused_by_service(config, answer.status):
                    raise refusal
                if answer.status >= 400:
                    return await self._error(config, answer)
                if answer.content_type == "text/event-stream":
                    return await self._stream(api, checked, answer)
                return await self._whole(api, config, answer)
        except NotSent:
            await self._settle(0)
            raise

    @asynccontextmanager
    async def _while_it_runs(self, turn: TurnUnderWay) -> AsyncIterator[None]:
        """Ends the block soon after the turn has ended. Raises ModelRefusal then."""
        try:
            async with asyncio.timeout(None) as running:
                watching = asyncio.create_task(self._watch(turn, running))
                try:
                    yield
                finally:
                    watching.cancel()
        except TimeoutError:
            if not running.expired():
                raise
            raise forbidden(
                "the message that this request was for is not worked on any more: it was answered, cancelled or given"
                " up. Ask the agent something, in the room or on the merge request."
            ) from None

    async def _watch(self, turn: TurnUnderWay, running: asyncio.Timeout) -> None:
        """Looks into the store now and then, so that it does not matter who ended the turn, and how."""
        runs = True
        while runs:
            await asyncio.sleep(self.parts.limits.turn_seconds)
            with contextlib.suppress(StoreError):  # then the next look tells
                runs = await self.parts.accounts.runs(self.sandbox_id, turn)
        running.reschedule(asyncio.get_running_loop().time())

    def _target(self) -> _Target:
        """What is asked of which service, from the request's first line as it came: nothing in it is decoded."""
        path, _, query = self.request.raw_path.partition("?")
        name, _, rest = path.removeprefix("/").partition("/")
        config = next((model for model in self.parts.models if model.name == name), None)
        call = read_address(f"/{rest}")
        configured = call.base if call else f"/{rest}"
        api = api_of(configured)
        known_path = config is not None and configured in config.paths and path.startswith("/")
        if config is None or not known_path or api is None or (api is ModelApi.GOOGLE) != (call is not None):
            known = [f"/{model.name}{address_of(known)}" for model in self.parts.models for known in model.paths]
            raise ModelRefusal(404, f"there is nothing at this address. Use one of: {', '.join(known)[:1000]}.")
        self.model = name
        if call and query != call.query:
            raise ModelRefusal(404, f"the address must have {call.query or 'nothing'} after the '?'.")
        if query and not call and not (api.is_anthropic and query == "beta=true"):
            raise ModelRefusal(404, "the address must have nothing after the '?'.")
        return _Target(config, api, f"/{rest}" + (f"?{query}" if query else ""), call)

    def _check_head(self, config: ModelConfig) -> None:
        headers = self.request.headers
        if self.request.method != "POST":
            raise ModelRefusal(405, "use POST.")
        if "Upgrade" in headers:
            raise ModelRefusal(400, "a connection can't be upgraded here: leave out the header Upgrade.")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ModelRefusal(415, "send the body without compression.")
        if (self.request.content_length or 0) > config.max_request:
            raise _too_large(config.max_request)

    async def _checked(self, target: _Target) -> CheckedRequest:
        raw = await self._body(target.config.max_request)
        if call := target.call:
            return await self._parsed(raw, lambda: check_google_request(call, target.config, raw))
        return await self._parsed(raw, lambda: check_request(target.api, target.config, raw))

    async def _body(self, most: int) -> bytes:
        if self.request.headers.get("Expect", "").lower() == "100-continue":
            await self.request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        try:
            async with asyncio.timeout(self.parts.limits.body_seconds):
                async for chunk in self.request.content.iter_any():
                    body += chunk
                    if len(body) > most:
                        raise _too_large(most)
        except TimeoutError:
            raise ModelRefusal(408, "the request's body did not come in time.") from None
        except (web.RequestPayloadError, HttpProcessingError):
            raise ModelRefusal(400, "the request's body is cut off or malformed.") from None
        return bytes(body)

    async def _parsed(self, raw: bytes, parse: Callable[[], T]) -> T:
        if len(raw) <= _SMALL_BYTES:
            return parse()
        return await asyncio.get_running_loop().run_in_executor(self.parts.threads, parse)

    async def _error(self, config: ModelConfig, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        """Pass an error of the service on; it cost nothing. Trying again is the agent's."""
        await self._settle(0)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            body = await _read(answer, self.parts.limits.error_bytes)
            return web.Response(
                status=answer.status,
                body=self.parts.upstream.hidden(config, body),
                headers=headers_back(answer),
            )
        return web.Response(status=answer.status, headers=headers_back(answer))

    async def _whole(self, api: ModelApi, config: ModelConfig, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        """An answer in one piece."""
        most = self.parts.limits.answer_bytes
        try:
            body = await _read(answer, most + 1)
        except (aiohttp.ClientError, TimeoutError):
            raise ModelRefusal(502, f"the service of {config.name} broke off in its answer. Try again.") from None
        if len(body) > most:
            raise ModelRefusal(502, f"the service of {config.name} gave an answer of more than {most:,} bytes.")
        used = await self._parsed(body, lambda: of_answer(api, body))
        if used is not None:
            await self._settle(used)
        response = web.StreamResponse(status=answer.status, headers=headers_back(answer))
        response.content_length = len(body)
        # Written here, so that a client that does not read it keeps its place, and only for a while.
        try:
            await response.prepare(self.request)
            self.begun = response
            for begins in range(0, len(body), _SMALL_BYTES):
                await self._write(response, body[begins : begins + _SMALL_BYTES])
        except TimeoutError:
            self.trouble = "the answer was cut: it was not read"
            self.cut()
        return response

    async def _stream(
        self, api: ModelApi, checked: CheckedRequest, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """A stream of events, each passed on once it is whole."""
        usage, cutter = (
            StreamedUsage(api, checked.hide_usage, checked.choices),
            EventCutter(self.parts.limits.event_bytes),
        )
        response = web.StreamResponse(status=answer.status, headers=headers_back(answer))
        try:
            await response.prepare(self.request)
            self.begun = response
            self._widen()
            async for chunk in _bounded(answer, self.parts.limits.answer_bytes):
                pieces = usage.passed(cutter.feed(chunk))
                await self._write(response, next(pieces, b""))
                for piece in pieces:
                    await asyncio.sleep(0)  # others have their turn first
                    await self._write(response, piece)
            await self._write(response, cutter.rest())
        except (aiohttp.ClientError, TimeoutError, EventTooLong) as error:
            self.trouble = f"the answer was cut: {type(error).__name__}"
            self.cut()
        finally:  # also when the client left: then only if the whole usage was seen
            if usage.total is not None:
                await self._settle(usage.total)
        return response

    def _widen(self) -> None:
        if transport := self.request.transport:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        if data:
            async with asyncio.timeout(self.parts.limits.write_seconds):
                await response.write(data)

    def cut(self) -> None:
        """Close the connection without the end of the body, so that the client can't take what it got for the whole.

        What is on its way still goes out, if the client reads it.
        """
        if transport := self.request.transport:
            transport.close()
            asyncio.get_running_loop().call_later(self.parts.limits.write_seconds, transport.abort)

    async def _settle(self, used: int) -> None:
        if self.reservation is not None:
            self.tokens = used
            await self.parts.accounts.settle(self.reservation, used)


async def _bounded(answer: aiohttp.ClientResponse, most: int) -> AsyncIterator[bytes]:
    """An answer as it comes. Raises EventTooLong when it is larger."""
    came = 0
    async for chunk in answer.content.iter_chunked(_PIECE_BYTES):
        came += len(chunk)
        if came > most:
            raise EventTooLong
        yield chunk
        if len(chunk) == _PIECE_BYTES:  # there is more already: others have their turn first
            await asyncio.sleep(0)


async def _read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The first bytes of an answer, at most so many."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) >= most:
            break
    return bytes(body[:most])


def _too_large(most: int) -> ModelRefusal:
    return ModelRefusal(
        413,
        f"the request has more than {most:,} bytes: make it smaller. An admin of ravebot can set models[].max_request.",
    )
