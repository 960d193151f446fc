"""The problems of configured rooms that people were told of, so that each is told once, also after a restart."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ravebot.store.database import Transaction
from ravebot.store.rows import dump, load


@dataclass(frozen=True)
class RoomProblem:
    """`room` is the configured name, `problem` the kind of its trouble; `since` stays when the kind changes."""

    room: str
    problem: str
    since: datetime


def told(tx: Transaction, room: str) -> RoomProblem | None:
    """The problem that people were told of last; None while the room works."""
    row = tx.one("SELECT * FROM room_problems WHERE room = ?", (room,))
    return load(RoomProblem, row) if row else None


def save(tx: Transaction, problem: RoomProblem) -> None:
    tx.upsert("room_problems", ("room",), dump(problem))


def forget(tx: Transaction, room: str) -> None:
    """The room works again."""
    tx.execute("DELETE FROM room_problems WHERE room = ?", (room,))
