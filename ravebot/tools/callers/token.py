"""A caller with a token: it may what its scopes say, in its projects, and never more than its owner may now.

Scopes and patterns are looked at first: they say nothing of what exists. Then GitLab is asked for the owner's role.
"""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.commands import refs
from ravebot.commands.refs import Ref
from ravebot.config.patterns import matches_project
from ravebot.errors import Forbidden, NotFound
from ravebot.sandboxes.model import Actor, MergeRequest
from ravebot.store import api_tokens
from ravebot.store.api_tokens import ApiToken, Scope
from ravebot.store.database import Transaction
from ravebot.tools.callers.contract import CallerKind, Reached
from ravebot.tools.limits import CallRate
from ravebot.tools.problems import ProblemKind, ToolProblem
from ravebot.tools.shapes import Me
from ravebot.tools.workbench import Workbench

HOW_TO_GET_ONE = "Its owner, or an admin of ravebot, makes a new one with `ravebot token create`."
_ACTS = CallRate(burst=60, per_second=2)


@dataclass(frozen=True)
class TokenCaller:
    """`token`: as it was when the call came in."""

    token: ApiToken
    kind = CallerKind.TOKEN
    sandbox_id = None

    @property
    def name(self) -> str:
        return str(self.token.id)

    def lacks(self, scope: Scope) -> str:
        if self.token.has(scope):
            return ""
        make = f"Make one with `ravebot token create … --scope {scope.value}`."
        return f"needs a token with the scope {scope.value}. {make}"

    def act_rate(self, _: Scope | None) -> CallRate:
        return _ACTS

    async def me(self, _: Workbench) -> Me:
        token = self.token
        return Me(
            owner=token.owner,
            token=token.name,
            scopes=token.scopes,
            projects=token.projects,
            agent=token.agent,
            expires_at=token.expires_at,
            sandbox="",
        )

    async def reach(self, bench: Workbench, written: str, *, acts: bool = False) -> Reached:
        try:
            ref = refs.read_full(written)
        except ValueError as error:
            raise ToolProblem(ProblemKind.INVALID, str(error)) from error
        self._must_match(bench, ref)
        try:
            mr = await bench.people.merge_request(ref)
            decision = await bench.people.may_still(self.token.actor, mr.ref.project_id, mr.project_path)
            is_member = decision.allowed or await bench.people.level(self.token.owner, mr.ref.project_id) > 0
        except (NotFound, Forbidden):
            raise _missing(ref) from None
        if not is_member:  # what they can't see on GitLab is not told here
            raise _missing(ref)
        if not matches_project(self.token.projects, mr.project_path):  # it was moved
            raise _missing(ref)
        if not decision.allowed and not acts:
            raise ToolProblem(ProblemKind.FORBIDDEN, decision.refusal)
        return Reached(mr, self.token.actor, decision)

    async def may_see(self, bench: Workbench, mr: MergeRequest) -> bool:
        if not matches_project(self.token.projects, mr.project_path) or not bench.config.serves(mr.project_path):
            return False
        try:
            decision = await bench.people.may_still(self.token.actor, mr.ref.project_id, mr.project_path)
        except (NotFound, Forbidden):
            return False
        return decision.allowed

    def recheck(self, tx: Transaction) -> None:
        found = api_tokens.get(tx, self.token.id)
        problem = found.problem(tx.now) if found else "is gone"
        if problem:
            raise ToolProblem(ProblemKind.NO_TOKEN, f"The token {problem}. {HOW_TO_GET_ONE}")

    def acting(self, tx: Transaction, _: Reached | None) -> Actor:
        self.recheck(tx)
        return self.token.actor

    def marks(self, _: Reached | None) -> dict[str, object]:
        return {"token": self.token.id}

    def _must_match(self, bench: Workbench, ref: Ref) -> None:
        """Raises ToolProblem where the token's patterns, or ravebot's own, do not name the project."""
        if not matches_project(self.token.projects, ref.project_path):
            reaches = ", ".join(self.token.projects)
            why = f"This token does not reach {ref.project_path}: it is for {reaches}. Make one with --project for it."
            raise ToolProblem(ProblemKind.FORBIDDEN, why)
        if not bench.config.serves(ref.project_path):
            why = f"ravebot does not serve {ref.project_path}: an admin can add it to gitlab.projects."
            raise ToolProblem(ProblemKind.FORBIDDEN, why)


def _missing(ref: Ref) -> ToolProblem:
    return ToolProblem(ProblemKind.NOT_FOUND, refs.missing(ref))
