"""`ravebot logs`: what the machine and its guest wrote, whoever wrote it and however much."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ravebot.operations.offline import database_path
from ravebot.operations.sandboxlogs.reading import end_of, readable
from ravebot.sandboxes.model import RAVEBOT, Stage, StageResult
from ravebot.store import machines, merge_requests, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.web import admin
from ravebot.web.admin import socket_path
from tests.integration.test_cli import Installation
from tests.integration.test_web_admin import Bot
from tests.support.clock import ManualClock
from tests.support.records import a_machine, a_merge_request

pytestmark = pytest.mark.integration
NAME, EARLIER = "rave-main-0123456789", "rave-main-abcdef0123"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("\x1b[1;32mok\x1b[0m\ttab\n", ["ok      tab"]),
        ("\x1b]0;title\x07said\n", ["said"]),
        ("\x1b]8;;no end\nafter it\n", ["", "after it"]),  # a guest hides no more than its own line
        ("10%\r50%\r100%\n", ["100%"]),
        ("x" * 3000, ["x" * 2000 + " …"]),
    ],
)
def test_what_a_terminal_would_show_at_the_end_is_shown(text: str, lines: list[str]) -> None:
    assert readable(text) == lines


def test_the_end_of_a_large_log_is_read_and_continues_in_the_file_that_was_rotated_away(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.log").write_text("4\n5\n")
    (tmp_path / f"{NAME}.log.0").write_text("2\n3\n")
    (tmp_path / f"{NAME}.log.1").write_text("0\n1\n")
    assert end_of(tmp_path, NAME, 3).lines == ("3", "4", "5")
    assert end_of(tmp_path, NAME, 2).lines == ("4", "5")
    assert end_of(tmp_path, NAME, 50).lines == ("0", "1", "2", "3", "4", "5")
    with (tmp_path / f"{EARLIER}.log").open("wb") as file:
        file.truncate(2**33)  # a guest that floods
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    assert end_of(tmp_path, EARLIER, 1).lines == ("last",)


def test_what_is_no_plain_file_of_the_folder_is_not_read(tmp_path: Path) -> None:
    outside = tmp_path / "secret.log"
    outside.write_text("secret\n")
    folder = tmp_path / "console"
    folder.mkdir()
    (folder / f"{NAME}.log").symlink_to(outside)
    os.mkfifo(folder / f"{EARLIER}.log")
    (tmp_path / "link").symlink_to(folder)
    for where, name, why in (
        (folder, NAME, "is a link"),
        (folder, EARLIER, "no regular file"),
        (folder, "../secret", "altered"),
        (folder, "rave-main-ffffffffff", "no such file"),
        (tmp_path / "link", NAME, ""),
    ):
        end = end_of(where, name, 10)
        assert end.lines == ()
        assert why in end.why != ""


@pytest.fixture
async def here(tmp_path: Path) -> Installation:
    """A merge request whose sandbox has a second machine and a failed set-up; another one without a sandbox."""
    found = Installation(tmp_path)
    mr, other = a_merge_request(42), a_merge_request(43)

    def fill(tx: Transaction) -> None:
        for one in (mr, other):
            merge_requests.observe(tx, one)
        sandbox = sandboxes.insert(tx, mr.ref, mr.head_sha, RAVEBOT)
        for number, name in enumerate((EARLIER, NAME), 1):
            machines.insert(tx, a_machine(number, name=name, sandbox_id=sandbox.id))
        sandboxes.add_result(tx, sandbox, StageResult(Stage.SETUP, ok=False, seconds=2.5, tail="\x1b[31mno gcc\x1b[0m"))

    async with Database(database_path(found.state), ManualClock()) as database:
        await database.write(fill)
    (found.state / "console").mkdir()
    (found.state / "console" / f"{NAME}.log").write_text("booting\r\n\x1b[2Jlogin: \u202e\r\n")
    return found


async def test_console_and_output_are_shown_while_no_bot_runs_and_why_another_log_is_not(here: Installation) -> None:
    code, output, errors = await here.run("logs", "group/app!42")
    assert code == 0
    assert output.splitlines() == [
        "==> Set-up and tests of group/app!42, at 2026-01-01T12:00:00Z: they failed <==",
        "==> setup: failed after 2.5 s <==",
        "no gcc",
        f"==> The machine's console: {here.state}/console/{NAME}.log <==",
        "booting",
        "login: \\u202e",
    ]
    assert errors.startswith(f"QEMU's log, /var/log/libvirt/qemu/{NAME}.log: ")


async def test_one_log_in_a_pipe_is_that_alone_or_an_error(here: Installation) -> None:
    assert await here.run("logs", "group/app!42", "--console", "--lines", "1") == (0, "login: \\u202e\n", "")
    code, output, errors = await here.run("logs", "group/app!43")
    assert (code, output) == (1, "")
    assert "has had no machine yet: there was no sandbox of it" in errors


async def test_the_running_bot_is_asked_where_they_are_and_json_has_all_of_them(here: Installation) -> None:
    (here.state / "console" / "rave-main-2.log").write_text("up\n")
    async with admin.serve(admin.make_app(Bot()), socket_path(here.state)):
        code, output, errors = await here.run("logs", "group/app!42", "--json")
    found = json.loads(output)
    assert (code, errors) == (0, "")
    assert (found["state"], found["machines"]) == ("ready", ["rave-main-2", "rave-main-1"])
    assert found["setup"][0]["stages"][0]["lines"] == ["a       b"]
    assert found["console"] == {"path": f"{here.state}/console/rave-main-2.log", "lines": ["up"], "why": ""}
    assert (found["qemu"]["lines"], found["qemu"]["why"] != "") == ([], True)
