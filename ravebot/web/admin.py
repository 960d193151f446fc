"""The admin socket: JSON over HTTP on a Unix socket in the state folder, for the bot's own user and root."""

from __future__ import annotations

import errno
import json
import os
import pwd
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import aiohttp
from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from ravebot.errors import Forbidden, NotRunningError, RavebotError, Refused, StoreError, Unavailable
from ravebot.operations.reports import (
    AuditQuery,
    AuditReport,
    CleanupReport,
    ExportPiece,
    ExportPlace,
    LogsReport,
    Operations,
    SandboxLine,
    Strangers,
    UsageBy,
    UsageLines,
    UsageQuery,
)
from ravebot.sandboxes import naming
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor

SOCKET_NAME = "admin.sock"
MAX_PATH_BYTES = 107  # sockaddr_un, unix(7)
T = TypeVar("T")


class AdminQuestion(BaseModel):
    """What is asked over the socket."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CommandQuestion(AdminQuestion):
    verb: str = Field(max_length=50)
    words: tuple[Annotated[str, Field(max_length=500)], ...] = Field((), max_length=10)


class CleanupQuestion(AdminQuestion):
    older_than: timedelta | None = None
    everything: bool = False
    force: bool = False
    adopt: bool = False


class ReplaceQuestion(AdminQuestion):
    instance_id: str = Field(pattern=f"^{naming.INSTANCE_ID}$", max_length=64)


class AuditQuestion(AdminQuestion):
    ref: str | None = Field(None, max_length=500)
    project: str | None = Field(None, max_length=500)
    people: tuple[Annotated[str, Field(max_length=300)], ...] = Field((), max_length=50)
    kinds: tuple[Annotated[str, Field(max_length=50)], ...] = Field((), max_length=50)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    limit: int = Field(100, ge=1, le=100_000)
    verify: bool = False


class ExportQuestion(AdminQuestion):
    which: AuditQuestion
    place: ExportPlace | None = None


class LogsQuestion(AdminQuestion):
    ref: str = Field(max_length=500)


class UsageQuestion(AdminQuestion):
    by: tuple[UsageBy, ...] = Field((UsageBy.PROJECT,), min_length=1, max_length=4)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


Answer = Outcome | tuple[SandboxLine, ...]
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
_CLEANUP = TypeAdapter(CleanupReport)
_STRANGERS = TypeAdapter(Strangers)
_NOTHING: TypeAdapter[None] = TypeAdapter(None)
_AUDIT = TypeAdapter(AuditReport)
_LOGS = TypeAdapter(LogsReport)
_PIECE = TypeAdapter(ExportPiece)
_USAGE: TypeAdapter[UsageLines] = TypeAdapter(UsageLines)


def socket_path(state_dir: Path) -> Path:
    """Where the bot of that state folder listens."""
    return state_dir / SOCKET_NAME


def make_app(operations: Operations) -> web.Application:
    """One POST route per question; the answer is its dataclass in JSON, or `{"error": …}`."""

    async def command(asked: CommandQuestion, actor: Actor) -> Answer:
        return await operations.command(asked.verb, asked.words, actor)

    async def cleanup(asked: CleanupQuestion, actor: Actor) -> CleanupReport:
        return await operations.cleanup(**dict(asked), actor=actor)

    async def strangers(_: AdminQuestion, __: Actor) -> Strangers:
        return await operations.strangers()

    async def replace_instance(asked: ReplaceQuestion, _: Actor) -> None:
        await operations.replace_instance(asked.instance_id)

    async def audit(asked: AuditQuestion, _: Actor) -> AuditReport:
        return await operations.audit(AuditQuery(**dict(asked)))

    async def export(asked: ExportQuestion, _: Actor) -> ExportPiece:
        return await operations.export(AuditQuery(**dict(asked.which)), asked.place)

    async def logs(asked: LogsQuestion, _: Actor) -> LogsReport:
        return await operations.logs(asked.ref)

    async def usage(asked: UsageQuestion, _: Actor) -> UsageLines:
        return await operations.usage(UsageQuery(**dict(asked)))

    app = web.Application(client_max_size=256 * 1024)
    app.router.add_post("/command", route(CommandQuestion, command))
    app.router.add_post("/cleanup", route(CleanupQuestion, cleanup))
    app.router.add_post("/strangers", route(AdminQuestion, strangers))
    app.router.add_post("/replace-instance", route(ReplaceQuestion, replace_instance))
    app.router.add_post("/audit", route(AuditQuestion, audit))
    app.router.add_post("/export", route(ExportQuestion, export))
    app.router.add_post("/logs", route(LogsQuestion, logs))
    app.router.add_post("/usage", route(UsageQuestion, usage))
    return app


Q = TypeVar("Q", bound=AdminQuestion)


def route(
    question: type[Q], answer: Callable[[Q, Actor], Awaitable[object]]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The handler of a question: reads it, and writes what `answer` returns as JSON."""

    async def handle(request: web.Request) -> web.Response:
        try:
            asked = question.model_validate_json(await request.read() or b"{}")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return _error(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        try:
            body = to_json(await answer(asked, _peer(request)))
            return web.Response(body=body, content_type="application/json")
        except Refused as error:
            return _error(409, str(error))
        except RavebotError as error:
            return _error(503, str(error))

    return handle


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _peer(request: web.Request) -> Actor:
    """The user of the other process, as the kernel reports it (SO_PEERCRED, unix(7))."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is None:
        return Actor("shell", "unknown")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    try:
        return Actor("shell", pwd.getpwuid(uid).pw_name)
    except KeyError:
        return Actor("shell", f"uid {uid}")


@asynccontextmanager
async def serve(app: web.Application, path: Path) -> AsyncIterator[None]:
    """Listen while the block runs. Raises StoreError when the path can't be used.

    A socket that a killed bot left behind is replaced: the database's lock, which the caller holds, is what keeps
    a second bot out.
    """
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        listener, inode = _bind(path)
        try:
            await web.SockSite(runner, listener).start()
            yield
        finally:
            _remove_socket(path, inode)
    finally:
        await runner.cleanup()


def _bind(path: Path) -> tuple[socket.socket, int]:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise StoreError(f"{path} is too long for a Unix socket: give state_dir a shorter path")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_socket(path)
        # The file gets the unbound socket's mode, so that other users can't connect even for a moment.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.setblocking(False)
        return listener, path.lstat().st_ino
    except OSError as error:
        listener.close()
        raise StoreError(f"the admin socket {path} can't be made: {error.strerror}") from error


def _remove_socket(path: Path, inode: int | None = None) -> None:
    """Remove a socket, with `inode` only that one; never a file of another kind."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(there.st_mode) and inode in (None, there.st_ino):
        path.unlink()


@dataclass(frozen=True)
class AdminClient:
    """`Operations` over the socket. Raises NotRunningError, Forbidden, Refused or Unavailable."""

    path: Path

    async def command(self, verb: str, words: tuple[str, ...] = ()) -> Answer:
        return await ask(self.path, "command", CommandQuestion(verb=verb, words=words), _ANSWER)

    async def cleanup(
        self, *, older_than: timedelta | None, everything: bool, force: bool, adopt: bool
    ) -> CleanupReport:
        question = CleanupQuestion(older_than=older_than, everything=everything, force=force, adopt=adopt)
        return await ask(self.path, "cleanup", question, _CLEANUP)

    async def strangers(self) -> Strangers:
        return await ask(self.path, "strangers", AdminQuestion(), _STRANGERS)

    async def replace_instance(self, instance_id: str) -> None:
        return await ask(self.path, "replace-instance", ReplaceQuestion(instance_id=instance_id), _NOTHING)

    async def audit(self, asked: AuditQuery) -> AuditReport:
        return await ask(self.path, "audit", AuditQuestion(**vars(asked)), _AUDIT)

    async def export(self, asked: AuditQuery, place: ExportPlace | None) -> ExportPiece:
        question = ExportQuestion(which=AuditQuestion(**vars(asked)), place=place)
        return await ask(self.path, "export", question, _PIECE)

    async def logs(self, ref: str) -> LogsReport:
        return await ask(self.path, "logs", LogsQuestion(ref=ref), _LOGS)

    async def usage(self, asked: UsageQuery) -> UsageLines:
        return await ask(self.path, "usage", UsageQuestion(**vars(asked)), _USAGE)


async def ask(path: Path, what: str, question: AdminQuestion, answer: TypeAdapter[T]) -> T:
    """Put a question to the bot that listens there. Raises NotRunningError, Forbidden, Refused or Unavailable."""
    # A cleanup waits for graceful stops; the shell's user can interrupt it.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    connector = aiohttp.UnixConnector(os.fspath(path))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.post(f"http://ravebot/{what}", data=question.model_dump_json()) as response,
        ):
            status, body = response.status, await response.read()
    except aiohttp.ClientConnectorError as error:
        raise _not_reached(path, error.os_error) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"the bot behind {path} broke off: {error}; see its log") from error
    if status != 200:
        raise _refusal(status, body)
    try:
        return answer.validate_json(body)
    except ValidationError as error:
        raise Unavailable("the running bot answers in another way: is it of another version?") from error


def _not_reached(path: Path, error: OSError) -> RavebotError:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return NotRunningError(f"no ravebot is running on {path.parent}: start it with `ravebot run`")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Forbidden(f"{path} is not yours: ask as the user that runs ravebot, or as root")
    return Unavailable(f"{path} can't be reached: {error.strerror}")


def _refusal(status: int, body: bytes) -> RavebotError:
    try:
        answer: Mapping[str, object] = json.loads(body)
        message = str(answer["error"])
    except (ValueError, KeyError, TypeError):
        if status == 404:
            return Unavailable("the running bot does not know this: is it of another version? Restart it")
        return Unavailable(f"the running bot failed at this (HTTP {status}): see its log")
    return Refused(message) if status in (400, 409) else Unavailable(message)
