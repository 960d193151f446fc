"""The database file: one writer, a few readers, migrations, and the lock that keeps a second bot out.

A transaction is one plain function that a connection's own thread runs from `BEGIN` to `COMMIT`. It can't await, so no
other work gets in between, and it must not touch objects of the event loop other than its arguments.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from importlib import resources
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from ravebot.clock import Clock, age, to_us
from ravebot.errors import StoreError
from ravebot.store import lock, swap
from ravebot.store.durable import write_file
from ravebot.store.files import OpenFiles
from ravebot.store.owner import give
from ravebot.store.signals import Signals
from ravebot.store.turns import Turns

T = TypeVar("T")
Value = str | int | float | None

log = structlog.get_logger()


class Transaction:
    """A running transaction, which every function of the store takes. `now` is read once, at its start."""

    def __init__(self, connection: sqlite3.Connection, now: datetime) -> None:
        self._connection = connection
        self.now = now
        self.now_us = to_us(now)
        self._wakes: dict[str, None] = {}
        self._lines: list[tuple[str, dict[str, object]]] = []

    def seconds_since(self, moment: datetime) -> float:
        """The `age` of a moment, in seconds."""
        return age(moment, self.now).total_seconds()

    def execute(self, sql: str, parameters: Iterable[Value] = ()) -> int:
        """Run one statement; returns the id of the row it inserted, or 0."""
        return self._connection.execute(sql, tuple(parameters)).lastrowid or 0

    def changed(self, sql: str, parameters: Iterable[Value] = ()) -> int:
        """Run one statement; returns how many rows it changed."""
        return self._connection.execute(sql, tuple(parameters)).rowcount

    def insert(self, table: str, values: Mapping[str, Value]) -> int:
        """Insert a row and return its id; table and column names must be constants, never input."""
        marks = ", ".join("?" for _ in values)
        return self.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", values.values())  # noqa: S608 - constant names

    def upsert(self, table: str, key: tuple[str, ...], values: Mapping[str, Value]) -> int:
        """Insert a row, or overwrite the one with the same key; names as for `insert`."""
        columns = ", ".join(values)
        marks = ", ".join("?" for _ in values)
        news = ", ".join(f"{column} = excluded.{column}" for column in values if column not in key)
        sql = f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT ({', '.join(key)}) DO UPDATE SET {news}"  # noqa: S608 - constant names
        return self.execute(sql, values.values())

    def all(self, sql: str, parameters: Iterable[Value] = ()) -> list[sqlite3.Row]:
        return self._connection.execute(sql, tuple(parameters)).fetchall()

    def one(self, sql: str, parameters: Iterable[Value] = ()) -> sqlite3.Row | None:
        rows = self.all(sql, parameters)
        return rows[0] if rows else None

    def wake(self, signal: str) -> None:
        """Wake the loop that waits for that signal, after the commit; loops are woken in the order of these calls."""
        self._wakes.setdefault(signal)

    @property
    def wakes(self) -> tuple[str, ...]:
        return tuple(self._wakes)

    def log(self, line: str, **facts: object) -> None:
        """Write a line to the log, after the commit."""
        self._lines.append((line, facts))

    def write_log(self) -> None:
        for line, facts in self._lines:
            log.info(line, **facts)


class _Thread:
    """A connection and its own thread, which runs a whole function at a time on it.

    `concurrent.futures` would do the same, with locks that both threads take for each function.
    """

    connection: sqlite3.Connection

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._ended = False
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in the thread; it continues if the caller is cancelled."""
        return await self.call(partial(function, self.connection))

    async def call(self, function: Callable[[], T]) -> T:
        if self._ended:
            raise StoreError("the database is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((future, function))
        return await future

    def end(self) -> None:
        self._ended = True
        self._jobs.put(None)

    def _serve(self) -> None:
        while job := self._jobs.get():
            future, function = job
            try:
                settle = partial(future.set_result, function())
            except StopIteration as error:  # which no future takes
                settle = partial(future.set_exception, RuntimeError(f"a transaction raised {error!r}"))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future gets it
                settle = partial(future.set_exception, error)
            with suppress(RuntimeError):  # the loop has ended: nobody waits
                self._loop.call_soon_threadsafe(_settle, future, settle)


def _settle(future: asyncio.Future[Any], settle: Callable[[], None]) -> None:
    if not future.done():  # cancelled
        settle()


STALE_NOTES = "stale_notes"
"""Key in `meta`: how often this installation's database was lost, plus how many instances it replaced. Their status
notes may still be on merge requests."""

READERS = 3
"""Several, so that rendering a card does not wait for a pass of the pool, which reads everything."""


_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL,
    }
)  # fmt: skip
"""Result codes of errors that may be gone a moment later; any other error is a bug, and raised as it is."""


def _mend(error: sqlite3.Error) -> str:
    """What a person can do about an error of the database."""
    if _is_among(error, frozenset({sqlite3.SQLITE_FULL})):
        return "free space on its file system (df -h): ravebot tries again by itself"
    if _is_among(error, frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})):
        return "end the program that holds it (lsof names it)"
    if _is_among(error, _PASSING | {sqlite3.SQLITE_READONLY}):
        return "check its file system (dmesg), its owner and its mode"
    return "restore it from a backup"


class Database:
    """The open database of one instance; waits up to `patience_seconds` for a lock that another process holds."""

    def __init__(self, path: Path, clock: Clock, *, patience_seconds: float = 5.0) -> None:
        self.path = path
        self._patience_seconds = patience_seconds
        self.signals = Signals()
        self._clock = clock
        self._stack = AsyncExitStack()
        self._turns = Turns()
        self._readers: asyncio.LifoQueue[_Thread] = asyncio.LifoQueue()  # the free ones
        self._running: set[asyncio.Task[object]] = set()
        self._writer: _Thread
        self._files: OpenFiles
        self.instance_id = ""
        self.opened_at = clock.now()

    async def __aenter__(self) -> Self:
        self._hold_lock()
        try:
            swap.settle(self.path.parent)
            had_id = instance_id_path(self.path.parent).exists()
            self.instance_id = instance_id(self.path.parent)
            os.close(lock.open_plain(self.path, os.O_RDWR | os.O_CREAT))
            give(self.path)  # SQLite gives its log and index to the same owner
            self._writer = await self._connect("database-writer")
            await self._writer.run(partial(_prepare_writer, had_id=had_id))
            for number in range(READERS):
                reader = await self._connect(f"database-reader-{number}")
                await reader.run(_prepare_reader)
                self._readers.put_nowait(reader)
            self._files = OpenFiles.of(self.path, instance_id_path(self.path.parent), self.instance_id)
        except sqlite3.DatabaseError as error:
            await uninterrupted(self._stack.aclose())
            raise StoreError(f"the database {self.path} can't be used: {error}; {_mend(error)}") from error
        except BaseException:
            await uninterrupted(self._stack.aclose())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await uninterrupted(self._close())  # the file lock is not released before the last transaction has ended

    async def _close(self) -> None:
        while self._running:
            await asyncio.wait(self._running)
        await self._stack.aclose()

    async def _connect(self, name: str) -> _Thread:
        return await self._stack.enter_async_context(_connected(self.path, name, self._patience_seconds))

    async def write(self, function: Callable[[Transaction], T], *, urgent: bool = False, synced: bool = True) -> T:
        """Run `function` in one transaction and commit, or roll back what it did when it raises.

        `urgent` transactions (short ones that a client waits for) run before all others that wait. One that is not
        `synced` survives the end of this process, but a power cut may take it back: it does not wait for the disk.

        Cancelling the caller does not interrupt it: it commits or fails as a whole. Raises StoreError when the database
        can't be written now (the disk is full, or its file was deleted, for example).
        """

        def checked(transaction: Transaction) -> T:
            result = function(transaction)
            # Checked inside the transaction: what is acknowledged must survive a restart.
            if lost := self._files.lost():
                raise StoreError(f"the database can't be written: {lost}")
            return result

        task = asyncio.ensure_future(self._write(checked, urgent, synced))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio complains of one that nobody looked at, because the caller was cancelled

    async def _write(self, function: Callable[[Transaction], T], urgent: bool, synced: bool) -> T:
        transact = self._transact if synced else self._transact_unsynced
        async with self._turns.take(urgent=urgent):
            try:
                result, wakes = await self._writer.run(partial(transact, "BEGIN IMMEDIATE", function))
            except sqlite3.OperationalError as error:
                if not _is_among(error, _PASSING | {sqlite3.SQLITE_READONLY}):
                    raise
                raise StoreError(f"the database {self.path} can't be written: {error}; {_mend(error)}") from error
        for signal in wakes:
            self.signals.wake(signal)
        return result

    async def read(self, function: Callable[[Transaction], T]) -> T:
        """Run `function` on one consistent snapshot; it can't write. Raises StoreError when it can't be read now."""
        reader = await self._readers.get()
        try:
            result, _ = await reader.run(partial(self._transact, "BEGIN", function))
        except sqlite3.OperationalError as error:
            if not _is_among(error, _PASSING):
                raise
            raise StoreError(f"the database {self.path} can't be read: {error}; {_mend(error)}") from error
        finally:  # after a cancellation the thread is still busy: the next function waits there
            self._readers.put_nowait(reader)
        return result

    async def problem(self) -> str:
        """What is wrong with the state folder's files and what to do; empty when nothing is."""
        reader = await self._readers.get()
        try:
            # Runs on a reader's thread: file look-ups may block.
            return await reader.run(lambda _: self._files.problem())
        finally:
            self._readers.put_nowait(reader)

    def _transact(
        self, begin: str, function: Callable[[Transaction], T], connection: sqlite3.Connection
    ) -> tuple[T, tuple[str, ...]]:
        """Run `function` from begin to commit, in the connection's thread; also returns the signals to wake."""
        connection.execute(begin)
        try:
            transaction = Transaction(connection, self._clock.now())
            result = function(transaction)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        transaction.write_log()
        return result, transaction.wakes

    def _transact_unsynced(
        self, begin: str, function: Callable[[Transaction], T], connection: sqlite3.Connection
    ) -> tuple[T, tuple[str, ...]]:
        """The same without waiting for the disk; https://www.sqlite.org/pragma.html#pragma_synchronous."""
        connection.execute("PRAGMA synchronous = NORMAL")
        try:
            return self._transact(begin, function, connection)
        finally:
            connection.execute("PRAGMA synchronous = FULL")

    def _hold_lock(self) -> None:
        make_state_dir(self.path.parent)
        self._stack.callback(os.close, lock.hold(self.path, self._clock.now()))


@asynccontextmanager
async def _connected(path: Path, name: str, patience_seconds: float) -> AsyncIterator[_Thread]:
    thread = _Thread(name)
    try:
        thread.connection = await thread.call(
            partial(sqlite3.connect, path, isolation_level=None, timeout=patience_seconds)
        )
        try:
            yield thread
        finally:
            await thread.run(sqlite3.Connection.close)
    finally:
        thread.end()


async def uninterrupted(call: Coroutine[object, object, None]) -> None:
    """Await a call to its end, also when the caller is cancelled; the cancellation follows then."""
    task = asyncio.ensure_future(call)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    task.result()


def _is_among(error: sqlite3.Error, codes: frozenset[int]) -> bool:
    """Whether the error has one of these primary result codes (https://www.sqlite.org/rescode.html)."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # the driver's own errors have none
    return code & 0xFF in codes


def _prepare_writer(connection: sqlite3.Connection, had_id: bool) -> None:
    connection.row_factory = sqlite3.Row
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")
    migrate(connection, migrations(replaces_lost=had_id))


def _prepare_reader(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA user_version").fetchone()  # opens the file now, so never a file that replaces it later


def migrations(*, replaces_lost: bool = False) -> list[tuple[int, str]]:
    """The numbered SQL files that ship with this version, in order.

    `replaces_lost`: the id file exists but the database is new. The first migration's own transaction records that, so
    that a crash can't lose it.
    """
    folder = resources.files("ravebot.store.migrations")
    found = sorted((file.name, file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".sql"))
    steps = [(int(name[:4]), text) for name, text in found]
    if replaces_lost:
        number, text = steps[0]
        steps[0] = (number, f"{text}\nINSERT INTO meta (key, value) VALUES ('{STALE_NOTES}', '1');")
    return steps


def migrate(connection: sqlite3.Connection, steps: list[tuple[int, str]]) -> None:
    """Run the steps that the database lacks, each in one transaction, so that an interrupted step changes nothing.

    Raises StoreError for a database that a newer ravebot wrote.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    newest = steps[-1][0]
    if version > newest:
        raise StoreError(
            f"the database has version {version}, but this ravebot only knows {newest}: install the newer ravebot again"
        )
    for number, text in steps:
        if number <= version:
            continue
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements(text):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number:d}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite itself ends one that a full disk breaks off
                connection.execute("ROLLBACK")
            raise


def statements(script: str) -> list[str]:
    """The single statements of an SQL script; `executescript` would commit the open transaction."""
    found: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending.strip())
            pending = ""
    if pending.strip():
        raise ValueError("the script ends inside a statement")
    return found


def make_state_dir(state_dir: Path) -> None:
    """Make the state folder if it is missing. Other users can't list it, but QEMU's user can open disks and images in
    it; the mode of each file that ravebot writes there keeps other users out."""
    if not state_dir.exists():
        state_dir.mkdir(parents=True)
        state_dir.chmod(0o711)


def instance_id_path(state_dir: Path) -> Path:
    """Where an installation keeps its random id."""
    return state_dir / swap.INSTANCE_ID


def instance_id(state_dir: Path) -> str:
    """The random id of this installation, made at the first call.

    It is kept beside the database, not in it: with a new database, the instance must still recognise its machines.
    """
    path = instance_id_path(state_dir)
    try:
        known = path.read_text("ascii").strip()
    except FileNotFoundError:
        fresh = secrets.token_hex(5)
        write_file(path, f"{fresh}\n".encode())
        return fresh
    if not known:
        raise StoreError(f"{path} is empty: write the id of this instance's machines into it, or remove the file")
    return known


def get_meta(tx: Transaction, key: str) -> str | None:
    """A single stored value (the Matrix sync token, for example)."""
    row = tx.one("SELECT value FROM meta WHERE key = ?", (key,))
    return str(row["value"]) if row else None


def set_meta(tx: Transaction, key: str, value: str) -> None:
    tx.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )


def dump_json(value: object) -> str:
    """Canonical JSON: sorted keys, no spaces, so that the same value is the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
