"""The database file: one writer, consistent reads, migrations, and the lock that keeps a second bot out."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from ravebot.clock import from_us
from ravebot.errors import StoreError
from ravebot.store import outbox
from ravebot.store.database import (
    READERS,
    Database,
    Transaction,
    get_meta,
    migrate,
    migrations,
    set_meta,
    statements,
)
from ravebot.store.targets import GITLAB
from tests.support.clock import ManualClock

pytestmark = pytest.mark.integration


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database(tmp_path / "state" / "ravebot.db", ManualClock()) as database:
        yield database


async def keys(database: Database) -> set[str]:
    return {row["key"] for row in await database.read(lambda tx: tx.all("SELECT key FROM meta"))}


async def test_one_tasks_rollback_does_not_take_anothers_row_with_it(database: Database) -> None:
    def fails(tx: Transaction) -> None:
        set_meta(tx, "lost", "x")
        time.sleep(0.02)
        raise ValueError("on purpose")

    def works(tx: Transaction, key: str) -> None:
        set_meta(tx, key, "x")

    failing = asyncio.create_task(database.write(fails))
    await asyncio.sleep(0.005)
    await asyncio.gather(*(database.write(partial(works, key=key)) for key in ("a", "b", "c")))
    with pytest.raises(ValueError, match="on purpose"):
        await failing
    assert await keys(database) == {"a", "b", "c"}


async def test_asyncio_complains_of_no_write_that_fails_after_its_caller_was_cancelled(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Transaction) -> None:
        time.sleep(0.02)
        raise StoreError("the disk is full")

    task = asyncio.create_task(database.write(fails))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.write(lambda tx: None)
    del task
    gc.collect()
    assert caplog.records == []


async def test_a_write_whose_caller_is_cancelled_is_whole(database: Database) -> None:
    def slow(tx: Transaction) -> None:
        set_meta(tx, "first", "x")
        time.sleep(0.02)
        set_meta(tx, "second", "x")

    task = asyncio.create_task(database.write(slow))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.write(lambda tx: set_meta(tx, "after", "x"))
    assert await keys(database) == {"first", "second", "after"}


async def test_a_write_that_is_under_way_when_the_database_closes_is_finished(tmp_path: Path) -> None:
    def slow(tx: Transaction) -> None:
        time.sleep(0.02)
        set_meta(tx, "late", "x")

    path = tmp_path / "ravebot.db"
    async with Database(path, ManualClock()) as database:
        task = asyncio.create_task(database.write(slow))
        await asyncio.sleep(0)
    await task
    async with Database(path, ManualClock()) as database:
        assert await keys(database) == {"late"}


async def test_a_database_that_is_closed_says_so_instead_of_waiting(tmp_path: Path) -> None:
    async with Database(tmp_path / "ravebot.db", ManualClock()) as database:
        pass
    for late in (database.read(lambda tx: get_meta(tx, "late")), database.write(lambda tx: set_meta(tx, "late", "x"))):
        with pytest.raises(StoreError, match="is closed"):
            await asyncio.wait_for(late, 1)


async def test_closing_that_is_cancelled_keeps_the_lock_until_the_last_write_has_ended(tmp_path: Path) -> None:
    writes, may_end = threading.Event(), threading.Event()
    path = tmp_path / "ravebot.db"

    def slow(tx: Transaction) -> None:
        writes.set()
        may_end.wait(10)
        set_meta(tx, "late", "x")

    async def use() -> None:
        async with Database(path, ManualClock()) as database:
            await database.write(slow)

    using = asyncio.create_task(use())
    assert await asyncio.to_thread(writes.wait, 10)
    for _ in range(3):
        using.cancel()
        await asyncio.sleep(0.01)
        with pytest.raises(StoreError, match="another ravebot uses"):
            await Database(path, ManualClock()).__aenter__()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await using
    async with Database(path, ManualClock()) as database:
        assert await keys(database) == {"late"}


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_opening_that_is_cancelled_keeps_the_lock_until_the_database_is_at_rest(
    tmp_path: Path, steps: int
) -> None:
    path = tmp_path / "ravebot.db"

    async def use() -> None:
        async with Database(path, ManualClock()):
            await asyncio.sleep(60)

    using = asyncio.create_task(use())
    for _ in range(steps):
        await asyncio.sleep(0.0005)
    for _ in range(3):
        using.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await using
    async with Database(path, ManualClock()) as database:
        await database.write(lambda tx: set_meta(tx, "key", "x"))


async def test_a_transaction_that_runs_out_of_something_is_a_bug_that_is_raised(database: Database) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(database.write(lambda _: next(iter(()))), 1)
    assert await keys(database) == set()


async def test_a_cancelled_write_at_any_moment_leaves_all_or_nothing_and_a_database_that_works(
    database: Database,
) -> None:
    def pair(tx: Transaction, number: int) -> None:
        set_meta(tx, f"one {number}", "x")
        set_meta(tx, f"two {number}", "x")

    for number in range(25):
        task = asyncio.create_task(database.write(partial(pair, number=number)))
        for _ in range(number):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    await database.write(lambda tx: set_meta(tx, "after", "x"))
    found = await keys(database)
    assert "after" in found
    for number in range(25):
        assert (f"one {number}" in found) == (f"two {number}" in found)


@pytest.mark.parametrize("pause", [0, 0.0002])
async def test_a_cancelled_read_at_any_moment_leaves_a_database_that_works(database: Database, pause: float) -> None:
    await database.write(lambda tx: set_meta(tx, "key", "x"))
    for number in range(25):
        task = asyncio.create_task(database.read(lambda tx: get_meta(tx, "key")))
        for _ in range(number):
            await asyncio.sleep(pause)
        task.cancel()
        await asyncio.wait({task})
        assert await database.read(lambda tx: get_meta(tx, "key")) == "x"


async def test_a_read_can_not_write(database: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await database.read(lambda tx: set_meta(tx, "key", "x"))
    await database.write(lambda tx: set_meta(tx, "other", "x"))
    assert await keys(database) == {"other"}


async def test_text_that_is_none_is_the_drivers_own_error(database: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="decode"):
        await database.read(lambda tx: tx.one("SELECT CAST(x'ff' AS TEXT)"))


async def test_a_read_sees_one_moment_whatever_is_written_meanwhile(database: Database) -> None:
    loop = asyncio.get_running_loop()

    def twice(tx: Transaction) -> tuple[str | None, str | None]:
        first = get_meta(tx, "key")
        written = database.write(lambda other: set_meta(other, "key", "new"))
        asyncio.run_coroutine_threadsafe(written, loop).result(timeout=10)
        return first, get_meta(tx, "key")

    await database.write(lambda tx: set_meta(tx, "key", "old"))
    assert await database.read(twice) == ("old", "old")
    assert await database.read(lambda tx: get_meta(tx, "key")) == "new"


async def test_a_write_sees_what_was_written_just_before(database: Database) -> None:
    def count_up(tx: Transaction) -> None:
        seen = get_meta(tx, "n")
        set_meta(tx, "n", str(int(seen or 0) + 1))

    await asyncio.gather(*(database.write(count_up) for _ in range(50)))
    assert await database.read(lambda tx: get_meta(tx, "n")) == "50"


async def test_waiters_are_woken_after_the_commit_and_not_by_a_failure(database: Database) -> None:
    def wakes(tx: Transaction) -> None:
        tx.wake("pool")

    def fails(tx: Transaction) -> None:
        tx.wake("pool")
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await database.write(fails)
    assert not await database.signals.wait("pool", 0.01)
    await database.write(wakes)
    assert await database.signals.wait("pool", 1)
    assert not await database.signals.wait("pool", 0.01)


async def test_each_connection_has_a_thread_that_is_named_and_ends_with_the_database(tmp_path: Path) -> None:
    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("database-")}

    path = tmp_path / "ravebot.db"
    async with Database(path, ManualClock()) as database:
        assert await database.write(lambda _: threading.current_thread().name) == "database-writer"
        assert await database.read(lambda _: threading.current_thread().name) in threads()
        assert len(threads()) == 1 + READERS
    path.write_bytes(b"this is no database at all, just text of some length")
    with pytest.raises(StoreError, match="can't be used"):
        async with Database(path, ManualClock()):
            pass
    async with asyncio.timeout(60):
        while threads():
            await asyncio.sleep(0.01)


async def test_only_we_can_read_the_files(database: Database) -> None:
    await database.write(lambda tx: set_meta(tx, "key", "x"))
    folder = database.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o711
    for path in folder.iterdir():
        if path.name.startswith("ravebot."):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


async def test_what_is_committed_is_on_the_disk(database: Database) -> None:
    def pragma(tx: Transaction) -> tuple[object, object]:
        journal, synchronous = tx.one("PRAGMA journal_mode"), tx.one("PRAGMA synchronous")
        assert journal
        assert synchronous
        return journal[0], synchronous[0]

    def fails(tx: Transaction) -> None:
        raise RuntimeError(pragma(tx))

    assert await database.write(pragma) == ("wal", 2)
    assert await database.write(pragma, synced=False) == ("wal", 1)  # which may be lost in a power cut
    assert await database.write(pragma) == ("wal", 2)
    with pytest.raises(RuntimeError):
        await database.write(fails, synced=False)
    assert await database.write(pragma) == ("wal", 2)


async def test_a_second_bot_on_the_same_folder_is_refused_and_told_who_holds_it(database: Database) -> None:
    with pytest.raises(StoreError, match=rf"process {os.getpid()}, started 2026-01-01 12:00:00 UTC; stop it first"):
        async with Database(database.path, ManualClock()):
            pass
    await database.write(lambda tx: set_meta(tx, "still", "here"))


async def test_the_folder_is_free_again_after_a_clean_end_and_after_a_failed_start(tmp_path: Path) -> None:
    path = tmp_path / "ravebot.db"
    path.write_bytes(b"this is no database at all, just text of some length")
    for _ in range(2):
        with pytest.raises(StoreError, match="can't be used"):
            async with Database(path, ManualClock()):
                pass
    path.unlink()
    for _ in range(2):
        async with Database(path, ManualClock()):
            pass


async def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys\nfrom pathlib import Path\n"
        "from ravebot.clock import SystemClock\nfrom ravebot.store.database import Database\n"
        "async def main():\n"
        "    async with Database(Path(sys.argv[1]), SystemClock()):\n"
        "        print('held', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "ravebot.db"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
        with pytest.raises(StoreError, match=f"process {holder.pid}"):
            async with Database(path, ManualClock()):
                pass
    finally:
        holder.kill()
        holder.wait()
    async with Database(path, ManualClock()) as database:
        await database.write(lambda tx: set_meta(tx, "key", "x"))


async def test_the_instance_keeps_its_id_also_when_the_database_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "ravebot.db"
    async with Database(path, ManualClock()) as database:
        first = database.instance_id
    assert len(first) == 10
    path.unlink()
    async with Database(path, ManualClock()) as database:
        assert database.instance_id == first


async def test_an_empty_id_file_is_refused_rather_than_taken_for_an_id(tmp_path: Path) -> None:
    (tmp_path / "instance-id").write_text("\n")
    for _ in range(2):
        with pytest.raises(StoreError, match="is empty"):
            async with Database(tmp_path / "ravebot.db", ManualClock()):
                pass


async def test_a_fresh_database_has_the_newest_version(database: Database) -> None:
    row = await database.read(lambda tx: tx.one("PRAGMA user_version"))
    assert row
    assert row[0] == migrations()[-1][0]


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ravebot.db"
    async with Database(path, ManualClock()) as database:
        await database.write(lambda tx: set_meta(tx, "key", "x"))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(StoreError, match=r"version 999, but .* install the newer ravebot again"):
        async with Database(path, ManualClock()):
            pass
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT value FROM meta").fetchall() == [("x",)]


async def test_messages_that_the_first_version_left_are_kept_and_were_never_seen_refused(tmp_path: Path) -> None:
    path = tmp_path / "ravebot.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, migrations()[:1])
        for number in (1, 2):
            row = (number, "gitlab", "7!1", "note", "{}", 1_000_000 * number, 1_000_000, 3)
            connection.execute(
                "INSERT INTO outbox (id, target, lane, kind, body, created_at, attempted_at, attempts)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
    async with Database(path, ManualClock()) as database:
        [lane] = await database.read(lambda tx: outbox.waiting(tx, GITLAB))
        head = await database.read(lambda tx: outbox.head(tx, GITLAB, "7!1"))
    assert (lane.name, lane.count, lane.since, lane.refused) == ("7!1", 2, from_us(1_000_000), "")
    assert head
    assert (head.id, head.attempted, head.attempts) == (1, True, 3)


def test_no_migration_is_left_out_by_a_gap_in_their_numbers() -> None:
    assert [number for number, _ in migrations()] == list(range(1, len(migrations()) + 1))


def test_an_interrupted_migration_leaves_the_old_database_intact(tmp_path: Path) -> None:
    first = (1, "CREATE TABLE old (a INTEGER) STRICT;\nINSERT INTO old VALUES (7);")
    broken = (2, "CREATE TABLE new (b INTEGER) STRICT;\nDELETE FROM old;\nINSERT INTO nowhere VALUES (1);")
    mended = (2, "CREATE TABLE new (b INTEGER) STRICT;")
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as connection:
        migrate(connection, [first])
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            migrate(connection, [first, broken])
        assert connection.execute("PRAGMA user_version").fetchall() == [(1,)]
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("old",)]
        assert connection.execute("SELECT a FROM old").fetchall() == [(7,)]
        migrate(connection, [first, mended])
        migrate(connection, [first, mended])
        assert connection.execute("PRAGMA user_version").fetchall() == [(2,)]
        assert connection.execute("SELECT a FROM old").fetchall() == [(7,)]


def test_a_script_is_cut_into_its_statements() -> None:
    table = "-- a; comment\nCREATE TABLE t (a TEXT DEFAULT ';');\n"
    script = table + "CREATE TRIGGER x BEFORE DELETE ON t\n BEGIN SELECT 1; END;\n"
    assert len(statements(script)) == 2
    with pytest.raises(ValueError, match="inside a statement"):
        statements("CREATE TABLE t (a TEXT)")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
async def test_what_root_makes_belongs_to_the_owner_of_the_state_folder(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 64_001, 64_002)
    async with Database(state / "ravebot.db", ManualClock()) as database:
        await database.write(lambda tx: set_meta(tx, "key", "x"))
        made = list(state.iterdir())
        assert {path.name for path in made} >= {"ravebot.db", "ravebot.db-wal", "ravebot.lock", "instance-id"}
        assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(64_001, 64_002)}


@pytest.mark.parametrize("name", ["ravebot.lock", "ravebot.db", "instance-id"])
async def test_a_link_in_the_state_folder_makes_root_change_nothing_outside(tmp_path: Path, name: str) -> None:
    state, outside, missing = tmp_path / "state", tmp_path / "outside", tmp_path / "missing"
    state.mkdir()
    outside.write_bytes(b"not ravebot's")
    if os.geteuid() == 0:
        os.chown(state, 64_001, 64_002)
    before = outside.stat()
    for target in (outside, missing):
        (state / name).unlink(missing_ok=True)
        (state / name).symlink_to(target)
        with suppress(StoreError):
            async with Database(state / "ravebot.db", ManualClock()):
                pass
    after = outside.stat()
    assert (outside.read_bytes(), missing.exists()) == (b"not ravebot's", False)
    assert (after.st_uid, after.st_mode, after.st_mtime_ns) == (before.st_uid, before.st_mode, before.st_mtime_ns)
