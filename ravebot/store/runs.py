"""Commands that somebody runs in sandboxes, and what they printed, in pieces."""

from __future__ import annotations

from datetime import timedelta

from ravebot.clock import to_us
from ravebot.sandboxes.model import GuestRun, RunId, RunState, SandboxId
from ravebot.store.database import Transaction
from ravebot.store.rows import dump, load
from ravebot.store.signals import RUNS

_OPEN = "state IN ('waiting', 'running')"
"""These words are those of the index `runs_open`, so that SQLite uses it."""


def insert(tx: Transaction, run: GuestRun) -> GuestRun:
    """Store a new one; it gets its `id` here."""
    values = dump(run)
    del values["id"]
    found = get(tx, RunId(tx.insert("runs", values)))
    assert found
    tx.wake(RUNS)
    return found


def save(tx: Transaction, run: GuestRun) -> None:
    """Write the whole row; `run` must have been read in this same transaction."""
    tx.upsert("runs", ("id",), dump(run))
    tx.wake(RUNS)


def get(tx: Transaction, run_id: RunId) -> GuestRun | None:
    row = tx.one("SELECT * FROM runs WHERE id = ?", (run_id,))
    return load(GuestRun, row) if row else None


def open_ids(tx: Transaction) -> tuple[RunId, ...]:
    """All that are not over, the oldest first."""
    return tuple(RunId(row["id"]) for row in tx.all(f"SELECT id FROM runs WHERE {_OPEN} ORDER BY id"))  # noqa: S608 - a constant


def count(tx: Transaction, sandbox_id: SandboxId, state: RunState, before: RunId | None = None) -> int:
    """How many of a sandbox are in that state; `before`: only those that were asked for earlier than that one."""
    which, parameters = (" AND id < ?", (before,)) if before is not None else ("", ())
    row = tx.one(
        f"SELECT COUNT(*) AS n FROM runs WHERE sandbox_id = ? AND {_OPEN} AND state = ?{which}",  # noqa: S608 - constants
        (sandbox_id, state, *parameters),
    )
    assert row
    return int(row["n"])


def add_output(tx: Transaction, run: GuestRun, text: str) -> None:
    """Store what it printed next; `run.characters` is how much came before."""
    tx.insert("run_output", {"run_id": run.id, "at": run.characters, "text": text})


def output(tx: Transaction, run_id: RunId, offset: int, most: int) -> str:
    """What it printed from that character on, at most so many characters."""
    first = tx.one("SELECT MAX(at) AS at FROM run_output WHERE run_id = ? AND at <= ?", (run_id, offset))
    if first is None or first["at"] is None:
        return ""
    rows = tx.all(
        "SELECT at, text FROM run_output WHERE run_id = ? AND at >= ? AND at < ? ORDER BY at",
        (run_id, first["at"], offset + most),
    )
    skip = offset - int(first["at"])
    return "".join(row["text"] for row in rows)[skip : skip + most]


def forget(tx: Transaction, older_than: timedelta, at_most: int) -> int:
    """Delete those that ended longer ago than that, with their output; returns how many."""
    rows = tx.all(
        "SELECT id FROM runs WHERE ended_at < ? ORDER BY ended_at LIMIT ?", (to_us(tx.now - older_than), at_most)
    )
    for row in rows:
        tx.execute("DELETE FROM run_output WHERE run_id = ?", (row["id"],))
        tx.execute("DELETE FROM runs WHERE id = ?", (row["id"],))
    return len(rows)
