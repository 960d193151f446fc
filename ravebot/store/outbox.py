"""Messages to Matrix and GitLab: each is committed with the change that it reports, and kept until it is delivered.

The steps of a row: `attempt` (before every send; `attempted_at` is the time of the first), then `note_request` right
before a request that must not be made twice (sets `last_attempt_at`) and `note_answer` when the far end refused it
(clears it), then `delivered`, or `postpone`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ravebot.clock import age, from_us, to_us
from ravebot.sandboxes.model import SandboxId
from ravebot.store.database import Transaction, dump_json
from ravebot.store.rows import dump, load
from ravebot.store.targets import MATRIX, Kind, Lane, Target


@dataclass(frozen=True)
class Waiting:
    """A lane with `count` unsent rows, and its name for people.

    `since`: when the oldest was written; `refused`: why the far end refused the oldest, or empty.
    """

    lane: Lane
    name: str
    count: int
    since: datetime
    refused: str


@dataclass(frozen=True)
class Message:
    """One row, with its target's name and its lane's text. `attempted`: it may have arrived."""

    id: int
    target: str
    lane: str
    kind: Kind
    sandbox_id: SandboxId | None
    created_at: datetime
    attempted: bool
    attempts: int
    body: dict[str, object] = field(default_factory=dict)
    unanswered_for: timedelta | None = None  # time since a request that got no answer yet
    salt: str = ""  # empty in rows of old databases

    @property
    def key(self) -> str:
        """Its id at the far end. After a backup is restored, row ids are used again, but with another salt."""
        return f"{self.id}.{self.salt}" if self.salt else str(self.id)


@dataclass(frozen=True)
class Card:
    """The Matrix event of a sandbox's card, and the room's id; the room's configured name may mean another by now.

    `shown` is a digest of what it shows, empty if that is not known; `replaced`: it took the place of another one.
    No `event_id`: somebody removed it.
    """

    room_id: str
    event_id: str
    shown: str = ""
    replaced: bool = False
    posted_at: datetime | None = None


def add(
    tx: Transaction,
    lane: Lane,
    kind: Kind,
    *,
    sandbox_id: SandboxId | None = None,
    body: dict[str, object] | None = None,
    merge_key: str | None = None,
    delay: timedelta = timedelta(0),
) -> None:
    """Queue a message, to be sent after `delay`. It is dropped while one with the same merge key is unsent: that one is
    rendered when it is sent, and then includes this change. Raises ValueError for a kind that the target doesn't take.
    """
    target = lane.target
    if kind not in target.kinds:
        raise ValueError(f"{target.name} takes no {kind}")
    tx.execute(
        "INSERT INTO outbox"
        " (target, lane, kind, merge_key, sandbox_id, body, created_at, postponed_at, next_attempt_at, salt)"
        " SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, lower(hex(randomblob(8)))"
        " WHERE ? IS NULL OR NOT EXISTS (SELECT 1 FROM outbox WHERE merge_key = ?"
        " AND delivered_at IS NULL AND attempted_at IS NULL)",
        (
            *(target.name, lane.text, kind, merge_key, sandbox_id, dump_json(body or {})),
            *(tx.now_us, tx.now_us, to_us(tx.now + delay), merge_key, merge_key),
        ),
    )
    tx.wake(target.signal)


def in_flight(tx: Transaction, merge_key: str) -> bool:
    """Whether a message with that merge key may be on its way, so that another of it is not merged into it."""
    row = tx.one(
        "SELECT 1 FROM outbox WHERE merge_key = ? AND delivered_at IS NULL AND attempted_at IS NOT NULL LIMIT 1",
        (merge_key,),
    )
    return row is not None


def hasten(tx: Transaction, lane: Lane) -> None:
    """Send what was queued in that lane as soon as its turn comes, as something waits behind it: without a delay, and
    what an agent said so far no later than what comes after it."""
    tx.execute(
        "UPDATE outbox SET next_attempt_at = MIN(next_attempt_at, ?),"
        " merge_key = CASE WHEN kind = 'answer' THEN NULL ELSE merge_key END"
        " WHERE target = ? AND lane = ? AND delivered_at IS NULL AND attempted_at IS NULL",
        (tx.now_us, lane.target.name, lane.text),
    )
    tx.wake(lane.target.signal)


def acknowledged_lately(tx: Transaction, merge_key: str, within: timedelta) -> bool:
    """Whether an emoji with that merge key is unsent, or was queued in the time `within` before now."""
    row = tx.one(
        "SELECT 1 FROM outbox WHERE kind = 'emoji' AND merge_key = ?"
        " AND (delivered_at IS NULL OR created_at BETWEEN ? AND ?) LIMIT 1",
        (merge_key, to_us(tx.now - within), tx.now_us),
    )
    return row is not None


def due_lanes(tx: Transaction, target: Target) -> tuple[str, ...]:
    """The lanes whose oldest unsent row is due, least recently tried first: those whose tries take long delay no other.

    A row that was never tried counts as tried when it was written. What is told of sandboxes comes before what is told
    of conversations with agents, and what an agent said so far comes last: it is told again with what follows.
    """
    rows = tx.all(
        "SELECT lane FROM outbox WHERE id IN (SELECT MIN(id) FROM outbox WHERE target = ? AND delivered_at IS NULL"
        " GROUP BY lane) AND (next_attempt_at <= ? OR postponed_at > ?) ORDER BY CASE"
        " WHEN kind = 'answer' AND merge_key IS NOT NULL THEN 3 WHEN kind = 'receipt' THEN 2"
        " WHEN kind IN ('answer', 'question', 'remark') THEN 1 ELSE 0 END, postponed_at, id",
        (target.name, tx.now_us, tx.now_us),
    )
    return tuple(row["lane"] for row in rows)


def head(tx: Transaction, target: Target, lane: str) -> Message | None:
    """The oldest unsent row of a lane, if it is due."""
    row = tx.one(
        "SELECT * FROM outbox WHERE target = ? AND lane = ? AND delivered_at IS NULL ORDER BY id LIMIT 1",
        (target.name, lane),
    )
    if row is None or row["postponed_at"] <= tx.now_us < row["next_attempt_at"]:
        return None
    asked_at = row["last_attempt_at"]
    return load(
        Message,
        row,
        attempted=row["attempted_at"] is not None,
        body=json.loads(row["body"]),
        unanswered_for=None if asked_at is None else age(from_us(asked_at), tx.now),
    )


def attempt(tx: Transaction, message_id: int) -> None:
    """Record, before sending, that the message may have arrived from now on.

    If the clock was set back since, the stored times are moved to now, once.
    """
    tx.execute(
        "UPDATE outbox SET attempted_at = COALESCE(attempted_at, ?), attempts = attempts + 1,"
        " last_attempt_at = MIN(last_attempt_at, ?), created_at = MIN(created_at, ?) WHERE id = ?",
        (tx.now_us, tx.now_us, tx.now_us, message_id),
    )


def note_request(tx: Transaction, message_id: int) -> None:
    """Record, right before a request that must not be made twice, that the far end may work on it from now on."""
    tx.execute("UPDATE outbox SET last_attempt_at = ? WHERE id = ?", (tx.now_us, message_id))


def note_answer(tx: Transaction, message_id: int) -> None:
    """Record that the far end no longer works on it."""
    tx.execute("UPDATE outbox SET last_attempt_at = NULL WHERE id = ?", (message_id,))


def delivered(tx: Transaction, message_id: int, result: str) -> None:
    """Record that the far end has it (`result`: its id there) or refused it for good; its body is deleted."""
    tx.execute(
        "UPDATE outbox SET delivered_at = ?, result = ?, body = '{}' WHERE id = ?", (tx.now_us, result, message_id)
    )


def postpone(tx: Transaction, message_id: int, delay: timedelta) -> None:
    """Try again after `delay`, or when the clock was set back; the rest of its lane waits for it."""
    tx.execute(
        "UPDATE outbox SET postponed_at = ?, next_attempt_at = ? WHERE id = ?",
        (tx.now_us, to_us(tx.now + delay), message_id),
    )


def note_refusal(tx: Transaction, message_id: int, why: str) -> None:
    """Record why the far end refused it; kept until a later answer replaces it."""
    tx.execute("UPDATE outbox SET refused = ? WHERE id = ?", (why, message_id))


def seconds_to_next(tx: Transaction, target: Target) -> float | None:
    """How long until the earliest postponed row is due; None when none is postponed."""
    row = tx.one(
        "SELECT MIN(next_attempt_at) AS due FROM outbox"
        " WHERE target = ? AND delivered_at IS NULL AND postponed_at <= ? AND next_attempt_at > ?",
        (target.name, tx.now_us, tx.now_us),
    )
    return (row["due"] - tx.now_us) / 1e6 if row and row["due"] is not None else None


def waiting(tx: Transaction, target: Target) -> tuple[Waiting, ...]:
    """Every lane with unsent rows, longest waiting first."""
    rows = tx.all(
        "SELECT head.lane, head.created_at, head.refused, queue.count FROM outbox AS head JOIN"
        " (SELECT MIN(id) AS id, COUNT(*) AS count FROM outbox WHERE target = ? AND delivered_at IS NULL GROUP BY lane)"
        " AS queue ON queue.id = head.id ORDER BY head.id",
        (target.name,),
    )
    lanes = ((target.lane(row["lane"]), row) for row in rows)
    return tuple(
        Waiting(lane, lane.name(tx), row["count"], from_us(row["created_at"]), row["refused"] or "")
        for lane, row in lanes
    )


def backlog(tx: Transaction, target: Target) -> tuple[int, datetime | None]:
    """How many rows are unsent, and since when the oldest is."""
    row = tx.one(
        "SELECT COUNT(*) AS n, MIN(created_at) AS oldest FROM outbox WHERE target = ? AND delivered_at IS NULL",
        (target.name,),
    )
    assert row
    return row["n"], from_us(row["oldest"]) if row["oldest"] is not None else None


def forget_delivered(tx: Transaction, older_than: timedelta) -> int:
    return tx.changed("DELETE FROM outbox WHERE delivered_at < ?", (to_us(tx.now - older_than),))


def card(tx: Transaction, sandbox_id: SandboxId, room: str) -> Card | None:
    """A sandbox's card in a configured room."""
    row = tx.one("SELECT * FROM cards WHERE sandbox_id = ? AND room = ?", (sandbox_id, room))
    return load(Card, row) if row else None


def set_card(tx: Transaction, sandbox_id: SandboxId, room: str, card: Card) -> None:
    """Record that a card was posted."""
    posted = {**dump(card), "posted_at": tx.now_us}
    tx.upsert("cards", ("sandbox_id", "room"), {"sandbox_id": sandbox_id, "room": room, **posted})


def card_shows(tx: Transaction, sandbox_id: SandboxId, room: str, card: Card, shown: str) -> None:
    """Record what a card was edited to; not if it was removed or handed over during the edit."""
    tx.execute(
        "UPDATE cards SET shown = ? WHERE sandbox_id = ? AND room = ? AND event_id = ?",
        (shown, sandbox_id, room, card.event_id),
    )


def remove_card(tx: Transaction, room_id: str, event_id: str) -> tuple[SandboxId, str] | None:
    """Note that a card, or an edit of it, was removed from its room; returns its sandbox and the room's name."""
    row = tx.one("SELECT sandbox_id, room FROM cards WHERE room_id = ? AND event_id = ?", (room_id, event_id))
    gone = "event_id = '', shown = ''"
    if row is None:
        row = tx.one(
            "SELECT c.sandbox_id, c.room FROM outbox o JOIN cards c ON c.sandbox_id = o.sandbox_id AND c.room = o.lane"
            " WHERE o.result = ? AND o.sandbox_id IS NOT NULL AND o.kind IN (?, ?) AND c.room_id = ?",
            (event_id, Kind.CARD, Kind.CALL, room_id),
        )
        gone = "shown = ''"
    if row is None:
        return None
    tx.execute(
        f"UPDATE cards SET {gone} WHERE sandbox_id = ? AND room = ?",  # noqa: S608 - one of the constants above
        (row["sandbox_id"], row["room"]),
    )
    return SandboxId(row["sandbox_id"]), row["room"]


def hand_over_cards(tx: Transaction, old: SandboxId, new: SandboxId) -> None:
    """Let a new sandbox go on in the cards of the one before it."""
    tx.execute("UPDATE cards SET sandbox_id = ?, shown = '' WHERE sandbox_id = ? AND event_id <> ''", (new, old))


def given_warning(tx: Transaction, sandbox_id: SandboxId, room: str, threshold: int) -> Card | None:
    """The event of a warning that the room shows, and that is not over."""
    row = tx.one(
        "SELECT room_id, event_id FROM room_warnings WHERE sandbox_id = ? AND room = ? AND threshold = ?"
        " AND is_over = 0",
        (sandbox_id, room, threshold),
    )
    return Card(row["room_id"], row["event_id"]) if row else None


def set_warning(tx: Transaction, sandbox_id: SandboxId, room: str, threshold: int, room_id: str, event_id: str) -> None:
    key = ("sandbox_id", "room", "threshold")
    values = (sandbox_id, room, threshold, room_id, event_id, 0)
    tx.upsert("room_warnings", key, dict(zip((*key, "room_id", "event_id", "is_over"), values, strict=True)))


def warning_is_over(tx: Transaction, sandbox_id: SandboxId, room: str, threshold: int) -> None:
    tx.execute(
        "UPDATE room_warnings SET is_over = 1 WHERE sandbox_id = ? AND room = ? AND threshold = ?",
        (sandbox_id, room, threshold),
    )


def sandbox_of_card(tx: Transaction, room_id: str, event_id: str) -> SandboxId | None:
    """The sandbox whose card in that room the event is, or about which another message of ours there is."""
    row = tx.one(
        "SELECT sandbox_id FROM cards WHERE room_id = ? AND event_id = ?"
        " UNION ALL SELECT sandbox_id FROM outbox WHERE target = ? AND result = ? AND sandbox_id IS NOT NULL"
        " AND lane IN (SELECT name FROM rooms WHERE room_id = ?) LIMIT 1",
        (room_id, event_id, MATRIX.name, event_id, room_id),
    )
    return SandboxId(row["sandbox_id"]) if row else None


def superseded(tx: Transaction, message: Message) -> bool:
    """Whether a later row of the same kind, about the same sandbox, waits in the same lane."""
    row = tx.one(
        "SELECT 1 FROM outbox WHERE target = ? AND lane = ? AND delivered_at IS NULL"
        " AND id > ? AND kind = ? AND sandbox_id = ? LIMIT 1",
        (message.target, message.lane, message.id, message.kind, message.sandbox_id),
    )
    return row is not None


def rooms(tx: Transaction) -> dict[str, str]:
    """Room ids of the configured names, as far as they are known."""
    return {row["name"]: row["room_id"] for row in tx.all("SELECT name, room_id FROM rooms")}


def set_room(tx: Transaction, name: str, room_id: str) -> None:
    tx.upsert("rooms", ("name",), {"name": name, "room_id": room_id})
