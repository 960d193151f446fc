"""What listens: REST and MCP on `api.listen` for tokens, and MCP on a sandbox's own socket."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ravebot.config.model import AgentConfig, ApiConfig
from ravebot.errors import ConfigError, RavebotError
from ravebot.sandboxes.model import SandboxId
from ravebot.tools.callers.contract import Caller
from ravebot.tools.callers.sandbox import SandboxCaller
from ravebot.tools.calls import ToolAnswer, ToolCalls
from ravebot.tools.limits import Buckets, CallRate
from ravebot.tools.problems import ProblemKind, ToolProblem, mistake, problem_of
from ravebot.web.api import mcp, rest
from ravebot.web.api.answers import answer, problem
from ravebot.web.api.gate import Gate
from ravebot.web.api.listening import listening, reason, tcp

MCP_PATH = "/mcp"
MCP_PORT = 4181
"""Where agents find it in their sandbox, on 127.0.0.1."""
_MOST_CONNECTIONS = 1000
_SPEAKING_SECONDS = 90.0
"""The most that a request for MCP may take, with its body; tools wait at most 25 seconds."""
MOST_OF_A_SANDBOX = 32
SANDBOX_CALLS = CallRate(burst=60, per_second=5)
log = structlog.get_logger()


def _tell_nobody(_status: int) -> None:
    """Where nobody counts."""


@asynccontextmanager
async def serve_api(
    config: ApiConfig, calls: ToolCalls, gate: Gate, told: Callable[[int], None] = _tell_nobody
) -> AsyncIterator[tuple[str, int]]:
    """Serve while the block runs; yields the address. `told` gets the status of each answer.

    Raises ConfigError when the address can't be used.
    """
    assert config.address
    host, port = config.address
    try:
        on = tcp(host, port)
    except OSError as error:
        fix = "stop what uses it, or set another address"
        raise ConfigError(f"api.listen: {host}:{port} can't be used: {reason(error)}; {fix}") from error
    bound = on.getsockname()
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(_MOST_CONNECTIONS, files // 4)
    try:
        async with (
            mcp.serving(calls, hosts_of(config, bound[1])) as speak,
            listening(_app(calls, gate, speak, told), on, most=most),
        ):
            yield bound[0], bound[1]
    finally:
        on.close()


def hosts_of(config: ApiConfig, port: int) -> tuple[str, ...]:
    """What a client may call us in the header Host, so that no page in a browser can reach MCP by a name of its own."""
    own = (config.listen or "").rpartition(":")[0]
    names = {f"{own}:{port}", f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}
    if config.public_url is not None and config.public_url.host:
        public = config.public_url.host
        names |= {public, f"{public}:{config.public_url.port}"}
    return tuple(sorted(names))


def _app(calls: ToolCalls, gate: Gate, speak: ASGIApp, told: Callable[[int], None]) -> ASGIApp:
    async def mcp_for_tokens(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            address = request.client.host if request.client else ""
            caller = await gate.caller(request.headers.get("authorization", ""), address)
            with gate.at_work(caller):
                await _speak(speak, caller, scope, receive, send)
        except RavebotError as error:
            await answer(ToolAnswer.of(problem_of(error)))(scope, receive, send)

    app = Starlette(
        routes=[*rest.routes(calls, gate), Route(MCP_PATH, _Endpoint(mcp_for_tokens))],
        exception_handlers={HTTPException: rest.not_served},
    )
    app.router.redirect_slashes = False
    return _guarded(app, told)


class _Endpoint:
    """An ASGI app as a route's endpoint: Starlette tells apps from functions by their class."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def _speak(speak: ASGIApp, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["method"] != "POST":  # there are no sessions, so there is nothing to listen to, and none to end
        refused = problem(ProblemKind.METHOD, "MCP is spoken by POST here.", {"Allow": "POST"})
        await refused(scope, receive, send)
        return
    begun = False

    async def note(message: Message) -> None:
        nonlocal begun
        begun = True
        await send(message)

    try:
        async with asyncio.timeout(_SPEAKING_SECONDS):
            await speak({**scope, mcp.CALLER: caller, mcp.RECEIVE: receive}, receive, note)
    except TimeoutError:
        if not begun:
            await problem(ProblemKind.SLOW, "The request took longer than 90 seconds: send it at once.")(
                scope, receive, send
            )


def _guarded(app: ASGIApp, told: Callable[[int], None] = _tell_nobody) -> ASGIApp:
    """Logs what fails in us, and says so to the client if nothing was answered yet."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                told(message["status"])
            await send(message)

        try:
            await app(scope, receive, note)
        except Exception:
            log.exception("a request failed", path=str(scope.get("path"))[:200])
            if not begun:
                await answer(ToolAnswer.of(mistake()))(scope, receive, note)

    return guard


@dataclass
class SandboxMcp:
    """MCP for agents in sandboxes, on a socket for each sandbox (`DoorServer`): it needs no token, and reaches no other
    sandbox."""

    calls: ToolCalls
    name: str = "mcp"
    port: int = MCP_PORT
    path: str = MCP_PATH
    _allowed: Buckets = field(default_factory=lambda: Buckets(SANDBOX_CALLS))

    def is_for(self, _: AgentConfig) -> bool:
        """Every agent gets it."""
        return True

    @asynccontextmanager
    async def serve(self, sandbox_id: SandboxId, path: Path) -> AsyncIterator[None]:
        """Listen on that path. Raises OSError if it can't be used."""
        caller = SandboxCaller(sandbox_id)
        hosts = tuple(f"{host}:{self.port}" for host in ("127.0.0.1", "localhost"))
        on = _unix(path)
        try:
            async with (
                mcp.serving(self.calls, hosts) as speak,
                listening(_guarded(self._app(caller, speak)), on, most=MOST_OF_A_SANDBOX),
            ):
                yield
        finally:
            on.close()
            _remove(path)

    def _app(self, caller: SandboxCaller, speak: ASGIApp) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            found: Response | None = None
            if scope["path"] != MCP_PATH:
                found = problem(ProblemKind.NOT_FOUND, f"There is only {MCP_PATH} here.")
            elif wait := self._allowed.take(str(caller.sandbox_id)):
                why = "This sandbox asks too often: 5 requests a second are allowed in the long run. Wait a little."
                found = answer(ToolAnswer.of(ToolProblem(ProblemKind.TOO_OFTEN, why, wait)))
            if found is not None:
                await found(scope, receive, send)
                return
            await _speak(speak, caller, scope, receive, send)

        return app


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


def _unix(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(made.fileno(), 0o600)  # the file gets it, so that nobody else connects even for a moment
        made.bind(os.fspath(path))
        path.chmod(0o600)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
