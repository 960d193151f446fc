"""What can be wrong with this GitLab: errors, silence, lost answers, rate limits; and the log of requests."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Request:
    """One request that reached the API. `status` None: it never got an answer."""

    method: str
    path: str
    query: str
    body: bytes
    status: int | None
    at: float  # monotonic seconds


@dataclass(eq=False)
class Fault:
    status: int | None  # None: no answer at all
    left: int | None  # None: until cleared
    retry_after: str | None
    method: str | None
    path: re.Pattern[str]
    after: bool  # the request takes effect, only its answer is lost
    hang_up: bool = False  # instead of silence
    held: bool = False  # carried out at its release, even if the client has gone

    def hits(self, request: web.Request) -> bool:
        return self.method in {None, request.method} and self.path.search(request.rel_url.raw_path) is not None


class Faults:
    """The switches; they are set from tests' threads and read on the server's loop."""

    def __init__(self) -> None:
        self.log: list[Request] = []
        self.under_way: list[str] = []
        self.held = 0
        self.waiting = 0
        """How many requests are held, or get no answer."""
        self.faults: list[Fault] = []
        self.truncate_archives = False
        self.slow_seconds = 0.0
        self._window: deque[float] = deque()
        self._limit: tuple[int, float] | None = None
        self._cleared = asyncio.Event()
        self._let_go = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    def add(self, fault: Fault) -> None:
        self.faults.append(fault)

    def limit(self, requests: int, per_seconds: float) -> None:
        self._limit = (requests, per_seconds)
        self._window.clear()

    def clear(self) -> None:
        """End all faults; clients that wait for an answer are disconnected."""
        self.faults.clear()
        self._limit = None
        self.truncate_archives = False
        self.slow_seconds = 0.0
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._release)

    def let_go(self) -> None:
        """Carry out the requests that are held."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._resume)

    def _release(self) -> None:
        self._resume()
        self._cleared.set()
        self._cleared = asyncio.Event()

    def _resume(self) -> None:
        self._let_go.set()
        self._let_go = asyncio.Event()

    async def apply(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer, or fail to, as the switches say; every request is logged."""
        body = await request.read()
        status: int | None = None
        self.under_way.append(request.method)
        try:
            response = await self._answer(request, handler)
            status = response.status
        finally:
            self.under_way.remove(request.method)
            url = request.rel_url
            self.log.append(Request(request.method, url.raw_path, url.query_string, body, status, time.monotonic()))
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        fault = next((fault for fault in self.faults if fault.hits(request)), None)
        if fault is None:
            return self._over_limit() or await self._carry_out(request, handler)
        if fault.left is not None:
            fault.left -= 1
            if fault.left <= 0:
                self.faults.remove(fault)
        if fault.held:
            self.held += 1
            try:
                await self._waits(self._let_go)
                return await handler(request)
            finally:
                self.held -= 1
        if fault.after:
            await handler(request)
        if fault.status is None:
            if not fault.hang_up:
                await self._waits(self._cleared)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError
        headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
        if fault.status == 429:
            return web.Response(status=429, text="Retry later\n", headers=headers)
        return web.json_response(
            {"message": f"{fault.status} Internal Server Error"}, status=fault.status, headers=headers
        )

    async def _waits(self, event: asyncio.Event) -> None:
        self.waiting += 1
        try:
            await event.wait()
        finally:
            self.waiting -= 1

    async def _carry_out(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        pause = 0.0 if request.method == "GET" else self.slow_seconds / 2
        await asyncio.sleep(pause)
        response = await handler(request)
        await asyncio.sleep(pause)
        return response

    def _over_limit(self) -> web.Response | None:
        if self._limit is None:
            return None
        requests, seconds = self._limit
        now = time.monotonic()
        while self._window and self._window[0] <= now - seconds:
            self._window.popleft()
        if len(self._window) < requests:
            self._window.append(now)
            return None
        wait = self._window[0] + seconds - now
        headers = {
            "Retry-After": str(max(1, round(wait + 0.5))),
            "RateLimit-Limit": str(requests),
            "RateLimit-Remaining": "0",
            "RateLimit-Reset": str(int(time.time() + wait + 1)),
        }
        return web.Response(status=429, text="Retry later\n", headers=headers)
