"""`ravebot audit`: what is asked for is what is shown, and what is exported can be checked by others."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.errors import Refused, StoreError
from ravebot.operations.audit import export, report
from ravebot.operations.audit.export import OfflineExporter
from ravebot.operations.offline import database_path
from ravebot.operations.reports import AuditQuery, ExportPlace
from ravebot.sandboxes.model import (
    RAVEBOT,
    Actor,
    EventKind,
    MergeRequest,
    MergeRequestRef,
    Person,
)  # fmt: skip
from ravebot.store import connections, events, merge_requests, sandboxes
from ravebot.store.connections import Visit
from ravebot.store.database import Database, Transaction
from tests.integration.test_cli import Installation
from tests.support.clock import ManualClock

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
ALICE, ALICE_THERE, BOB = Actor("gitlab", "alice"), Actor("matrix", "@alice:example.org"), Actor("gitlab", "bob")
APP, SHOP = MergeRequestRef(7, 42), MergeRequestRef(8, 42)
K = EventKind
CLOCK = ManualClock()
START = CLOCK.now()


def fill(tx: Transaction) -> None:
    for ref, path in ((APP, "group/app"), (SHOP, "group/shop")):
        merge_requests.observe(
            tx, MergeRequest(ref, path, "title", "https://x/42", "b", 7, "a" * 40, Person(1, "alice"))
        )
    rows: tuple[tuple[EventKind, Actor, MergeRequestRef | None], ...] = (
        (K.SANDBOX_QUEUED, ALICE, APP), (K.SANDBOX_READY, RAVEBOT, APP), (K.COMMAND_REFUSED, BOB, APP),
        (K.SANDBOX_QUEUED, BOB, SHOP), (K.SANDBOX_EXTENDED, ALICE_THERE, SHOP), (K.TOKEN_CREATED, ALICE, None),
    )  # fmt: skip
    for kind, actor, mr in rows:
        events.append(tx, kind, actor, mr=mr, data={"text": "naïve \x1b[2J \u202e"})


def visit(tx: Transaction, mr: MergeRequestRef, source: str) -> None:
    sandbox = sandboxes.insert(tx, mr, "a" * 40, ALICE)
    connections.add(tx, Visit(sandbox.id, "ssh", source, tx.now, tx.now, 3, 1, 4096))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    (tmp_path / "state").mkdir(mode=0o700)
    clock = ManualClock()
    async with Database(database_path(tmp_path / "state"), clock) as database:
        await database.write(fill)
        clock.advance(timedelta(days=1))
        await database.write(lambda tx: events.append(tx, K.SANDBOX_ENDED, RAVEBOT, mr=APP))
        await database.write(lambda tx: visit(tx, APP, "192.0.2.7"))
        await database.write(lambda tx: visit(tx, SHOP, "192.0.2.8"))
        yield database


async def shown(database: Database, asked: AuditQuery) -> list[int]:
    return [line.id for line in (await report.read(database, asked)).lines]


async def exported(database: Database, asked: AuditQuery) -> tuple[list[dict[str, Any]], int | None]:
    lines: list[dict[str, Any]] = []
    broken_at = None
    async for piece in export.pieces(OfflineExporter(database), asked):
        lines += [json.loads(line) for line in piece.lines]
        broken_at = piece.broken_at
    return lines, broken_at


ASKED: tuple[tuple[AuditQuery, list[int]], ...] = (
    (AuditQuery(), [1, 2, 3, 4, 5, 6, 7]),
    (AuditQuery(limit=2), [6, 7]),
    (AuditQuery(ref="group/app!42"), [1, 2, 3, 7]),
    (AuditQuery(project="group/shop"), [4, 5]),
    (AuditQuery(people=("alice",)), [1, 6]),
    (AuditQuery(people=("@Alice",)), [1, 6]),
    (AuditQuery(people=("alice (gitlab)", "@alice:example.org")), [1, 5, 6]),
    (AuditQuery(kinds=("sandbox.queued",)), [1, 4]),
    (AuditQuery(kinds=("sandbox.",)), [1, 2, 4, 5, 7]),
    (AuditQuery(kinds=("sandbox.", "token.created")), [1, 2, 4, 5, 6, 7]),
    (AuditQuery(since=START + timedelta(hours=1)), [7]),
    (AuditQuery(until=START + timedelta(hours=1)), [1, 2, 3, 4, 5, 6]),
    (AuditQuery(project="group/app", people=("bob",), kinds=("command.",)), [3]),
    (AuditQuery(ref="group/app!42", since=START + timedelta(days=2)), []),
)
CONNECTED: tuple[tuple[AuditQuery, list[str]], ...] = (
    (AuditQuery(), ["192.0.2.7", "192.0.2.8"]),
    (AuditQuery(project="group/shop"), ["192.0.2.8"]),
    (AuditQuery(ref="group/app!42", kinds=("access.",)), ["192.0.2.7"]),
    (AuditQuery(until=START), []),
    (AuditQuery(kinds=("sandbox.",)), []),
    (AuditQuery(people=("alice",)), []),
)


async def test_what_is_asked_for_is_shown_and_exported(database: Database) -> None:
    for asked, ids in ASKED:
        assert await shown(database, asked) == ids, asked
        lines, _ = await exported(database, asked)
        of_export = [line["event"]["id"] for line in lines if line["type"] == "event"]
        assert of_export[-asked.limit :] == ids, asked
        assert (lines[0]["type"], lines[-1]["type"]) == ("export", "end")
        assert (lines[-1]["checked"], lines[-1]["events"]) == (7, len(of_export))


async def test_who_connected_is_exported_if_it_is_asked_for(database: Database) -> None:
    for asked, sources in CONNECTED:
        lines, _ = await exported(database, asked)
        found = [line for line in lines if line["type"] == "access"]
        assert [line["source"] for line in found] == sources, asked
        assert all((line["connections"], line["dropped"], line["bytes"]) == (3, 1, 4096) for line in found)


@pytest.mark.parametrize(
    "asked", [AuditQuery(project="group/other"), AuditQuery(project="group/app", ref="group/shop!42")]
)
async def test_a_project_that_is_unknown_or_of_another_merge_request_is_refused(
    database: Database, asked: AuditQuery
) -> None:
    with pytest.raises(Refused):
        await shown(database, asked)
    with pytest.raises(Refused):
        await exported(database, asked)


@pytest.mark.parametrize("asked", [AuditQuery(), AuditQuery(people=("alice",))])
@pytest.mark.parametrize("sql", ["UPDATE events SET actor = 'mallory' WHERE id = 4", "DELETE FROM events WHERE id = 4"])
async def test_an_export_ends_at_a_row_that_was_changed_or_removed_also_one_that_is_not_asked_for(
    database: Database, asked: AuditQuery, sql: str
) -> None:
    tamper(database.path, sql)
    lines, broken_at = await exported(database, asked)
    assert broken_at == 4
    assert all(line["event"]["id"] < 4 for line in lines[1:])


async def test_a_time_of_a_connection_that_is_none_is_told_as_damage(database: Database) -> None:
    tamper(database.path, "UPDATE connections SET last_at = 9000000000000000000")
    with pytest.raises(StoreError, match="compare with a backup"):
        await exported(database, AuditQuery())


async def test_rows_that_are_cut_off_while_it_is_exported_are_found(database: Database) -> None:
    first = await export.piece(database, AuditQuery(), None)
    tamper(database.path, "DELETE FROM events WHERE id >= 6")
    assert (await export.piece(database, AuditQuery(), first.place)).broken_at == 6


async def test_an_export_goes_on_where_the_last_piece_ended_and_leaves_out_what_happens_meanwhile(
    database: Database,
) -> None:
    def more(tx: Transaction) -> None:
        for _ in range(2500):
            events.append(tx, K.ACCESS_FIRST, RAVEBOT)

    await database.write(more)
    place: ExportPlace | None = None
    numbers: list[int] = []
    while (piece := await export.piece(database, AuditQuery(), place)).place is not None:
        place = piece.place
        assert len(piece.lines) <= 1000
        numbers += [line["event"]["id"] for line in map(json.loads, piece.lines) if line["type"] == "event"]
        await database.write(lambda tx: events.append(tx, K.ACCESS_FIRST, RAVEBOT))
    assert numbers == list(range(1, 2508))
    end = json.loads(piece.lines[0])
    assert end == {"type": "end", "checked": 2507, "events": 2507, "access": 2, "head": end["head"]}


def tamper(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER IF EXISTS events_are_never_changed")
        connection.execute("DROP TRIGGER IF EXISTS events_are_never_removed")
        assert connection.execute(sql).rowcount > 0
        connection.commit()


@pytest.fixture
async def here(tmp_path: Path) -> Installation:
    """An installation with seven events, whose bot does not run."""
    found = Installation(tmp_path)
    async with Database(database_path(found.state), ManualClock()) as database:
        await database.write(fill)
        await database.write(lambda tx: visit(tx, APP, "192.0.2.7"))
        await database.write(lambda tx: events.append(tx, K.SANDBOX_ENDED, RAVEBOT, mr=APP))
    return found


async def test_the_file_is_private_and_the_script_of_the_documentation_checks_it(here: Installation) -> None:
    file, some = here.state.parent / "log.jsonl", here.state.parent / "alice.jsonl"
    code, output, errors = await here.run("audit", "--export", str(file))
    assert (code, output) == (0, "")
    assert f"All 7 events are intact; 7 events and 1 line of access exported to {file}." in errors
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes().isascii()
    assert (await here.run("audit", "--export", str(some), "--person", "alice"))[0] == 0
    assert sorted(path.name for path in file.parent.iterdir() if "jsonl" in path.name) == [some.name, file.name]

    pages = (ROOT / "docs" / "operate.md").read_text()
    script = next(code for code in re.findall(r"```python\n(.*?)```", pages, re.DOTALL) if "hashlib" in code)
    assert script.count("\n") <= 25

    def check(lines: list[str]) -> tuple[int, str]:
        changed = here.state.parent / "changed.jsonl"
        changed.write_text("".join(lines))
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", script, changed], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    lines = file.read_text().splitlines(keepends=True)
    assert check(lines)[1].startswith("7 events are intact")
    assert check(some.read_text().splitlines(keepends=True))[1].startswith("2 events are intact")
    assert "event 3" in check([line.replace("bob", "eve") for line in lines])[1]
    assert "event 5" in check([line for line in lines if '"id":4,' not in line])[1]
    assert "end of the export is missing" in check(lines[:-1])[1]
    assert "newest events are missing" in check([line for line in lines if '"id":7,' not in line])[1]


async def test_a_broken_log_leaves_no_file_and_says_which_event(here: Installation) -> None:
    tamper(database_path(here.state), "UPDATE events SET data = '{}' WHERE id = 5")
    before = set(here.state.parent.iterdir())
    code, output, errors = await here.run("audit", "--export", str(here.state.parent / "log.jsonl"))
    assert (code, output) == (1, "")
    assert "event 5 is missing or altered" in errors
    assert set(here.state.parent.iterdir()) == before
    code, output, _ = await here.run("audit", "--export", "-")
    assert code == 1
    assert [json.loads(line)["type"] for line in output.splitlines()] == ["export", *["event"] * 4]


async def test_an_export_replaces_no_file(here: Installation) -> None:
    file = here.state.parent / "log.jsonl"
    file.write_text("older")
    code, _, errors = await here.run("audit", "--export", str(file))
    assert (code, file.read_text()) == (1, "older")
    assert "choose another name" in errors
    code, _, errors = await here.run("audit", "--export", "/proc/log.jsonl")
    assert (code, errors.partition(" (")[0]) == (1, "ravebot: /proc/log.jsonl can't be written")


async def test_who_sees_only_the_last_events_is_told_so(here: Installation) -> None:
    async with Database(database_path(here.state), ManualClock()) as database:
        await database.write(lambda tx: [events.append(tx, K.ACCESS_FIRST, RAVEBOT) for _ in range(93)])
    code, output, errors = await here.run("audit")
    assert (code, len(output.splitlines())) == (0, 101)
    assert "These are the last 100; --limit shows more" in errors
    assert "These are" not in (await here.run("audit", "--limit", "99"))[2]


async def test_an_interrupted_export_leaves_nothing(here: Installation) -> None:
    async with Database(database_path(here.state), ManualClock()) as database:

        def more(tx: Transaction) -> None:
            for _ in range(20_000):
                events.append(tx, K.ACCESS_FIRST, RAVEBOT)

        await database.write(more)
    before = set(here.state.parent.iterdir())
    process = await here.start("audit", "--export", str(here.state.parent / "log.jsonl"))
    while not (set(here.state.parent.iterdir()) - before):
        await asyncio.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = await process.communicate()
    assert (process.returncode, b"Traceback" in errors) == (130, False)
    assert set(here.state.parent.iterdir()) == before


async def test_a_kind_that_there_is_not_is_refused_with_those_that_there_are(here: Installation) -> None:
    code, _, errors = await here.run("audit", "--kind", "sandbx.ended")
    assert code == 2
    assert "no event is called sandbx.ended" in " ".join(errors.replace("│", " ").split())
