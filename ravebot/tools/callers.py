"""Who calls a tool: somebody with a token, or an agent in a sandbox, whose socket says which."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.sandboxes.model import Actor, SandboxId
from ravebot.store import api_tokens
from ravebot.store.api_tokens import ApiToken
from ravebot.store.database import Transaction
from ravebot.tools.problems import ProblemKind, ToolProblem

HOW_TO_GET_ONE = "Its owner, or an admin of ravebot, makes a new one with `ravebot token create`."


@dataclass(frozen=True)
class TokenCaller:
    """`token`: as it was when the call came in."""

    token: ApiToken

    @property
    def actor(self) -> Actor:
        """In whose name it acts."""
        return Actor("gitlab", self.token.owner)

    def recheck(self, tx: Transaction) -> None:
        """Raises ToolProblem if the token was revoked, or ended, while its call was prepared."""
        found = api_tokens.get(tx, self.token.id)
        problem = found.problem(tx.now) if found else "is gone"
        if problem:
            raise ToolProblem(ProblemKind.NO_TOKEN, f"The token {problem}. {HOW_TO_GET_ONE}")

    @property
    def marks(self) -> dict[str, object]:
        """What the event of an act says of the caller."""
        return {"token": self.token.id}


@dataclass(frozen=True)
class SandboxCaller:
    """Whatever runs in that sandbox; nothing that it says of itself is believed."""

    sandbox_id: SandboxId


Caller = TokenCaller | SandboxCaller
