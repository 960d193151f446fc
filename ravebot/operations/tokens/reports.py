"""What the shell asks the running bot about tokens, and the answers, which cross the admin socket as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from ravebot.sandboxes.model import Actor

if TYPE_CHECKING:
    from ravebot.sandboxes.intents import Outcome


@dataclass(frozen=True)
class TokenLine:
    """One token in `ravebot token list`; `problem`: why it is not valid any more, empty: it is."""

    id: int
    owner: str
    name: str
    scopes: tuple[str, ...]
    projects: tuple[str, ...]
    agent: str
    created_at: datetime
    created_by: str
    expires_at: datetime
    used_at: datetime | None
    problem: str


@dataclass(frozen=True)
class TokenMade:
    """A new token, which is told this once."""

    line: TokenLine
    text: str = field(repr=False)
    remarks: tuple[str, ...] = ()


class TokenOperations(Protocol):
    """The shell's requests about tokens. Raises `Refused` with a text for the person who asked."""

    async def create_token(
        self,
        *,
        owner: str,
        name: str,
        scopes: tuple[str, ...],
        projects: tuple[str, ...],
        agent: str,
        expires: timedelta,
        actor: Actor,
    ) -> TokenMade:
        """Make a token."""

    async def tokens(self) -> tuple[TokenLine, ...]:
        """Every token, the newest first."""

    async def revoke_token(self, token: int, actor: Actor) -> Outcome:
        """End a token for good."""
