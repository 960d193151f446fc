"""The weeks that something was told about, so that none is told twice, also after a restart."""

from __future__ import annotations

from ravebot.store.database import Transaction


def told(tx: Transaction, what: str) -> tuple[str, ...]:
    """The weeks (2026-W48) in the order in which they were told."""
    return tuple([row["week"] for row in tx.all("SELECT week FROM weekly WHERE what = ? ORDER BY id", (what,))])


def note_told(tx: Transaction, what: str, week: str) -> None:
    """The week was told now; a note of the same week from before is replaced."""
    tx.execute("DELETE FROM weekly WHERE what = ? AND week = ?", (what, week))
    tx.insert("weekly", {"what": what, "week": week})
