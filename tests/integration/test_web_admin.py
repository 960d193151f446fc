"""The admin socket, client and server, over a real Unix socket."""

from __future__ import annotations

import asyncio
import getpass
import socket
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from ravebot.errors import NotRunningError, Refused, StoreError, Unavailable
from ravebot.operations.reports import (
    AgentUsageLine,
    AuditLine,
    AuditQuery,
    AuditReport,
    CleanupReport,
    ExportPiece,
    ExportPlace,
    LogsReport,
    SandboxLine,
    Strangers,
    UsageBy,
    UsageLine,
    UsageLines,
    UsageQuery,
)
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor, Run, Stage, StageResult
from ravebot.web import admin
from ravebot.web.admin import AdminClient, socket_path

pytestmark = pytest.mark.integration

NOW = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
LINE = SandboxLine(
    ref="group/app!42",
    title="Ünïcode `and` <b>",
    state="ready",
    stage="",
    queue_position=None,
    owner="alice",
    sha="a" * 40,
    machine="rave-1",
    ssh_command="ssh -p 2200 agent@sandboxes.example.org",
    web_url="http://sandboxes.example.org:3000/",
    created_at=NOW,
    ready_at=NOW,
    expires_at=NOW + timedelta(hours=2),
)
USED = (
    UsageLine(
        group=("group/app",), sandboxes=3, hours=5.0, queue_hours=0.25, queue_median_seconds=300.0, machine_hours=5.5,
        cpu_hours=1.25, memory_gib_hours=20.0, memory_peak_bytes=4096, disk_peak_bytes=3 * 1024**3,
        received_bytes=2048, sent_bytes=1024, visitor_bytes=512, model_tokens=70,
    ),
)  # fmt: skip
AGENTS_USED = (AgentUsageLine(("coder", "2026-W01"), turns=2, hours=0.5, model_tokens=99),)
BY_WEEK = UsageQuery(by=(UsageBy.PROJECT, UsageBy.WEEK), since=NOW)
STRANGERS = Strangers(("rave-main-1",), ("rave-1-rave-main-2.qcow2",), ("52:54:00:00:00:01",))
AUDIT = AuditReport((AuditLine(7, NOW, "ready", "ravebot", "group/app!42", "rave-1", "{}"),), "f" * 64, 7, None)

ASKED = AuditQuery("group/app!42", "group/app", ("alice",), ("sandbox.",), NOW, NOW + timedelta(1), 50, verify=True)
PLACE = ExportPlace((7,), 42, last=9, event=7, hash="f" * 64, visit=(3, "ssh", "192.0.2.7"), events=2, visits=1)
PIECE = ExportPiece(("{}", '{"type":"end"}'), PLACE, 8)

LOGS = LogsReport(
    "group/app!42", "ready", ("rave-main-2", "rave-main-1"),
    (Run(NOW, (StageResult(Stage.SETUP, ok=True, seconds=1.5, tail="a\tb", at=NOW),)),),
)  # fmt: skip


class Bot:
    """An in-memory bot that remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def command(self, verb: str, words: tuple[str, ...], actor: Actor) -> Outcome | tuple[SandboxLine, ...]:
        if verb == "list":
            return (LINE,)
        self.asked.append((verb, words, actor))
        (ref,) = words
        if ref == "group/app!1":
            raise Refused("there is no sandbox of group/app!1")
        if ref == "group/app!2":
            raise Unavailable("the provider is away")
        if ref == "group/app!3":
            raise RuntimeError("a mistake of ours")
        return Outcome(True, "stopping")

    async def cleanup(
        self, *, older_than: timedelta | None, everything: bool, force: bool, adopt: bool, actor: Actor
    ) -> CleanupReport:
        self.asked.append((older_than, everything, force, adopt, actor))
        return CleanupReport(ended=("group/app!42",))

    async def strangers(self) -> Strangers:
        return STRANGERS

    async def replace_instance(self, instance_id: str) -> None:
        self.asked.append(instance_id)

    async def audit(self, asked: AuditQuery) -> AuditReport:
        self.asked.append(asked)
        return AUDIT

    async def export(self, asked: AuditQuery, place: ExportPlace | None) -> ExportPiece:
        self.asked.append((asked, place))
        return PIECE

    async def logs(self, ref: str) -> LogsReport:
        self.asked.append(ref)
        return LOGS

    async def usage(self, asked: UsageQuery) -> UsageLines:
        self.asked.append(asked)
        return AGENTS_USED if UsageBy.AGENT in asked.by else USED


async def test_every_answer_crosses_the_socket_unchanged(tmp_path: Path) -> None:
    bot, path = Bot(), socket_path(tmp_path)
    async with admin.serve(admin.make_app(bot), path):
        client = AdminClient(path)
        assert await client.command("list") == (LINE,)
        assert await client.command("stop", ("group/app!42",)) == Outcome(True, "stopping")
        report = await client.cleanup(older_than=timedelta(hours=4), everything=False, force=True, adopt=False)
        assert report == CleanupReport(ended=("group/app!42",))
        assert await client.strangers() == STRANGERS
        await client.replace_instance("0123456789")
        assert await client.audit(ASKED) == AUDIT
        assert await client.logs("group/app!42") == LOGS
        assert await client.export(ASKED, PIECE.place) == PIECE
        assert await client.usage(BY_WEEK) == USED
        assert await client.usage(UsageQuery(by=(UsageBy.AGENT,))) == AGENTS_USED
    me = Actor("shell", getpass.getuser())
    assert bot.asked == [
        ("stop", ("group/app!42",), me),
        (timedelta(hours=4), False, True, False, me),
        "0123456789",
        ASKED,
        "group/app!42",
        (ASKED, PIECE.place),
        BY_WEEK,
        UsageQuery(by=(UsageBy.AGENT,)),
    ]


async def test_the_socket_is_its_owners_alone_and_gone_at_the_end(tmp_path: Path) -> None:
    path = socket_path(tmp_path)
    async with admin.serve(admin.make_app(Bot()), path):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert not path.exists()


async def test_a_socket_left_by_a_killed_bot_is_replaced(tmp_path: Path) -> None:
    path = socket_path(tmp_path)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with pytest.raises(NotRunningError, match="ravebot run"):
        await AdminClient(path).command("list")
    async with admin.serve(admin.make_app(Bot()), path):
        assert await AdminClient(path).command("list") == (LINE,)


async def test_an_ordinary_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    path = socket_path(tmp_path)
    path.write_text("mine")
    with pytest.raises(StoreError, match="can't be made"):
        async with admin.serve(admin.make_app(Bot()), path):
            pass
    assert path.read_text() == "mine"


async def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="shorter path"):
        async with admin.serve(admin.make_app(Bot()), tmp_path / ("x" * 120)):
            pass


async def test_without_a_bot_the_client_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="start it with `ravebot run`"):
        await AdminClient(socket_path(tmp_path)).command("list")


async def test_a_refusal_and_a_failure_reach_the_person_who_asked(tmp_path: Path) -> None:
    path = socket_path(tmp_path)
    async with admin.serve(admin.make_app(Bot()), path):
        client = AdminClient(path)
        with pytest.raises(Refused, match="there is no sandbox of group/app!1"):
            await client.command("stop", ("group/app!1",))
        with pytest.raises(Unavailable, match="the provider is away"):
            await client.command("stop", ("group/app!2",))
        with pytest.raises(Unavailable, match="see its log"):
            await client.command("stop", ("group/app!3",))
        assert await client.command("list") == (LINE,)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"verb": 3}',
        b'{"verb": "stop", "ref": "x"}',
        b'{"verb": "stop", "words": "x"}',
        b'{"verb": "stop", "words": ["' + b"x" * 600 + b'"]}',
    ],
)
async def test_a_malformed_question_is_refused_and_nothing_is_done(tmp_path: Path, body: bytes) -> None:
    bot, path = Bot(), socket_path(tmp_path)
    async with (
        admin.serve(admin.make_app(bot), path),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.post("http://ravebot/command", data=body) as response,
    ):
        assert response.status == 400
        assert "error" in await response.json()
    assert bot.asked == []


async def test_an_answer_of_another_version_is_no_crash(tmp_path: Path) -> None:
    path = socket_path(tmp_path)

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n[{"new": 1}]')
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(other, path)
    async with server:
        with pytest.raises(Unavailable, match="another version"):
            await AdminClient(path).command("list")
