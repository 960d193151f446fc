"""The stand-in itself: the API and pages on a loopback port, on a thread and loop of their own.

Its own loop, so that neither a client that blocks nor a test's busy loop can stall it.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import threading
import time
from dataclasses import replace
from types import TracebackType
from typing import Self

from aiohttp import web

from tests.support.gitlab.actions import Actions
from tests.support.gitlab.api import Api
from tests.support.gitlab.faults import Fault, Faults, Request
from tests.support.gitlab.oidc import DiscoveryPages
from tests.support.gitlab.pages import Pages


class GitLabServer(Actions):
    """A running GitLab: `async with GitLabServer() as gitlab:`, or plain `with`; see `Actions`."""

    def __init__(
        self, port: int = 0, host: str = "127.0.0.1", *, prefix: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        """`prefix`: a path like /gitlab, below which a self-managed GitLab may be."""
        super().__init__()
        self._host, self._port = host, port
        self._prefix, self._tls = prefix, tls
        self._faults = Faults()
        self._thread = threading.Thread(target=self._run, name="gitlab-stand-in", daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._problem: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        if self._problem is not None:
            raise self._problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._faults.clear()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if kind is None:
            self._compare_with_published()

    def _compare_with_published(self) -> None:
        """What was granted here, GitLab must describe. Every test that runs ravebot against this is a test of that."""
        if not os.environ.get("GITLAB_OPENAPI"):
            return
        from tests.support.gitlab.published import misfits  # which needs pytest, as the demo does not

        granted = (one for one in self.requests if one.status is not None and one.status < 300)
        wrong = misfits(replace(one, path=one.path.removeprefix(self._prefix)) for one in granted)
        assert not wrong, f"GitLab's own description has no such requests: {wrong}"

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    @property
    def requests(self) -> list[Request]:
        """Every API request so far, oldest first."""
        return list(self._faults.log)

    @property
    def under_way(self) -> list[str]:
        """The methods of the API requests that came in and are not carried out yet."""
        return list(self._faults.under_way)

    @property
    def waiting(self) -> int:
        """How many requests are held, or get no answer."""
        return self._faults.waiting

    def fail(
        self,
        status: int = 500,
        count: int | None = None,
        *,
        retry_after: int | str | None = None,
        method: str | None = None,
        path: str = "",
        after: bool = False,
    ) -> None:
        """Answer the next `count` requests (None: until `restore`) with an error.

        `method` and `path` (a regular expression) narrow it down. With `after` the request is carried out and
        only its answer is replaced: what a crash between the two looks like.
        """
        wait = None if retry_after is None else str(retry_after)
        self._faults.add(Fault(status, count, wait, method, re.compile(path), after))

    def drop(self, count: int | None = None, *, method: str | None = None, path: str = "", after: bool = False) -> None:
        """Do not answer at all; the connection stays open until `restore`."""
        self._faults.add(Fault(None, count, None, method, re.compile(path), after))

    def hang_up(
        self, count: int | None = None, *, method: str | None = None, path: str = "", after: bool = False
    ) -> None:
        """Close the connection instead of answering, as a server that is restarted does."""
        self._faults.add(Fault(None, count, None, method, re.compile(path), after, hang_up=True))

    def hold(self, count: int | None = None, *, method: str | None = None, path: str = "") -> None:
        """Carry the request out at `let_go` or `restore`, also when the client has lost patience meanwhile."""
        self._faults.add(Fault(None, count, None, method, re.compile(path), after=True, held=True))

    async def let_go(self, timeout_seconds: float = 30) -> None:
        """Carry out what `hold` holds, and wait until that is done."""
        self._faults.let_go()
        async with asyncio.timeout(timeout_seconds):
            while self._faults.held:
                await asyncio.sleep(0.005)

    def rate_limit(self, requests: int, per_seconds: float = 60) -> None:
        """Allow so many requests in any such time, then 429 with Retry-After."""
        self._faults.limit(requests, per_seconds)

    def slow(self, seconds: float) -> None:
        """Let every request that changes something take so long: half of it before the change, half before the answer.

        It is carried out also when its client has gone meanwhile.
        """
        self._faults.slow_seconds = seconds

    def truncate_archives(self) -> None:
        """Cut the connection in the middle of every archive and file of artifacts until `restore`."""
        self._faults.truncate_archives = True

    def restore(self) -> None:
        """End every fault and limit."""
        self._faults.clear()

    async def settle(self, timeout_seconds: float = 30) -> None:
        """Wait until every webhook was delivered or given up; TimeoutError when that takes too long."""
        deadline = time.monotonic() + timeout_seconds
        while self.hooks.pending:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.hooks.pending} webhooks are still under way")
            await asyncio.sleep(0.005)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as problem:
            self._problem = problem
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application()
        app.add_subapp("/api/v4", Api(self, self._faults).application())
        DiscoveryPages(self, self._faults).add_to(app)
        Pages(self).add_to(app)
        whole = web.Application() if self._prefix else app
        if self._prefix:
            whole.add_subapp(self._prefix, app)
        runner = web.AppRunner(whole, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port, ssl_context=self._tls)
            await site.start()
            port = runner.addresses[0][1]
            self.url = f"{'https' if self._tls else 'http'}://{self._host}:{port}{self._prefix}"
            self._faults.start()
            await self.hooks.start()
            self._started.set()
            await self._stop.wait()
            await self.hooks.stop()
        finally:
            await runner.cleanup()
