"""Every release's database is upgraded by the first start of this version, also one that is killed in between."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ravebot.errors import StoreError
from ravebot.operations.audit.report import read_offline
from ravebot.operations.reports import AuditQuery
from ravebot.store.database import Database, migrate, migrations
from tests.support.clock import ManualClock
from tests.support.releases import lay_down, versions

pytestmark = pytest.mark.integration

Rows = dict[str, list[dict[str, object]]]
LATER = [
    (
        len(migrations()) + 1,
        "CREATE TABLE later (a INTEGER PRIMARY KEY, b TEXT NOT NULL) STRICT;\n"
        "INSERT INTO later SELECT id, name FROM machines;\n"
        "ALTER TABLE machines ADD COLUMN fresh TEXT NOT NULL DEFAULT 'x';\n"
        "CREATE INDEX machines_fresh ON machines (fresh);\n",
    ),
    (
        len(migrations()) + 2,
        "ALTER TABLE later RENAME COLUMN b TO c;\nUPDATE later SET c = c || '!';\nDROP INDEX machines_fresh;\n",
    ),
]
"""Made-up migrations of versions to come."""


def schema(database: Path) -> tuple[int, set[str]]:
    """The version, and what makes every table, index and trigger, however it is laid out."""
    with closing(sqlite3.connect(database)) as connection:
        number = connection.execute("PRAGMA user_version").fetchone()[0]
        found = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    return number, {re.sub(r"--[^\n]*|\s+", " ", sql).replace('"', "") for (sql,) in found}


def rows(database: Path) -> Rows:
    """Every row of every table."""
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        return {
            name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}" ORDER BY rowid')]
            for (name,) in tables
        }


def assert_kept(before: Rows, after: Rows) -> None:
    """Each row is there with the values that it had."""
    for table, kept in before.items():
        assert len(kept) == len(after[table]), table
        for old, new in zip(kept, after[table], strict=True):
            assert {name: new[name] for name in old if name in new} == {name: old[name] for name in old if name in new}


def upgrade_and_be_killed(database: Path, statement: int) -> bool:
    """Upgrade in another process, which is killed before its n-th statement; whether it lived to the end."""
    child = os.fork()
    if child == 0:
        left = statement

        def count(_: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        connection = sqlite3.connect(database, isolation_level=None)
        connection.set_trace_callback(count)
        migrate(connection, [*migrations(), *LATER])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture(params=versions())
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_the_first_start_upgrades_a_release_and_keeps_every_row(tmp_path: Path, release: str) -> None:
    old, fresh = tmp_path / "old" / "ravebot.db", tmp_path / "fresh" / "ravebot.db"
    lay_down(release, old)
    before = rows(old)
    assert [table for table, found in before.items() if not found] == []
    for path in (old, old, fresh):
        async with Database(path, ManualClock()):
            pass
    assert schema(old) == schema(fresh)
    assert_kept(before, rows(old))
    audit = await read_offline(old.parent, AuditQuery(verify=True, limit=1))
    assert (audit.broken_at, audit.checked_rows) == (None, len(before["events"]))


def test_an_upgrade_killed_before_any_statement_and_started_again_ends_as_if_it_had_not_been(
    tmp_path: Path, release: str
) -> None:
    whole = tmp_path / "whole.db"
    lay_down(release, whole)
    before = rows(whole)
    assert upgrade_and_be_killed(whole, 1000)
    number, numbers = 0, set()
    while True:
        killed = tmp_path / f"{number}.db"
        lay_down(release, killed)
        done = upgrade_and_be_killed(killed, number)
        numbers.add(schema(killed)[0])
        if done:
            break
        assert upgrade_and_be_killed(killed, 1000)
        assert schema(killed) == schema(whole)
        assert rows(killed) == rows(whole)
        number += 1
    assert_kept(before, rows(whole))
    assert number >= sum(script.count(";") for _, script in LATER)
    assert numbers >= {number for number, _ in LATER}  # kills struck before, between and after the two


async def test_a_downgrade_is_refused_and_says_which_version_to_install(tmp_path: Path, release: str) -> None:
    path = tmp_path / "ravebot.db"
    lay_down(release, path)
    assert upgrade_and_be_killed(path, 1000)
    before = rows(path)
    told = rf"the database has version {LATER[-1][0]}, but .* only knows {len(migrations())}: install the newer ravebot"
    with pytest.raises(StoreError, match=told):
        async with Database(path, ManualClock()):
            pass
    assert rows(path) == before


def test_the_released_version_is_recorded_and_so_is_its_number_of_the_database() -> None:
    assert versions() == ["0.1.0"]
    text = (Path(__file__).parents[1] / "support/releases/0.1.0.sql").read_text()
    assert "PRAGMA user_version = 10;" in text
