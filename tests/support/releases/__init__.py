"""The databases that releases left, each as an SQL script with rows in every table: `<version>.sql`.

`python -m tests.support.releases.record` writes the script of the present version.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from ravebot.store.database import statements

FOLDER = Path(__file__).parent


def versions() -> list[str]:
    """Every release that is recorded."""
    return sorted(path.stem for path in FOLDER.glob("*.sql"))


def lay_down(version: str, database: Path) -> None:
    """Make that release's database."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for statement in statements((FOLDER / f"{version}.sql").read_text()):
            connection.execute(statement)
        connection.execute("PRAGMA journal_mode = WAL")
