"""Alerts of Prometheus that Alertmanager told us of, each with its message in the operators' room.

An alert is known by its fingerprint, which stands for its labels, and by its time: Alertmanager repeats itself, several
of a cluster say the same, what was under way may arrive late, and when it began may be told differently. At most one of
a fingerprint fires.
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

_RECENT = 20
"""So many times of an alert that comes and goes are looked at."""
_APART = timedelta(minutes=10)
"""By so much the times may differ at which several Prometheus saw one alert begin."""


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
    seen_at: datetime | None = None


def hear(tx: Transaction, alert: Alert, room: str) -> tuple[Heard, tuple[KnownAlert, ...]]:
    """Store what was heard; returns what it meant, and the alerts that the room has to be told of."""
    rows = tx.all(
        "SELECT * FROM alerts WHERE fingerprint = ?1 AND (starts_at = ?2 OR status = 'firing' OR id IN"
        " (SELECT id FROM alerts WHERE fingerprint = ?1 ORDER BY starts_at DESC LIMIT ?3))"
        " ORDER BY starts_at DESC, id DESC",
        (alert.fingerprint, to_us(alert.starts_at), _RECENT),
    )
    known = [load(KnownAlert, row) for row in rows]
    fires = next((one for one in known if one.status is AlertStatus.FIRING), None)
    same = next((one for one in known if one.starts_at == alert.starts_at), None)
    if alert.status is AlertStatus.RESOLVED:
        return _over(tx, alert, room, same or fires)
    if fires is not None and (same is not None or _goes_on(fires, alert)):
        if same is not None and same.id != fires.id:
            return Heard.LATE, ()  # of a time that was over when it began again
        tx.execute("UPDATE alerts SET seen_at = ? WHERE id = ?", (tx.now_us, fires.id))
        return Heard.REPEATED, ()
    if fires is not None:  # nobody told us that it was over meanwhile
        _resolve(tx, fires.id, None)
        heard, told = _first(tx, alert, room)
        return heard, tuple([one for one in (get(tx, fires.id), *told) if one])
    same = same or next((one for one in known if one.ends_at and one.ends_at >= alert.starts_at), None)
    if same is None:
        return _first(tx, alert, room)
    if not is_due(same.resolved_at, LATE, tx.now):
        return Heard.LATE, ()
    if firing(tx) >= MOST_FIRING:
        return Heard.LEFT_OUT, ()
    tx.execute(
        "UPDATE alerts SET status = ?, ends_at = NULL, resolved_at = NULL, seen_at = ? WHERE id = ?",
        (alert.status, tx.now_us, same.id),
    )
    return Heard.AGAIN, _told(tx, same.id)


def _goes_on(fires: KnownAlert, alert: Alert) -> bool:
    """Whether what fires is what was heard before: of several Prometheus each says when it saw an alert first, and
    Alertmanager tells of the earliest that it knows by then."""
    return alert.starts_at <= max(fires.seen_at or fires.starts_at, fires.starts_at + _APART)


def _over(tx: Transaction, alert: Alert, room: str, known: KnownAlert | None) -> tuple[Heard, tuple[KnownAlert, ...]]:
    """Word that it is over; `known` is that alert, or the one of its labels that fires."""
    if known is None or (alert.starts_at != known.starts_at and alert.ends_at and alert.ends_at < known.starts_at):
        return _first(tx, alert, room)
    if known.status is AlertStatus.RESOLVED:
        return Heard.REPEATED, ()
    _resolve(tx, known.id, alert.ends_at)
    return Heard.RESOLVED, _told(tx, known.id)


def _resolve(tx: Transaction, number: int, ends_at: datetime | None) -> None:
    tx.execute(
        "UPDATE alerts SET status = ?, ends_at = ?, resolved_at = ?, seen_at = ? WHERE id = ?",
        (AlertStatus.RESOLVED, to_us(ends_at) if ends_at else None, tx.now_us, tx.now_us, number),
    )


def _first(tx: Transaction, alert: Alert, room: str) -> tuple[Heard, tuple[KnownAlert, ...]]:
    is_over = alert.status is AlertStatus.RESOLVED
    if not is_over and firing(tx) >= MOST_FIRING:
        return Heard.LEFT_OUT, ()
    more: dict[str, Value] = {"room": room, "first_at": tx.now_us, "seen_at": tx.now_us}
    if is_over:
        tx.insert("alerts", {**dump(alert), **more, "resolved_at": tx.now_us})
        return Heard.LATE, ()
    return Heard.NEW, _told(tx, tx.insert("alerts", {**dump(alert), **more}))


def _told(tx: Transaction, number: int) -> tuple[KnownAlert, ...]:
    found = get(tx, number)
    return (found,) if found else ()


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
