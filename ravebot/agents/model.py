"""What conversations, messages, turns, processes and approvals are: frozen facts, shared by every module about agents.

A conversation has messages; each message given to the agent is a turn. A process is one run of the agent's program.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NewType

from ravebot.sandboxes.model import Actor, MachineId, MergeRequestRef, SandboxId

ConversationId = NewType("ConversationId", int)
MessageId = NewType("MessageId", int)
TurnId = NewType("TurnId", int)
ProcessId = NewType("ProcessId", int)
ApprovalId = NewType("ApprovalId", int)
DeliveryId = NewType("DeliveryId", str)

AGENT = "agent"
"""The `Actor.kind` of an agent's words; its `name` is the agent's."""
LONGEST_MESSAGE = 16_000
"""Characters of a person's message to an agent; longer ones are refused, and said so."""
LONGEST_ANSWER = 60_000
"""Characters of an agent's answer that are kept; of a longer one the beginning and the end."""
LONGEST_STATUS = 200


class AgentDoor(StrEnum):
    """Where a conversation is held."""

    MATRIX = "matrix"
    GITLAB = "gitlab"
    SHELL = "shell"
    API = "api"


class TurnState(StrEnum):
    """The states of a turn; those from DONE on are ends."""

    ACCEPTED = "accepted"  # waits for its sandbox, or for a person's yes to start it
    QUEUED = "queued"  # waits for its turn
    DELIVERED = "delivered"  # the agent's queue has it
    WORKING = "working"
    WAITING = "waiting"  # for a person's answer to an approval
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNCERTAIN = "uncertain"  # it can't be proved whether it ran; never run again unasked
    DEAD = "dead"  # given up before the agent could have it

    @property
    def is_over(self) -> bool:
        return self in OVER


class Receipt(StrEnum):
    """What a door shows of a turn on the person's message."""

    SEEN = "seen"  # the agent has it
    WAITS = "waits"  # for a person's answer
    DONE = "done"
    TROUBLE = "trouble"  # it ended otherwise; the thread says why


OVER = frozenset({TurnState.DONE, TurnState.FAILED, TurnState.CANCELLED, TurnState.UNCERTAIN, TurnState.DEAD})
DEAD_LETTERS = frozenset({TurnState.DEAD, TurnState.FAILED, TurnState.UNCERTAIN})
"""What `agent dead list` lists: a person may have it sent again, or drop it."""


class ApprovalKind(StrEnum):
    """What a person is asked to allow."""

    FORK = "fork"  # a fork's commit may start
    START = "start"  # a sandbox is started for a message to an agent
    EXTENSION = "extension"  # past the longest lifetime; an admin decides
    STOP = "stop"  # the question behind the card's 🛑
    COMMIT = "commit"  # an agent's diff is committed to the source branch
    TOOL = "tool"  # an agent's own tool call


class ApprovalState(StrEnum):
    """OPEN → GRANTED or DENIED by a person; EXPIRED: no answer in time, a no; WITHDRAWN: it is not asked any more."""

    OPEN = "open"
    GRANTED = "granted"
    DENIED = "denied"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Conversation:
    """One thread between people and one agent.

    `place`: in Matrix the room's id, in GitLab `PROJECT_ID!IID`, at the shell empty, by the API the token's id.
    `thread`: the thread's root event, the discussion's id, or a number. `own_thread`: it has a Matrix thread to itself,
    so that every message in it is for the agent; a card's thread is not. `paused`: why nothing is given to the agent
    until a person speaks or resumes it; empty: it is not paused.
    """

    id: ConversationId
    agent: str
    door: AgentDoor
    place: str
    thread: str
    created_at: datetime
    own_thread: bool = True
    mr: MergeRequestRef | None = None
    paused: str = ""


@dataclass(frozen=True)
class AgentMessage:
    """What was said to an agent. `key`: its id at its door (the Matrix event, the note), or `turn ID` of the agent
    whose answer it is. `root`: the first person in the chain; `hops`: through how many agents it came."""

    id: MessageId
    conversation_id: ConversationId
    key: str
    author: Actor
    root: Actor
    text: str
    said_at: datetime
    hops: int = 0


@dataclass(frozen=True)
class Turn:
    """One message given to an agent. `given_at` is stored before it is first given: without, the agent can't have it.
    `process_id`: which process has it, of an agent that works in the sandbox. `answer` and `status` (what it is doing)
    are untrusted and bounded. `cancelled_by`: who asked to cancel it; `deadline`: when its time is over. `sha`: the
    commit that was in the sandbox when it was given, or the newer one of which the conversation was told."""

    id: TurnId
    message_id: MessageId
    conversation_id: ConversationId
    state: TurnState
    created_at: datetime
    attempt: int = 1
    why: str = ""
    process_id: ProcessId | None = None
    given_at: datetime | None = None
    deadline: datetime | None = None
    ended_at: datetime | None = None
    answer: str = ""
    cut: int = 0  # characters of the answer that were left out
    status: str = ""
    cancelled_by: str = ""
    tries: int = 0
    next_try_at: datetime | None = None
    sha: str = ""

    @property
    def is_given(self) -> bool:
        """Whether the agent may have it."""
        return self.given_at is not None

    @property
    def receipt(self) -> Receipt | None:
        """None before the agent has it."""
        match self.state:
            case TurnState.ACCEPTED | TurnState.QUEUED:
                return None
            case TurnState.DELIVERED | TurnState.WORKING:
                return Receipt.SEEN
            case TurnState.WAITING:
                return Receipt.WAITS
            case TurnState.DONE:
                return Receipt.DONE
            case _:
                return Receipt.TROUBLE


@dataclass(frozen=True)
class Process:
    """One run of an agent's program in a machine. `folder` is never used twice. `restarts` are the machine's when it
    began: after another restart it can't be running. `offset`: how many bytes of its output are handled."""

    id: ProcessId
    conversation_id: ConversationId
    sandbox_id: SandboxId
    machine_id: MachineId
    restarts: int
    folder: str
    started_at: datetime
    session: str = ""  # the agent's own id of the session; empty until it gave one
    can_load: bool = False  # whether the agent can load an earlier session
    offset: int = 0
    ended_at: datetime | None = None
    ended: str = ""  # why


class Channel(StrEnum):
    """How an agent that works elsewhere gets its messages."""

    WEBHOOK = "webhook"  # ravebot sends them
    INBOX = "inbox"  # the agent takes them


class DeliveryKind(StrEnum):
    """What an agent that works elsewhere is told of a turn."""

    MESSAGE = "message"
    CANCELLED = "cancelled"  # by webhook only; who takes its messages learns it when it answers


@dataclass(frozen=True)
class AgentDelivery:
    """What an agent that works elsewhere is given of a turn, under one id, however often it is sent or taken.

    `id`: random, so that not even a restored backup repeats it. `body`: the JSON that is given, kept until the turn is
    over. `accepted_at`: since when the agent has it (it answered a webhook with 2xx, acknowledged, or said something);
    `settled_at`: since when it is not given again. `leased_until`: until when nobody else may take it. `tries`: how
    often it was sent or taken. `sending_at`: when an attempt began whose outcome is not known yet; `doubtful`: an
    attempt had no clear outcome, so that the agent may have it. `problem`: why the last attempt failed.
    """

    id: DeliveryId
    turn_id: TurnId
    kind: DeliveryKind
    agent: str
    channel: Channel
    body: str
    created_at: datetime
    accepted_at: datetime | None = None
    settled_at: datetime | None = None
    leased_until: datetime | None = None
    tries: int = 0
    next_try_at: datetime | None = None
    sending_at: datetime | None = None
    doubtful: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Approval:
    """One question to a person. `payload` is JSON: the whole of what is asked; `payload_hash` its SHA-256, to which an
    answer is bound, as to `head_sha`. `only_by`: the one Matrix user who may answer; empty: whoever has the right.
    `place`, `thread`: where it is shown; `event_id`: the message or note that shows it, once sent. `outcome`: what came
    of it, once it was carried out (`done_at`), or why it is not asked any more."""

    id: ApprovalId
    kind: ApprovalKind
    state: ApprovalState
    title: str
    payload: str
    payload_hash: str
    asked_by: Actor
    door: AgentDoor
    place: str
    thread: str
    created_at: datetime
    expires_at: datetime
    salt: str  # a part that a restored backup can't repeat
    mr: MergeRequestRef | None = None
    sandbox_id: SandboxId | None = None
    turn_id: TurnId | None = None
    conversation_id: ConversationId | None = None
    head_sha: str = ""
    only_by: str = ""
    event_id: str = ""
    decided_at: datetime | None = None
    decided_by: Actor | None = None
    attempted_at: datetime | None = None  # since when its carrying out may be under way
    done_at: datetime | None = None
    outcome: str = ""
    tries: int = 0
    next_try_at: datetime | None = None  # of its carrying out, after one that was not answered
    hinted_at: datetime | None = None  # when somebody without the right was told who may answer


@dataclass(frozen=True)
class ShownTurn:
    """What a door shows of a turn: the event of its answer, and the receipt on the person's message."""

    turn_id: TurnId
    answer_event: str = ""
    shown: str = ""  # digest of what the answer's event shows
    edits: int = 0
    edited_at: datetime | None = None
    receipt: str = ""
    receipt_event: str = ""
