"""Requests from GitLab and Matrix, kept from their receipt until they are handled; their keys are kept longer, so that
a second delivery is recognised."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ravebot.clock import from_us, to_us
from ravebot.store.database import Transaction
from ravebot.store.signals import INTAKE

EARLY = "early reaction"
"""The kind of a reaction in a room to an event that may show a question of ours, which is not recorded yet."""


@dataclass(frozen=True)
class Request:
    """A row that is not handled yet. The rows of a lane are handled in the order in which they came."""

    id: int
    source: str  # gitlab, matrix
    lane: str
    kind: str
    body: str  # JSON, untrusted
    attempts: int


def add(tx: Transaction, *, source: str, key: str, lane: str, kind: str, body: str) -> bool:
    """Store a delivery; False when it was stored before."""
    added = tx.changed(
        "INSERT INTO inbox (source, delivery_key, lane, kind, body, received_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (source, delivery_key) DO NOTHING",
        (source, key, lane, kind, body, tx.now_us),
    )
    if added:
        tx.wake(INTAKE)
    return bool(added)


def record(tx: Transaction, source: str, key: str, lane: str, kind: str, outcome: str) -> None:
    """Store a delivery as handled without acting on it, unless it was stored before; its body is not kept."""
    tx.execute(
        "INSERT INTO inbox (source, delivery_key, lane, kind, body, received_at, handled_at, outcome)"
        " VALUES (?, ?, ?, ?, '', ?, ?, ?) ON CONFLICT (source, delivery_key) DO NOTHING",
        (source, key, lane, kind, tx.now_us, tx.now_us, outcome),
    )


def kind_of(tx: Transaction, source: str, key: str) -> str | None:
    """The kind of a delivery that was stored, handled or not; None for one that was not, or too long ago."""
    row = tx.one("SELECT kind FROM inbox WHERE source = ? AND delivery_key = ?", (source, key))
    return row["kind"] if row else None


def take_back(tx: Transaction, source: str, key: str) -> bool:
    """Mark a delivery as handled without acting on it, because who sent it removed it; False if it was handled."""
    return bool(
        tx.changed(
            "UPDATE inbox SET handled_at = ?, outcome = 'taken back', body = ''"
            " WHERE source = ? AND delivery_key = ? AND handled_at IS NULL",
            (tx.now_us, source, key),
        )
    )


def count_early(tx: Transaction, source: str, sender: str | None = None) -> int:
    """How many early reactions wait, of one sender or of all."""
    row = tx.one(
        "SELECT COUNT(*) AS n FROM inbox WHERE source = ? AND kind = ? AND handled_at IS NULL"
        " AND (? IS NULL OR json_extract(body, '$.sender') = ?)",
        (source, EARLY, sender, sender),
    )
    assert row
    return int(row["n"])


def hasten_early(tx: Transaction, to: str) -> None:
    """What the event `to` shows is recorded now: the reactions to it that wait are due."""
    hastened = tx.changed(
        "UPDATE inbox SET next_attempt_at = 0 WHERE kind = ? AND handled_at IS NULL AND json_extract(body, '$.to') = ?",
        (EARLY, to),
    )
    if hastened:
        tx.wake(INTAKE)


def heads(tx: Transaction, limit: int) -> tuple[Request, ...]:
    """The oldest unhandled row of every lane, if it is due: of each source at most `limit`, the least recently tried
    first. A row that was never tried counts as tried when it was received."""
    rows = tx.all(
        "SELECT id, source, lane, kind, body, attempts FROM (SELECT *, ROW_NUMBER() OVER"
        " (PARTITION BY source ORDER BY MAX(received_at, postponed_at), id) AS place FROM inbox WHERE id IN"
        " (SELECT MIN(id) FROM inbox WHERE handled_at IS NULL GROUP BY source, lane)"
        " AND (next_attempt_at <= ? OR postponed_at > ?)) WHERE place <= ? ORDER BY place, id",
        (tx.now_us, tx.now_us, limit),
    )
    return tuple(Request(**dict(row)) for row in rows)


def waits(tx: Transaction, request_id: int) -> bool:
    """Whether a row is not handled yet."""
    return tx.one("SELECT 1 FROM inbox WHERE id = ? AND handled_at IS NULL", (request_id,)) is not None


def handled(tx: Transaction, request_id: int, outcome: str) -> bool:
    """Mark a row as handled; False when it was handled before, and must not be handled again.

    Its body is deleted: what people wrote is not kept longer than needed.
    """
    return bool(
        tx.changed(
            "UPDATE inbox SET handled_at = ?, outcome = ?, body = '' WHERE id = ? AND handled_at IS NULL",
            (tx.now_us, outcome, request_id),
        )
    )


def postpone(tx: Transaction, request_id: int, delay: timedelta) -> None:
    """Try a row again after `delay`, or when the clock was set back; the rest of its lane waits for it.

    If the clock was set back since the row was received, it counts as received now.
    """
    tx.execute(
        "UPDATE inbox SET attempts = attempts + 1, postponed_at = ?, next_attempt_at = ?,"
        " received_at = MIN(received_at, ?) WHERE id = ?",
        (tx.now_us, to_us(tx.now + delay), tx.now_us, request_id),
    )


def unhandled(tx: Transaction, longer_than: timedelta) -> tuple[int, datetime | None]:
    """How many rows have waited for longer than that, and since when the oldest of them waits.

    A row whose `received_at` lies further ahead than that was received before the clock was set back; it counts too.
    Early reactions do not: they wait for a message of ours, whose delay is told by the outbox.
    """
    row = tx.one(
        "SELECT COUNT(*) AS n, MIN(received_at) AS oldest FROM inbox"
        " WHERE handled_at IS NULL AND kind <> ? AND received_at NOT BETWEEN ? AND ?",
        (EARLY, to_us(tx.now - longer_than), to_us(tx.now + longer_than)),
    )
    assert row
    return row["n"], from_us(row["oldest"]) if row["oldest"] is not None else None


def forget_handled(tx: Transaction, older_than: timedelta) -> int:
    """Delete rows that were handled longer ago than that; GitLab redelivers for hours, so it must be more."""
    return tx.changed("DELETE FROM inbox WHERE handled_at < ?", (to_us(tx.now - older_than),))
