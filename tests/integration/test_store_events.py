"""The event log: append-only, and whoever changes it is found."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from ravebot.operations.audit import report as audit
from ravebot.operations.reports import AuditQuery
from ravebot.sandboxes.model import RAVEBOT, Actor, EventKind, MachineId, MergeRequestRef, SandboxId
from ravebot.sandboxes.telling import words
from ravebot.store import events
from ravebot.store.database import Database, Transaction
from ravebot.store.events import Which
from tests.support.clock import ManualClock

pytestmark = pytest.mark.integration

REF = MergeRequestRef(7, 1)
T = TypeVar("T")
KINDS = list(EventKind)[:5]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database(tmp_path / "ravebot.db", ManualClock()) as database:

        def fill(tx: Transaction) -> None:
            for number, kind in enumerate(KINDS):
                events.append(
                    tx, kind, Actor("gitlab", "älice"), mr=REF, sandbox_id=SandboxId(3),
                    machine_id=MachineId(4), data={"text": "naïve\n\x00", "number": number},
                )  # fmt: skip

        await database.write(fill)
        yield database


def tamper(database: Database, *sql: str) -> None:
    """As somebody with the file and a shell would, past the triggers."""
    with sqlite3.connect(database.path) as connection:
        connection.execute("DROP TRIGGER events_are_never_changed")
        connection.execute("DROP TRIGGER events_are_never_removed")
        for statement in sql:
            assert connection.execute(statement).rowcount != 0
    connection.close()


async def broken_at(database: Database) -> int | None:
    return (await database.read(events.verify)).broken_at


async def test_an_untouched_log_is_whole_and_its_head_is_the_newest_rows_hash(database: Database) -> None:
    found = await database.read(events.verify)
    assert (found.rows, found.broken_at) == (5, None)
    assert found.head == await database.read(events.head)
    assert len(found.head) == 64


async def test_an_empty_log_is_whole(tmp_path: Path) -> None:
    async with Database(tmp_path / "empty" / "ravebot.db", ManualClock()) as database:
        found = await database.read(events.verify)
        assert (found.rows, found.broken_at, found.head) == (0, None, "0" * 64)
        assert await database.read(events.head) == "0" * 64


@pytest.mark.parametrize("sql", ["UPDATE events SET kind = 'x'", "DELETE FROM events"])
async def test_the_database_itself_refuses_to_change_or_remove_a_row(database: Database, sql: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        await database.write(lambda tx: tx.execute(sql))
    assert await broken_at(database) is None


SPOILED = ("data = 'not json'", "at = 9000000000000000000", "data = CAST(x'ff' AS TEXT)", "kind = CAST(x'c0' AS TEXT)",
           "hash = CAST(x'ff' AS TEXT)")  # fmt: skip


@pytest.mark.parametrize(
    "change",
    ["kind = 'x'", "at = at + 1", "actor = 'mallory'", "actor_kind = 'shell'", "data = '{}'", "iid = 2",
     "project_id = NULL", "sandbox_id = 9", "machine_id = NULL", f"hash = '{'a' * 64}'", *SPOILED],
)  # fmt: skip
async def test_a_changed_row_is_found_whatever_was_changed(database: Database, change: str) -> None:
    tamper(database, f"UPDATE events SET {change} WHERE id = 3")
    assert await broken_at(database) == 3


async def test_a_row_that_was_changed_together_with_its_hash_is_found_by_the_row_after_it(database: Database) -> None:
    """Who can change a row can also compute its hash: SHA-256 of the hash before it and the row as canonical JSON."""
    before, row = await database.read(lambda tx: tx.all("SELECT * FROM events WHERE id IN (2, 3) ORDER BY id"))
    forged = {**dict(row), "actor": "mallory"}
    forged.pop("hash")
    text = json.dumps(forged, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256((before["hash"] + text).encode()).hexdigest()
    tamper(database, f"UPDATE events SET actor = 'mallory', hash = '{digest}' WHERE id = 3")
    assert await broken_at(database) == 4


@pytest.mark.parametrize("change", SPOILED)
async def test_a_row_that_was_spoiled_is_shown_with_the_others(database: Database, change: str) -> None:
    tamper(database, f"UPDATE events SET {change} WHERE id = 5")
    assert [line.id for line in await database.read(lambda tx: events.lines(tx, 10, Which()))] == [1, 2, 3, 4, 5]
    assert len(await database.read(events.head)) > 0


@pytest.mark.parametrize("number", [1, 2, 4])
async def test_a_removed_row_is_found(database: Database, number: int) -> None:
    tamper(database, f"DELETE FROM events WHERE id = {number}")
    assert await broken_at(database) == number


async def test_a_removed_row_is_found_also_when_the_rest_is_moved_up(database: Database) -> None:
    tamper(database, "DELETE FROM events WHERE id = 2", "UPDATE events SET id = 2 WHERE id = 3",
           "UPDATE events SET id = 3 WHERE id = 4", "UPDATE events SET id = 4 WHERE id = 5")  # fmt: skip
    assert await broken_at(database) == 2


async def test_a_row_put_in_between_is_found(database: Database) -> None:
    tamper(
        database, "UPDATE events SET id = 6 WHERE id = 5", "UPDATE events SET id = 5 WHERE id = 4",
        "INSERT INTO events SELECT 4, at, kind, actor_kind, actor, project_id, iid, sandbox_id, machine_id, data, hash"
        " FROM events WHERE id = 3",
    )  # fmt: skip
    assert await broken_at(database) == 4


@pytest.mark.parametrize("number", [0, -7])
async def test_a_row_put_before_the_first_is_found(database: Database, number: int) -> None:
    tamper(database, f"UPDATE events SET id = {number} WHERE id = 5")
    assert await broken_at(database) == number


async def test_a_row_put_after_the_last_is_found(database: Database) -> None:
    tamper(
        database,
        "INSERT INTO events SELECT 6, at, kind, actor_kind, actor, project_id, iid, sandbox_id, machine_id, data, hash"
        " FROM events WHERE id = 3",
    )
    assert await broken_at(database) == 6


async def test_a_cut_tail_shows_in_the_head_that_somebody_kept(database: Database) -> None:
    kept = await database.read(events.head)
    tamper(database, "DELETE FROM events WHERE id > 3")
    found = await database.read(events.verify)
    assert (found.rows, found.broken_at) == (3, None)
    assert found.head != kept


async def test_a_thousand_rows_and_more_are_checked_to_the_last(database: Database) -> None:
    def many(tx: Transaction) -> None:
        for _ in range(1200):
            events.append(tx, EventKind.STAGE_DONE, RAVEBOT)

    await database.write(many)
    assert (await database.read(events.verify)).rows == 1205
    tamper(database, "UPDATE events SET actor = 'x' WHERE id = 1205")
    assert await broken_at(database) == 1205


class WatchedDatabase(Database):
    """Looks after each reading whether SQLite may begin its write-ahead log anew."""

    fresh = 0

    async def read(self, function: Callable[[Transaction], T]) -> T:
        result = await super().read(function)
        with closing(sqlite3.connect(self.path, timeout=0)) as connection:
            busy, pages, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self.fresh += (busy, pages) == (0, 0)
        return result


async def test_a_check_of_the_whole_log_does_not_keep_the_write_ahead_log_from_being_begun_anew(tmp_path: Path) -> None:
    def many(tx: Transaction) -> None:
        for _ in range(1500):
            events.append(tx, EventKind.STAGE_DONE, RAVEBOT)

    async with WatchedDatabase(tmp_path / "ravebot.db", ManualClock()) as database:
        await database.write(many)
        await database.write(many)
        report = await audit.read(database, AuditQuery(verify=True, limit=1))
        assert (report.checked_rows, report.broken_at) == (3000, None)
        assert database.fresh >= 4, "once in a thousand rows"
        tamper(database, "UPDATE events SET actor = 'x' WHERE id = 2500")
        report = await audit.read(database, AuditQuery(verify=True, limit=1))
        assert (report.checked_rows, report.broken_at) == (2499, 2500)


async def test_an_event_whose_transaction_fails_is_not_in_the_log(database: Database) -> None:
    def fails(tx: Transaction) -> None:
        events.append(tx, EventKind.STAGE_DONE, RAVEBOT)
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await database.write(fails)
    await database.write(lambda tx: events.append(tx, EventKind.STAGE_FAILED, RAVEBOT))
    found = await database.read(events.verify)
    assert (found.rows, found.broken_at) == (6, None)


async def test_events_come_back_as_they_went_in_oldest_first(database: Database) -> None:
    found = await database.read(lambda tx: events.of_sandbox(tx, SandboxId(3), 2))
    assert [event.kind for event in found] == KINDS[3:]
    last = found[-1]
    assert (last.mr, last.machine_id, last.actor) == (REF, MachineId(4), Actor("gitlab", "älice"))
    assert last.data == {"text": "naïve\n\x00", "number": 4}
    assert last.at == ManualClock().now()
    assert len(await database.read(lambda tx: events.lines(tx, 10, Which((REF.project_id,), REF.iid)))) == 5
    assert await database.read(lambda tx: events.of_sandbox(tx, SandboxId(99))) == ()
    later = ManualClock().now() + timedelta(seconds=1)
    assert await database.read(lambda tx: events.newest(tx, 10, later)) == ()
    assert len(await database.read(lambda tx: events.newest(tx, 3))) == 3


async def test_a_row_whose_kind_is_known_no_more_still_loads_is_shown_and_holds_together(database: Database) -> None:
    await database.write(lambda tx: events.append(tx, "machine.melted", RAVEBOT, mr=REF, sandbox_id=SandboxId(3)))  # type: ignore[arg-type]
    for found in (
        await database.read(lambda tx: events.of_sandbox(tx, SandboxId(3))),
        await database.read(lambda tx: events.newest(tx, 10)),
    ):
        assert [type(event.kind) for event in found] == [EventKind] * 5 + [str]
        assert found[-1].kind == "machine.melted"
        assert words(found[-1]) == ""
    report = await audit.read(database, AuditQuery(verify=True))
    assert [line.kind for line in report.lines] == [*KINDS, "machine.melted"]
    assert (report.checked_rows, report.broken_at) == (6, None)
