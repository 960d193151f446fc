"""What a caller of tools is to them, whatever kind it is: who it is, what it reaches, and what it may there now.

A further kind is a value of `CallerKind`, a class that implements `Caller`, and the tools whose row names the kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ravebot.agents.model import TurnId
from ravebot.commands.permissions import Decision
from ravebot.sandboxes.model import Actor, MergeRequest, SandboxId
from ravebot.store.api_tokens import ApiToken, Scope
from ravebot.store.database import Transaction
from ravebot.tools.limits import CallRate
from ravebot.tools.problems import ProblemKind, ToolProblem
from ravebot.tools.shapes import Me
from ravebot.tools.workbench import Workbench


class CallerKind(Enum):
    """The kinds; the value says where they ask, for a refusal."""

    TOKEN = "with a token"  # noqa: S105 - no password
    SANDBOX = "in sandboxes"


@dataclass(frozen=True)
class Reached:
    """A merge request, in whose name something is done there, and whether that is allowed.

    `turns`: of agents, by which it is allowed.
    """

    mr: MergeRequest
    actor: Actor
    decision: Decision
    turns: frozenset[TurnId] = frozenset()


class Caller(Protocol):
    """Whoever calls a tool."""

    @property
    def kind(self) -> CallerKind:
        """Which tools it is offered."""

    @property
    def name(self) -> str:
        """By which its calls are counted, among its kind."""

    @property
    def token(self) -> ApiToken | None:
        """The token that it came with, as it was then; None: it needs none."""

    @property
    def sandbox_id(self) -> SandboxId | None:
        """The one sandbox that there is for it; None: there may be others."""

    def lacks(self, scope: Scope) -> str:
        """Why it may not what has that scope, and what to do, in a sentence; empty: it may."""

    def act_rate(self, scope: Scope | None) -> CallRate:
        """How often it may act with tools of that scope."""

    async def me(self, bench: Workbench) -> Me:
        """What it is told of itself."""

    async def reach(self, bench: Workbench, written: str, *, acts: bool = False) -> Reached:
        """The merge request that is meant. Raises ToolProblem where it is out of reach, and as GitLab answers.

        For a look, the decision is always a yes; of an act, the caller records a refusal.
        """

    async def may_see(self, bench: Workbench, mr: MergeRequest) -> bool:
        """Whether it may look at what is known of a merge request. Raises Unavailable."""

    def recheck(self, tx: Transaction) -> None:
        """Raises ToolProblem if it may call nothing any more since its call began."""

    def acting(self, tx: Transaction, reached: Reached | None) -> Actor:
        """In whose name an act is done, in the transaction that does it; `reached`: what was found when it was
        prepared. Raises ToolProblem if that does not hold any more."""

    def marks(self, reached: Reached | None) -> dict[str, object]:
        """What the event of an act says of it."""


def token_of(caller: Caller) -> ApiToken:
    """Of a caller that came with one. Raises ToolProblem."""
    if caller.token is None:
        raise ToolProblem(ProblemKind.FORBIDDEN, "This is only for callers with a token.")
    return caller.token
