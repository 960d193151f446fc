"""What the shell asks the running bot about agents, and the answers, which cross the admin socket as JSON.

Texts of people and agents are untrusted: they are cleaned where they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from ravebot.sandboxes.model import Actor

if TYPE_CHECKING:
    from ravebot.sandboxes.intents import Outcome


@dataclass(frozen=True)
class AgentSummary:
    """One agent in `ravebot agent list`."""

    name: str
    owner: str
    projects: tuple[str, ...]
    paused_by: str  # who paused it; empty: it is not paused
    open_turns: int
    dead_letters: int
    messages_today: int
    messages_per_day: int
    tokens_today: int = 0
    tokens_per_day: int = 0  # 0: it uses no models through ravebot


@dataclass(frozen=True)
class TurnLine:
    """One turn, as people read it; `ref` is empty for one without a merge request."""

    id: int
    agent: str
    ref: str
    door: str
    asked_by: str
    state: str
    why: str
    text: str  # how the message begins
    attempt: int
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True)
class PausedConversation:
    """A conversation to which nothing is given until a person speaks in it."""

    ref: str
    door: str
    why: str


@dataclass(frozen=True)
class AgentReport:
    """`ravebot agent show`; `turns` has the newest first."""

    line: AgentSummary
    command: tuple[str, ...]  # of one that works in the sandbox
    reached: str  # how one that works elsewhere gets its messages; empty: it works in the sandbox
    approve: tuple[str, ...]
    forks: bool
    turn_limit: timedelta
    paused_conversations: tuple[PausedConversation, ...]
    turns: tuple[TurnLine, ...]


@dataclass(frozen=True)
class ApprovalLine:
    """A question to people. `payload`: the whole of what is asked, as JSON."""

    id: int
    kind: str
    state: str
    title: str
    payload: str
    ref: str
    asked_by: str
    created_at: datetime
    expires_at: datetime
    decided_by: str
    outcome: str


@dataclass(frozen=True)
class TurnAsked:
    """What came of a message or of sending one again: the turn that it made, if it was taken."""

    accepted: bool
    message: str
    turn: int | None = None


@dataclass(frozen=True)
class TurnHeard:
    """What is new of a turn since `offset`, which counts characters of the whole answer.

    `left_out`: characters before `text` that were not kept, because the answer is too long. `questions`: the open ones.
    """

    state: str
    over: bool
    ok: bool
    why: str
    status: str
    text: str
    left_out: int
    offset: int
    questions: tuple[ApprovalLine, ...] = ()


class CheckResult(StrEnum):
    """How a step of `ravebot agent check` went."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class CheckStep:
    """One step of a trial. `fix`: what to do, if it failed."""

    name: str
    result: CheckResult
    detail: str
    seconds: float
    fix: str = ""


@dataclass(frozen=True)
class CheckProgress:
    """The steps that ended so far, the one under way, and whether the trial is over."""

    steps: tuple[CheckStep, ...]
    under_way: str
    over: bool


class AgentOperations(Protocol):
    """The shell's requests about agents. Raises `Refused` with a text for the person who asked."""

    async def agents(self) -> tuple[AgentSummary, ...]:
        """Every agent that can be spoken to."""

    async def agent(self, name: str) -> AgentReport:
        """One agent, and its newest turns."""

    async def pause(self, name: str, paused: bool, actor: Actor) -> Outcome:
        """Give nothing to an agent any more, or go on."""

    async def send(self, name: str, ref: str, text: str, actor: Actor) -> TurnAsked:
        """Say something to an agent about a merge request."""

    async def hear(self, turn: int, offset: int, actor: Actor) -> TurnHeard:
        """What is new of a turn."""

    async def dead(self) -> tuple[TurnLine, ...]:
        """The dead letters, the newest first."""

    async def resend(self, turn: int, actor: Actor) -> TurnAsked:
        """Give a dead letter's message to its agent once more."""

    async def drop(self, turn: int, actor: Actor) -> Outcome:
        """Take a dead letter off the list."""

    async def approvals(self, everything: bool) -> tuple[ApprovalLine, ...]:
        """The open questions; with `everything` also the newest of those that are answered."""

    async def decide(self, approval: int, yes: bool, actor: Actor) -> Outcome:
        """Answer a question."""

    async def start_check(self, name: str, ref: str, prompt: str, actor: Actor) -> int:
        """Begin a trial of an agent in a merge request's sandbox; returns its number."""

    async def check_progress(self, check: int) -> CheckProgress:
        """How far a trial is."""
