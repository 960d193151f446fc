"""The database file: one writer, a few readers, migrations, and the lock that keeps a second bot out.

A write is one function run under a lock inside `BEGIN IMMEDIATE`; it may await nothing but the transaction it is
given. Sharing a connection between tasks without that loses acknowledged rows to somebody else's rollback.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import aiosqlite

from ravebot.clock import Clock, to_us
from ravebot.errors import StoreError
from ravebot.store.signals import Signals
from ravebot.store.turns import Turns

T = TypeVar("T")
Value = str | int | float | None


class Transaction:
    """One running transaction: what every function of the store works on. `now` is read once, at its start.

    Each call is one trip to the connection's thread; a statement that changes something is done after its one step,
    so its cursor is left to the garbage collector instead of being closed by a second trip.
    """

    def __init__(self, connection: aiosqlite.Connection, now: datetime) -> None:
        self._connection = connection
        self.now = now
        self.now_us = to_us(now)
        self._wakes: set[str] = set()

    async def execute(self, sql: str, parameters: Iterable[Value] = ()) -> int:
        """Run one statement; returns the id of the row it inserted, or 0."""
        cursor = await self._connection.execute(sql, tuple(parameters))
        return cursor.lastrowid or 0

    async def changed(self, sql: str, parameters: Iterable[Value] = ()) -> int:
        """Run one statement; returns how many rows it changed."""
        cursor = await self._connection.execute(sql, tuple(parameters))
        return cursor.rowcount

    async def insert(self, table: str, values: Mapping[str, Value]) -> int:
        """Insert a row and return its id; the names are ours, never from outside."""
        marks = ", ".join("?" for _ in values)
        return await self.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", values.values())  # noqa: S608 - constant names

    async def upsert(self, table: str, key: tuple[str, ...], values: Mapping[str, Value]) -> int:
        """Insert a row, or overwrite the one with the same key; the names are ours, never from outside."""
        columns = ", ".join(values)
        marks = ", ".join("?" for _ in values)
        news = ", ".join(f"{column} = excluded.{column}" for column in values if column not in key)
        sql = f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT ({', '.join(key)}) DO UPDATE SET {news}"  # noqa: S608 - constant names
        return await self.execute(sql, values.values())

    async def all(self, sql: str, parameters: Iterable[Value] = ()) -> list[sqlite3.Row]:
        return list(await self._connection.execute_fetchall(sql, tuple(parameters)))

    async def one(self, sql: str, parameters: Iterable[Value] = ()) -> sqlite3.Row | None:
        rows = await self.all(sql, parameters)
        return rows[0] if rows else None

    def wake(self, signal: str) -> None:
        """After the commit, wake whoever waits for that signal."""
        self._wakes.add(signal)

    @property
    def wakes(self) -> frozenset[str]:
        return frozenset(self._wakes)


READERS = 3
"""Rendering a card need not wait for a pass of the pool that reads everything."""


class Database:
    """The open database of one instance."""

    def __init__(self, path: Path, clock: Clock, signals: Signals | None = None) -> None:
        self.path = path
        self.signals = signals or Signals()
        self._clock = clock
        self._stack = AsyncExitStack()
        self._turns = Turns()
        self._readers: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()  # the free ones
        self._running: set[asyncio.Task[object]] = set()
        self._writer: aiosqlite.Connection
        self.instance_id = ""

    async def __aenter__(self) -> Self:
        self._hold_lock()
        try:
            self.instance_id = instance_id(self.path.parent)
            os.close(os.open(self.path, os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._writer = await self._stack.enter_async_context(_connect(self.path))
            await _prepare_writer(self._writer)
            for _ in range(READERS):
                reader = await self._stack.enter_async_context(_connect(self.path))
                reader.row_factory = sqlite3.Row
                await reader.execute("PRAGMA query_only = ON")
                self._readers.put_nowait(reader)
        except sqlite3.DatabaseError as error:
            await self._stack.aclose()
            raise StoreError(f"the database {self.path} can't be used: {error}; restore it from a backup") from error
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:
            await asyncio.wait(self._running)
        await self._stack.aclose()

    async def write(self, function: Callable[[Transaction], Awaitable[T]], *, urgent: bool = False) -> T:
        """Run `function` in one transaction and commit, or roll back what it did when it raises.

        `urgent` ones (short, and somebody waits for their end) go before all others that wait.

        The caller's cancellation does not cut it short: it commits or fails as a whole. Raises StoreError when the
        database can't be written now (the disk is full, for example).
        """
        task = asyncio.ensure_future(self._write(function, urgent))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _write(self, function: Callable[[Transaction], Awaitable[T]], urgent: bool) -> T:
        async with self._turns.take(urgent=urgent):
            try:
                result, transaction = await self._transact(function)
            except sqlite3.OperationalError as error:
                raise StoreError(f"the database {self.path} can't be written: {error}") from error
        for signal in transaction.wakes:
            self.signals.wake(signal)
        return result

    async def _transact(self, function: Callable[[Transaction], Awaitable[T]]) -> tuple[T, Transaction]:
        await self._writer.execute("BEGIN IMMEDIATE")
        transaction = Transaction(self._writer, self._clock.now())
        try:
            result = await function(transaction)
            await self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                await self._writer.execute("ROLLBACK")
            raise
        return result, transaction

    async def read(self, function: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `function` on one consistent snapshot; it can't write."""
        reader = await self._readers.get()
        try:
            await reader.execute("BEGIN")
            return await function(Transaction(reader, self._clock.now()))
        finally:
            try:
                # A caller that is cancelled while it waits for BEGIN leaves a transaction behind; or none yet.
                with suppress(sqlite3.OperationalError):
                    await reader.execute("ROLLBACK")
            finally:
                self._readers.put_nowait(reader)

    def _hold_lock(self) -> None:
        make_state_dir(self.path.parent)
        path = self.path.with_suffix(".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "an unknown process"
            os.close(descriptor)
            raise StoreError(
                f"another ravebot uses {self.path.parent}: {holder}; stop it first, or give this one another state_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        started = self._clock.now().strftime("%Y-%m-%d %H:%M:%S UTC")
        os.pwrite(descriptor, f"process {os.getpid()}, started {started}\n".encode(), 0)
        self._stack.callback(os.close, descriptor)


def _connect(path: Path) -> aiosqlite.Connection:
    return aiosqlite.connect(path, isolation_level=None)


async def _prepare_writer(connection: aiosqlite.Connection) -> None:
    connection.row_factory = sqlite3.Row
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 5000"):
        await connection.execute(f"PRAGMA {pragma}")
    await migrate(connection, migrations())


def migrations() -> list[tuple[int, str]]:
    """The numbered SQL files that ship with this version, in order."""
    folder = resources.files("ravebot.store.migrations")
    found = sorted((file.name, file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".sql"))
    return [(int(name[:4]), text) for name, text in found]


async def migrate(connection: aiosqlite.Connection, steps: list[tuple[int, str]]) -> None:
    """Bring the database to the last step, each step in one transaction, so that an interrupted one changes nothing.

    Raises StoreError for a database that a newer ravebot wrote.
    """
    rows = list(await connection.execute_fetchall("PRAGMA user_version"))
    version = int(rows[0][0])
    newest = steps[-1][0]
    if version > newest:
        raise StoreError(
            f"the database is of version {version}, this ravebot knows up to {newest}: install the newer ravebot again"
        )
    for number, text in steps:
        if number <= version:
            continue
        await connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements(text):
                await connection.execute(statement)
            await connection.execute(f"PRAGMA user_version = {number:d}")
            await connection.execute("COMMIT")
        except BaseException:
            await connection.execute("ROLLBACK")
            raise


def statements(script: str) -> list[str]:
    """The single statements of an SQL script; `executescript` would commit behind our back."""
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
    """Make the state folder, if it is missing: nobody else may list it, but QEMU's user may pass through to the disks
    and images that may lie in it. Every file of ours there is closed to others by its own mode."""
    if not state_dir.exists():
        state_dir.mkdir(parents=True)
        state_dir.chmod(0o711)


def instance_id(state_dir: Path) -> str:
    """The random id of this installation, made at the first call.

    It stands beside the database, not in it: an empty database must still know which machines are its own.
    """
    path = state_dir / "instance-id"
    try:
        known = path.read_text("ascii").strip()
    except FileNotFoundError:
        fresh = secrets.token_hex(5)
        part = path.with_suffix(".part")
        part.write_text(fresh + "\n", "ascii")
        part.chmod(0o600)
        part.replace(path)
        return fresh
    if not known:
        raise StoreError(f"{path} is empty: write the id there that this instance's machines carry, or remove it")
    return known


async def get_meta(tx: Transaction, key: str) -> str | None:
    """A single remembered value (instance id, Matrix sync token, …)."""
    row = await tx.one("SELECT value FROM meta WHERE key = ?", (key,))
    return str(row["value"]) if row else None


async def set_meta(tx: Transaction, key: str, value: str) -> None:
    await tx.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )


def dump_json(value: object) -> str:
    """Canonical JSON: sorted keys, no spaces, so that the same value is the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
