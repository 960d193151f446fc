"""The targets of the outbox's messages, and the lanes of each.

To add a target, add a class of lanes and a `Target` here, and a sender in `app.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import merge_requests
from ravebot.store.database import Transaction

_AGAIN = " again"


class Kind(StrEnum):
    """The kind of a message; `CARD` and `NOTE` carry no text: they are rendered when they are sent."""

    CARD = "card"
    NOTE = "note"
    HISTORY = "history"  # a line in the card's thread
    WARNING = "warning"
    REPLY = "reply"
    SAY = "say"
    NEWS = "news"  # for the operators, about the whole installation
    EMOJI = "emoji"


class Lane(Protocol):
    """A room or merge request of a target; messages keep their order within it. Lanes are compared by value."""

    @property
    def target(self) -> Target: ...

    @property
    def text(self) -> str:
        """The lane as stored in the outbox."""

    def name(self, tx: Transaction) -> str:
        """The lane's name for people."""


@dataclass(frozen=True)
class Target:
    """Where messages go. `name` is used in rows, logs and metrics, `lane` parses a row's lane, `kinds` are accepted."""

    name: str
    lane: Callable[[str], Lane]
    kinds: frozenset[Kind]

    @property
    def signal(self) -> str:
        """The signal that wakes its delivery."""
        return f"outbox:{self.name}"


@dataclass(frozen=True)
class RoomLane:
    """A Matrix room, by its configured name, or by its id where none is configured."""

    text: str

    @property
    def target(self) -> Target:
        return MATRIX

    def name(self, _: Transaction) -> str:
        return self.text


@dataclass(frozen=True)
class NoteLane:
    """A merge request's note, comments and emoji; `again` is for a second edit that must not delay anything else."""

    ref: MergeRequestRef
    again: bool = False

    @classmethod
    def read(cls, text: str) -> NoteLane:
        project_id, _, iid = text.removesuffix(_AGAIN).partition("!")
        return cls(MergeRequestRef(int(project_id), int(iid)), text.endswith(_AGAIN))

    @property
    def target(self) -> Target:
        return GITLAB

    @property
    def text(self) -> str:
        return f"{self.ref.project_id}!{self.ref.iid}{_AGAIN if self.again else ''}"

    def name(self, tx: Transaction) -> str:
        mr = merge_requests.get(tx, self.ref)
        return mr.full_ref if mr else self.text


MATRIX = Target("matrix", RoomLane, frozenset({Kind.CARD, Kind.HISTORY, Kind.WARNING, Kind.REPLY, Kind.SAY, Kind.NEWS}))
GITLAB = Target("gitlab", NoteLane.read, frozenset({Kind.NOTE, Kind.WARNING, Kind.REPLY, Kind.EMOJI}))
TARGETS = (MATRIX, GITLAB)
