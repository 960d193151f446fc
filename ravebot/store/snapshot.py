"""A consistent copy of a database that may be in use, and the check of such a copy."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ravebot.errors import StoreError
from ravebot.store import events
from ravebot.store.database import Transaction

_STEPS_BETWEEN_LOOKS = 20_000


@dataclass(frozen=True)
class DatabaseCopy:
    """What a copy is: the version of its tables, how many events it has, and the hash of the newest."""

    schema: int
    events: int
    head: str


def take(database: Path, copy: Path, stopped: Callable[[], bool]) -> None:
    """Copy what is committed. Writers are not kept waiting: in WAL mode the copy reads beside them.

    The copy is compact, without what was deleted. Raises StoreError.
    """
    try:
        with closing(_opened(f"{database.as_uri()}?mode=ro", stopped)) as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))
    except sqlite3.Error as error:
        raise StoreError(f"the database {database} can't be copied: {error}{_advice(error)}") from error


def examine(copy: Path, stopped: Callable[[], bool]) -> DatabaseCopy:
    """Check a copy that nobody writes to: its pages, and every hash of the event log. Raises StoreError."""
    try:
        with closing(_opened(f"{copy.as_uri()}?mode=ro&immutable=1", stopped)) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            damage = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
            if damage != "ok":
                raise StoreError(f"the copy of the database is damaged: {damage}")
            schema = int(connection.execute("PRAGMA user_version").fetchone()[0])
            found = events.verify(Transaction(connection, datetime.now(UTC)))
    except (sqlite3.Error, ValueError) as error:
        raise StoreError(f"the copy of the database can't be read: {error}") from error
    if found.broken_at is not None:
        raise StoreError(
            f"the event log was changed or damaged: event {found.broken_at} is missing or altered; see `ravebot audit"
            " --verify`, and take an older backup"
        )
    return DatabaseCopy(schema, found.rows, found.head)


def _opened(uri: str, stopped: Callable[[], bool]) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
    connection.row_factory = sqlite3.Row
    connection.set_progress_handler(lambda: int(stopped()), _STEPS_BETWEEN_LOOKS)
    return connection


def _advice(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return "; free some space on the disk of the backup: while it is made, it needs twice the database's size"
    if code == sqlite3.SQLITE_CANTOPEN:
        return "; run the command as the user that runs ravebot"
    return ""
