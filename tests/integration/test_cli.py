"""The `ravebot` command as a process of its own, against a real admin socket and a real database."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import sqlite3
import struct
import sys
import termios
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from ravebot.clock import SystemClock
from ravebot.operations.offline import database_path
from ravebot.operations.reports import SandboxLine
from ravebot.sandboxes.model import RAVEBOT, Actor, EventKind, MergeRequest, MergeRequestRef, Person
from ravebot.store import events, merge_requests
from ravebot.store.database import Database
from ravebot.web import admin
from ravebot.web.admin import socket_path
from tests.integration.test_web_admin import LINE, Bot

pytestmark = pytest.mark.integration

HIDDEN = "hush-hush-4711"
CONFIG = """\
state_dir: {folder}/state
matrix:
  homeserver: https://matrix.example.org
  user_id: "@ravebot:example.org"
  password_file: {folder}/secret
  admins: ["@ops:example.org"]
  rooms:
    - {{room: "#dev:example.org", projects: [group/app]}}
gitlab:
  url: https://gitlab.example.org
  token_file: {folder}/secret
  projects: [group/app]
  webhook: {{secret_token_file: {folder}/secret}}
sandbox: {{host: sandboxes.example.org}}
access: {{allow_from: [192.0.2.0/24]}}
provider: {{image: /images/sandbox.qcow2}}
"""


class Installation:
    """A configuration in a folder, and the command that is given it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.secret = folder / "secret"
        self.secret.write_text(HIDDEN)
        self.secret.chmod(0o600)
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG.format(folder=folder))
        self.environment = {**os.environ, "RAVEBOT_CONFIG": str(self.config), "PYTHONUNBUFFERED": ""}

    async def start(
        self, *arguments: str, stdout: int = asyncio.subprocess.PIPE, stderr: int = asyncio.subprocess.PIPE
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ravebot", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=self.environment,
        )  # fmt: skip

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        process = await self.start(*arguments)
        output, errors = await process.communicate()
        assert HIDDEN.encode() not in output + errors
        assert b"Traceback" not in errors
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()


@pytest.fixture
def here(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


class ManySandboxes(Bot):
    """Enough to fill any pipe."""

    async def command(self, verb: str, words: tuple[str, ...], actor: Actor) -> tuple[SandboxLine, ...]:
        return tuple(replace(LINE, ref=f"group/app!{number}", title="x" * 200) for number in range(2000))


class Hanging(Bot):
    """A bot that never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.was_asked = asyncio.Event()

    async def command(self, verb: str, words: tuple[str, ...], actor: Actor) -> tuple[SandboxLine, ...]:
        self.was_asked.set()
        await asyncio.sleep(3600)
        return ()


async def test_check_config_ends_with_0_or_lists_everything_and_ends_with_2(here: Installation) -> None:
    assert await here.run("check-config") == (0, f"{here.config} is right.\n", "")
    here.secret.chmod(0o644)
    text = here.config.read_text()
    here.config.write_text(text.replace("access: {", "acess: {"))
    code, output, errors = await here.run("check-config")
    assert (code, output) == (2, "")
    assert f"{here.config}:5: matrix.password_file: others may read or write" in errors
    assert f"{here.config}:15: acess: unknown key; did you mean access?" in errors
    assert "4 problems" in errors


async def test_check_config_speaks_json(here: Installation) -> None:
    here.secret.chmod(0o644)
    code, output, _ = await here.run("check-config", "--json")
    assert code == 2
    assert [problem["path"] for problem in json.loads(output)["problems"]] == [
        "matrix.password_file",
        "gitlab.token_file",
        "gitlab.webhook.secret_token_file",
    ]


async def test_run_with_a_wrong_configuration_does_not_start(here: Installation) -> None:
    here.config.write_text("nonsense: true\n")
    code, _, errors = await here.run("run")
    assert code == 2
    assert "config.yaml:1: nonsense: unknown key" in errors


async def test_without_a_bot_the_commands_say_so_and_end_with_3(here: Installation) -> None:
    for arguments in (("list",), ("stop", "group/app!42")):
        code, output, errors = await here.run(*arguments)
        assert (code, output) == (3, "")
        assert "start it with `ravebot run`" in errors


async def test_a_missing_configuration_file_is_told(here: Installation) -> None:
    code, _, errors = await here.run("list", "-c", "/nowhere/config.yaml")
    assert code == 2
    assert "/nowhere/config.yaml: there is no such file" in errors


@pytest.mark.parametrize(
    ("path", "says"), [('"/x\\0"', "absolute path"), (f"/{'x' * 200}", "too long"), ("[]", "path")]
)
async def test_a_state_folder_that_cannot_be_is_told_by_every_command(here: Installation, path: str, says: str) -> None:
    here.config.write_text(here.config.read_text().replace(f"state_dir: {here.state}", f"state_dir: {path}"))
    for command in ("list", "audit"):
        code, _, errors = await here.run(command)
        assert code == 2
        assert f"{here.config}:1: state_dir: " in errors
        assert says in errors


async def test_the_running_bots_answers_are_printed_for_pipes(here: Installation) -> None:
    async with admin.serve(admin.make_app(Bot()), socket_path(here.state)):
        code, output, errors = await here.run("list")
        assert (code, errors) == (0, "")
        titles, row = output.splitlines()
        shown = dict(zip(titles.split("\t"), row.split("\t"), strict=True))
        assert shown["SANDBOX"] == "group/app!42"
        assert shown["EXPIRES"] == "2026-01-01T14:00:00Z"
        assert shown["SSH"] == LINE.ssh_command
        code, output, _ = await here.run("list", "--json")
        assert json.loads(output)[0]["ref"] == "group/app!42"
        assert await here.run("stop", "group/app!42") == (0, "stopping\n", "")
        code, _, errors = await here.run("stop", "group/app!1")
        assert (code, errors) == (1, "ravebot: there is no sandbox of group/app!1\n")
        code, output, _ = await here.run("usage", "--since", "7d")
        assert output.splitlines()[1] == "group/app\t3\t5.0\t1.25\t20.0\t5 min\t4.0 KiB\t3.0 GiB\t2.0 KiB\t1.0 KiB\t70"
        code, output, _ = await here.run("usage", "--by", "project", "--json")
        assert (json.loads(output)[0]["project"], json.loads(output)[0]["cpu_hours"]) == ("group/app", 1.25)
        code, output, _ = await here.run("usage", "--by", "agent", "--by", "week", "--csv")
        assert output == "agent,week,turns,hours,model_tokens\ncoder,2026-W01,2,0.5,99\n"
        code, output, _ = await here.run("cleanup", "--older-than", "4h")
        assert (code, output.splitlines()[1]) == (0, "ended\tgroup/app!42")
        code, output, errors = await here.run("audit", "--verify")
        assert code == 0
        assert "All 7 events are intact." in output


async def test_a_broken_configuration_does_not_keep_from_asking_the_running_bot(here: Installation) -> None:
    here.config.write_text(here.config.read_text() + "half: edited\n")
    here.secret.unlink()
    async with admin.serve(admin.make_app(Bot()), socket_path(here.state)):
        code, output, _ = await here.run("list")
    assert code == 0
    assert "group/app!42" in output


async def test_a_reader_that_goes_away_is_no_error_message(here: Installation) -> None:
    async with admin.serve(admin.make_app(ManySandboxes()), socket_path(here.state)):
        reader, writer = os.pipe()
        process = await here.start("list", stdout=writer)
        os.close(writer)
        os.close(reader)
        _, errors = await process.communicate()
    assert errors == b""


async def test_a_standard_output_that_is_closed_is_told(here: Installation) -> None:
    async with admin.serve(admin.make_app(Bot()), socket_path(here.state)):
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "ravebot", "list",
            stderr=asyncio.subprocess.PIPE, env=here.environment,
        )  # fmt: skip
        _, errors = await process.communicate()
    assert (process.returncode, b"standard output is closed" in errors) == (1, True)
    assert b"Traceback" not in errors


async def test_what_stands_in_a_configuration_cannot_move_the_cursor(here: Installation) -> None:
    here.config.write_text(here.config.read_text() + '"\\e[2J": x\n')
    code, _, errors = await here.run("check-config")
    assert code == 2
    assert "\x1b" not in errors
    assert "\\x1b[2J: unknown key" in errors


async def test_an_interrupt_ends_with_130_and_without_a_traceback(here: Installation) -> None:
    bot = Hanging()
    async with admin.serve(admin.make_app(bot), socket_path(here.state)):
        process = await here.start("list")
        await bot.was_asked.wait()
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in errors


@pytest.mark.parametrize("columns", [80, 120])
async def test_on_a_terminal_a_table_fits_and_the_ssh_command_stays_on_one_line(
    here: Installation, columns: int
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
    soon = datetime.now(UTC) + timedelta(hours=1, minutes=40, seconds=30)
    line = replace(LINE, expires_at=soon, owner="eve\x1b[2J")

    class One(Bot):
        async def command(self, verb: str, words: tuple[str, ...], actor: Actor) -> tuple[SandboxLine, ...]:
            return (line,)

    here.environment.pop("COLUMNS", None)
    here.environment["TERM"] = "xterm"
    try:
        async with admin.serve(admin.make_app(One()), socket_path(here.state)):
            process = await here.start("list", stdout=theirs)
            await process.communicate()
        text = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "\x1b[2J" not in text
    assert "\x1b[32m" in text  # ready is green
    assert "in 1 h 40 min" in text
    assert f"  {LINE.ssh_command}\r\n" in text


async def fill(state: Path) -> None:
    """A database with three events of one merge request and one of none."""
    ref = MergeRequestRef(7, 42)
    mr = MergeRequest(ref, "group/app", "title", "https://x/42", "branch", 7, "a" * 40, Person(1, "alice"))
    async with Database(database_path(state), SystemClock()) as database:
        await database.write(lambda tx: merge_requests.observe(tx, mr))
        for kind in (EventKind.SANDBOX_QUEUED, EventKind.SANDBOX_STARTING, EventKind.SANDBOX_READY):
            await database.write(partial(events.append, kind=kind, actor=Actor("gitlab", "alice"), mr=ref))
        data: dict[str, object] = {"note": "a\x1b[2Jb"}
        await database.write(lambda tx: events.append(tx, EventKind.ORPHAN_REMOVED, RAVEBOT, data=data))


async def test_the_audit_reads_the_database_while_no_bot_runs(here: Installation) -> None:
    await fill(here.state)
    code, output, errors = await here.run("audit")
    assert (code, errors.partition(":")[0]) == (0, "Hash of the newest event")
    assert "\x1b" not in output
    kinds = [row.split("\t")[1] for row in output.splitlines()[1:]]
    assert kinds == ["sandbox.queued", "sandbox.starting", "sandbox.ready", "orphan.removed"]
    code, output, errors = await here.run("audit", "--verify")
    assert (code, errors, output.splitlines()[1:]) == (0, "", ["All 4 events are intact."])
    code, output, _ = await here.run("audit", "group/app!42", "--limit", "2", "--json")
    report = json.loads(output)
    assert [line["kind"] for line in report["lines"]] == ["sandbox.starting", "sandbox.ready"]
    assert report["lines"][0]["actor"] == "alice (gitlab)"
    assert report["checked_rows"] is None


def tamper(state: Path, sql: str) -> None:
    with closing(sqlite3.connect(database_path(state))) as connection:
        connection.execute("DROP TRIGGER events_are_never_changed")
        connection.execute(sql)
        connection.commit()


@pytest.mark.parametrize(
    "change",
    ["actor = 'mallory'", "data = 'not json'", "at = 9000000000000000000", "data = CAST(x'ff' AS TEXT)"],
)
async def test_the_audit_finds_a_changed_event_and_ends_with_1(here: Installation, change: str) -> None:
    await fill(here.state)
    tamper(here.state, f"UPDATE events SET {change} WHERE id = 2")
    code, output, errors = await here.run("audit", "--verify")
    assert code == 1
    assert "event 2 is missing or altered" in errors
    assert [line.partition(":")[0] for line in output.splitlines()] == ["Hash of the newest event"]
    code, output, _ = await here.run("audit", "--verify", "--json")
    assert (code, json.loads(output)["broken_at"]) == (1, 2)
    assert (await here.run("audit"))[0] == 0


async def test_the_audit_of_a_log_that_was_removed_says_what_to_do(here: Installation) -> None:
    await fill(here.state)
    tamper(here.state, "DROP TABLE events")
    code, _, errors = await here.run("audit", "--verify")
    assert code == 1
    assert "no such table: events" in errors
    assert "compare with a backup" in errors


@pytest.mark.parametrize("ref", ["group/app!1", "nonsense", "group/app!²", "!42", "group/app!-1"])
async def test_the_audit_of_something_unknown_says_how_to_write_it(here: Installation, ref: str) -> None:
    await fill(here.state)
    code, _, errors = await here.run("audit", "--", ref)
    assert code == 1
    assert "Write one like group/app!42" in errors


async def test_the_audit_without_a_database_makes_none(here: Installation) -> None:
    code, _, errors = await here.run("audit")
    assert code == 1
    assert "there is no database" in errors
    assert list(here.state.iterdir()) == []


async def test_the_doctor_ends_with_1_when_something_failed(here: Installation) -> None:
    text = here.config.read_text()
    for service in ("matrix", "gitlab"):
        text = text.replace(f"https://{service}.example.org", "http://127.0.0.1:1")
    here.config.write_text(text)
    code, output, errors = await here.run("doctor")
    assert code == 1
    assert any(row.startswith("failed\tgitlab\t") for row in output.splitlines())
    assert "failed" in errors
    code, output, _ = await here.run("doctor", "--json")
    assert {"name", "verdict", "detail", "fix"} == set(json.loads(output)[0])
