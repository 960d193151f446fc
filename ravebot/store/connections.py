"""The access audit: who connected to which sandbox, when, how often, how much."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ravebot.clock import to_us
from ravebot.sandboxes.model import SandboxId
from ravebot.store.database import Transaction
from ravebot.store.rows import dump


@dataclass(frozen=True)
class Visit:
    """The connections of one source to one service of one sandbox."""

    sandbox_id: SandboxId
    service: str
    source: str
    first_at: datetime
    last_at: datetime
    count: int
    dropped: int  # over the rate limit
    bytes: int


def add(tx: Transaction, seen: Visit) -> bool:
    """Add these counts; returns True for the first connection of that source to that service."""
    known = tx.changed(
        "UPDATE connections SET last_at = MAX(last_at, ?), count = count + ?, dropped = dropped + ?, bytes = bytes + ?"
        " WHERE sandbox_id = ? AND service = ? AND source = ?",
        (to_us(seen.last_at), seen.count, seen.dropped, seen.bytes, seen.sandbox_id, seen.service, seen.source),
    )
    if known:
        return False
    tx.insert("connections", dump(seen))
    return True


def visitors(tx: Transaction, sandbox_id: SandboxId, service: str) -> int:
    """How many sources ever connected to that service of a sandbox."""
    row = tx.one("SELECT COUNT(*) AS n FROM connections WHERE sandbox_id = ? AND service = ?", (sandbox_id, service))
    assert row
    return int(row["n"])
