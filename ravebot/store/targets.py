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
_TALK = " conversation "
_RECEIPTS = " receipts"
_ALERTS = "alerts"


class Kind(StrEnum):
    """The kind of a message; those without a text are rendered from the state at the time when they are sent."""

    CARD = "card"
    CALL = "call"  # an edit, of the card or of a warning, that notifies the owner
    NOTE = "note"
    HISTORY = "history"  # a line in the card's thread
    WARNING = "warning"
    OVER = "over"  # an edit of a warning that is not true any more
    REPLY = "reply"
    SAY = "say"
    NEWS = "news"  # for the operators, about the whole installation
    ALERT = "alert"  # for the operators, an alert of Prometheus: body {"alert": ID}
    EMOJI = "emoji"
    ANSWER = "answer"  # an agent's words: body {"turn": ID}, with "last": true at the turn's end
    RECEIPT = "receipt"  # the reaction on a message to an agent: body {"turn": ID, "receipt": which}
    QUESTION = "question"  # an approval: body {"approval": ID}; with "tap", only the reaction for people to tap on
    REMARK = "remark"  # a line of ours in a conversation: body {"conversation": ID, "text": …}


class Lane(Protocol):
    """A room or merge request of a target; messages keep their order within it. Lanes are compared by value."""

    @property
    def target(self) -> Target: ...

    @property
    def text(self) -> str:
        """The lane as stored in the outbox."""

    def name(self, tx: Transaction) -> str:
        """The lane's name for people."""


def _one_limit(_kind: Kind, _lane: str) -> str:
    """As on a homeserver, which limits all events of a user together."""
    return ""


@dataclass(frozen=True)
class Target:
    """Where messages go. `name` is used in rows, logs and metrics, `lane` parses a row's lane, `kinds` are accepted.

    `limit` names the rate limit that a message of that kind and lane counts towards: when the far end says to slow
    down, the messages with the same one wait. `gather_seconds`: how long to wait after a change for those that come
    with it, since they are told in one request.
    """

    name: str
    lane: Callable[[str], Lane]
    kinds: frozenset[Kind]
    limit: Callable[[Kind, str], str] = _one_limit
    gather_seconds: float = 0.0

    @property
    def signal(self) -> str:
        """The signal that wakes its delivery."""
        return f"outbox:{self.name}"


@dataclass(frozen=True)
class RoomLane:
    """A Matrix room, by its configured name, or by its id where none is configured.

    A `conversation` with an agent has a lane of its own, so that an agent's stream of words delays nothing else, and
    one for its `receipts`, which wait a moment for the turn's end. So have `alerts`, which may be many at once.
    """

    room: str
    conversation: int | None = None
    receipts: bool = False
    alerts: bool = False

    @classmethod
    def read(cls, text: str) -> RoomLane:
        room, _, rest = text.partition(" ")  # neither an alias nor an id has a space
        if rest == _ALERTS:
            return cls(room, alerts=True)
        conversation, _, receipts = rest.partition(" ")
        return cls(room, int(conversation) if conversation else None, bool(receipts))

    @property
    def target(self) -> Target:
        return MATRIX

    @property
    def text(self) -> str:
        if self.alerts:
            return f"{self.room} {_ALERTS}"
        if self.conversation is None:
            return self.room
        return f"{self.room} {self.conversation}{_RECEIPTS if self.receipts else ''}"

    def name(self, _: Transaction) -> str:
        return self.room


@dataclass(frozen=True)
class NoteLane:
    """A merge request's note, comments and emoji; `again` is for a second edit that must not delay anything else.

    A `conversation` with an agent has a lane of its own, and one for its `receipts`, as in rooms.
    """

    ref: MergeRequestRef
    again: bool = False
    conversation: int | None = None
    receipts: bool = False

    @classmethod
    def read(cls, text: str) -> NoteLane:
        place, _, talk = text.partition(_TALK)
        project_id, _, iid = place.removesuffix(_AGAIN).partition("!")
        conversation = int(talk.removesuffix(_RECEIPTS)) if talk else None
        ref = MergeRequestRef(int(project_id), int(iid))
        return cls(ref, place.endswith(_AGAIN), conversation, talk.endswith(_RECEIPTS))

    @property
    def target(self) -> Target:
        return GITLAB

    @property
    def text(self) -> str:
        place = f"{self.ref.project_id}!{self.ref.iid}{_AGAIN if self.again else ''}"
        if self.conversation is None:
            return place
        return f"{place}{_TALK}{self.conversation}{_RECEIPTS if self.receipts else ''}"

    def name(self, tx: Transaction) -> str:
        mr = merge_requests.get(tx, self.ref)
        return mr.full_ref if mr else self.text


def _limit_of_endpoint(kind: Kind, lane: str) -> str:
    """The endpoint and the project, so that a crowd on one merge request delays no other project's notes."""
    return (
        f"{'emoji' if kind in (Kind.EMOJI, Kind.RECEIPT) else 'notes'} of project {NoteLane.read(lane).ref.project_id}"
    )


MATRIX = Target("matrix", RoomLane.read, frozenset(Kind) - {Kind.NOTE, Kind.EMOJI})
GITLAB = Target(
    "gitlab",
    NoteLane.read,
    frozenset({Kind.NOTE, Kind.WARNING, Kind.REPLY, Kind.EMOJI, Kind.ANSWER, Kind.RECEIPT, Kind.QUESTION, Kind.REMARK}),
    _limit_of_endpoint,
    gather_seconds=0.05,
)
TARGETS = (MATRIX, GITLAB)
