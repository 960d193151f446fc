"""Alerts of Prometheus that Alertmanager told us of, each with its message in the operators' room.

An alert is known by its fingerprint and by when it began: Alertmanager repeats itself, several of a cluster say the
same, and what was under way may arrive late.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ravebot.clock import is_due, to_us
from ravebot.store.database import Transaction, Value
from ravebot.store.rows import dump, load

MOST_FIRING = 500
"""So many are told of at the same time; more are one line."""
_GONE = timedelta(days=7)
"""Alertmanager repeats what fires every few hours: what was not heard of for so long takes no other's place."""
LATE = timedelta(minutes=1)
"""That long after an alert was resolved, word that it fires may still be under way. Heard later, it fires again."""


class AlertStatus(StrEnum):
    FIRING = "firing"
    RESOLVED = "resolved"


class Heard(StrEnum):
    """What word of an alert meant."""

    NEW = "new"
    AGAIN = "again"  # it was resolved, and fires once more
    REPEATED = "repeated"
    RESOLVED = "resolved"
    LATE = "late"  # it is over by what was heard before, or it was never heard that it fires
    LEFT_OUT = "left_out"  # too many fire


@dataclass(frozen=True)
class Alert:
    """What Alertmanager says of one alert; its texts are untrusted, and cut to their useful length."""

    fingerprint: str
    starts_at: datetime
    status: AlertStatus
    name: str
    severity: str = ""
    summary: str = ""
    description: str = ""
    runbook: str = ""
    ends_at: datetime | None = None


@dataclass(frozen=True)
class KnownAlert(Alert):
    """An alert that is stored, and the message that tells of it; no `event_id`: none was sent yet."""

    id: int = 0
    room: str = ""
    room_id: str = ""
    event_id: str = ""
    shown: str = ""
    resolved_at: datetime | None = None


def hear(tx: Transaction, alert: Alert, room: str) -> tuple[Heard, KnownAlert | None]:
    """Store what was heard; returns what it meant, and the alert if the room has to be told of it."""
    row = tx.one(
        "SELECT * FROM alerts WHERE fingerprint = ? AND starts_at = ?", (alert.fingerprint, to_us(alert.starts_at))
    )
    if row is None:
        return _first(tx, alert, room)
    known = load(KnownAlert, row)
    if alert.status is AlertStatus.RESOLVED:
        if known.status is AlertStatus.RESOLVED:
            return Heard.REPEATED, None
        tx.execute(
            "UPDATE alerts SET status = ?, ends_at = ?, resolved_at = ?, seen_at = ? WHERE id = ?",
            (alert.status, to_us(alert.ends_at) if alert.ends_at else None, tx.now_us, tx.now_us, known.id),
        )
        return Heard.RESOLVED, get(tx, known.id)
    if known.status is AlertStatus.FIRING:
        tx.execute("UPDATE alerts SET seen_at = ? WHERE id = ?", (tx.now_us, known.id))
        return Heard.REPEATED, None
    if not is_due(known.resolved_at, LATE, tx.now):
        return Heard.LATE, None
    if firing(tx) >= MOST_FIRING:
        return Heard.LEFT_OUT, None
    tx.execute(
        "UPDATE alerts SET status = ?, ends_at = NULL, resolved_at = NULL, seen_at = ? WHERE id = ?",
        (alert.status, tx.now_us, known.id),
    )
    return Heard.AGAIN, get(tx, known.id)


def _first(tx: Transaction, alert: Alert, room: str) -> tuple[Heard, KnownAlert | None]:
    is_over = alert.status is AlertStatus.RESOLVED
    if not is_over and firing(tx) >= MOST_FIRING:
        return Heard.LEFT_OUT, None
    more: dict[str, Value] = {"room": room, "first_at": tx.now_us, "seen_at": tx.now_us}
    if is_over:
        tx.insert("alerts", {**dump(alert), **more, "resolved_at": tx.now_us})
        return Heard.LATE, None
    return Heard.NEW, get(tx, tx.insert("alerts", {**dump(alert), **more}))


def get(tx: Transaction, number: int) -> KnownAlert | None:
    row = tx.one("SELECT * FROM alerts WHERE id = ?", (number,))
    return load(KnownAlert, row) if row else None


def firing(tx: Transaction) -> int:
    """How many fire, as far as was heard lately."""
    row = tx.one("SELECT COUNT(*) AS n FROM alerts WHERE status = 'firing' AND seen_at >= ?", (to_us(tx.now - _GONE),))
    assert row
    return int(row["n"])


def posted(tx: Transaction, number: int, room_id: str, event_id: str, shown: str) -> None:
    """Record the message that tells of an alert, or what it was edited to."""
    tx.execute(
        "UPDATE alerts SET room_id = ?, event_id = ?, shown = ? WHERE id = ?", (room_id, event_id, shown, number)
    )


def forget(tx: Transaction, older_than: timedelta) -> int:
    """Drop alerts that are over for so long, and those that were not heard of for so long."""
    before = to_us(tx.now - older_than)
    return tx.changed(
        "DELETE FROM alerts WHERE (status = 'resolved' AND resolved_at < ?) OR (status = 'firing' AND seen_at < ?)",
        (before, before),
    )
