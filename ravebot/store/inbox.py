"""What was asked of us by GitLab and Matrix, kept from its receipt until it was acted on; its key is kept longer, so
that the same delivery is known again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ravebot.clock import from_us, to_us
from ravebot.store.database import Transaction
from ravebot.store.signals import INTAKE


@dataclass(frozen=True)
class Request:
    """One row that waits. Within a lane, rows are acted on in the order in which they came."""

    id: int
    source: str  # gitlab, matrix
    lane: str
    kind: str
    body: str  # JSON, untrusted
    attempts: int


def add(tx: Transaction, *, source: str, key: str, lane: str, kind: str, body: str) -> bool:
    """Keep a delivery; False when the same one was there already."""
    added = tx.changed(
        "INSERT INTO inbox (source, delivery_key, lane, kind, body, received_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (source, delivery_key) DO NOTHING",
        (source, key, lane, kind, body, tx.now_us),
    )
    if added:
        tx.wake(INTAKE)
    return bool(added)


def heads(tx: Transaction, limit: int) -> tuple[Request, ...]:
    """The oldest waiting row of every lane whose time has come."""
    rows = tx.all(
        "SELECT id, source, lane, kind, body, attempts FROM inbox WHERE id IN (SELECT MIN(id) FROM inbox"
        " WHERE handled_at IS NULL GROUP BY source, lane) AND (next_attempt_at <= ? OR postponed_at > ?)"
        " ORDER BY id LIMIT ?",
        (tx.now_us, tx.now_us, limit),
    )
    return tuple(Request(**dict(row)) for row in rows)


def waits(tx: Transaction, request_id: int) -> bool:
    """Whether a row is still to be acted on."""
    return tx.one("SELECT 1 FROM inbox WHERE id = ? AND handled_at IS NULL", (request_id,)) is not None


def handled(tx: Transaction, request_id: int, outcome: str) -> bool:
    """Note that a row was acted on; False when it had been before, and whatever was to be done must not be.

    Its body goes: what people said is not kept longer than it is needed.
    """
    return bool(
        tx.changed(
            "UPDATE inbox SET handled_at = ?, outcome = ?, body = '' WHERE id = ? AND handled_at IS NULL",
            (tx.now_us, outcome, request_id),
        )
    )


def postpone(tx: Transaction, request_id: int, delay: timedelta) -> None:
    """Try a row again later, or when the clock was set back; the rest of its lane waits behind it.

    Where the clock was set back since it was received, it counts as received now.
    """
    tx.execute(
        "UPDATE inbox SET attempts = attempts + 1, postponed_at = ?, next_attempt_at = ?,"
        " received_at = MIN(received_at, ?) WHERE id = ?",
        (tx.now_us, to_us(tx.now + delay), tx.now_us, request_id),
    )


def unhandled(tx: Transaction, longer_than: timedelta) -> tuple[int, datetime | None]:
    """How many wait for longer than that, and since when the first of them does.

    A row whose `received_at` lies further ahead than that was received before the clock was set back; it counts as
    well.
    """
    row = tx.one(
        "SELECT COUNT(*) AS n, MIN(received_at) AS oldest FROM inbox"
        " WHERE handled_at IS NULL AND received_at NOT BETWEEN ? AND ?",
        (to_us(tx.now - longer_than), to_us(tx.now + longer_than)),
    )
    assert row
    return row["n"], from_us(row["oldest"]) if row["oldest"] is not None else None


def forget_handled(tx: Transaction, older_than: timedelta) -> int:
    """Drop the keys of what was acted on long ago; GitLab redelivers for hours, which they must outlive."""
    return tx.changed("DELETE FROM inbox WHERE handled_at < ?", (to_us(tx.now - older_than),))
