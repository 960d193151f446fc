"""Where the outbox's messages go: one row for each target, and its lanes.

A new target is a class of lanes and a row here, and a sender in `app.py`.
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
    """What is to be told; `CARD` and `NOTE` carry no text, they are rendered when they are sent."""

    CARD = "card"
    NOTE = "note"
    HISTORY = "history"  # a line in the card's thread
    WARNING = "warning"
    REPLY = "reply"
    SAY = "say"
    NEWS = "news"  # for the operators, about the whole installation
    EMOJI = "emoji"


class Lane(Protocol):
    """Where in a target a message goes; order is kept within one. Equal lanes are one, also as keys."""

    @property
    def target(self) -> Target: ...

    @property
    def text(self) -> str:
        """As the rows have it."""

    def name(self, tx: Transaction) -> str:
        """As people know it."""


@dataclass(frozen=True)
class Target:
    """A far end. `name` is what rows, logs and metrics call it, `lane` reads a row's lane, `kinds` is what it takes."""

    name: str
    lane: Callable[[str], Lane]
    kinds: frozenset[Kind]

    @property
    def signal(self) -> str:
        """Wakes its delivery."""
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
