"""Makes, lists and revokes tokens for the API; what one may is checked against the configuration when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ravebot.agents import registry
from ravebot.commands.people import People
from ravebot.config.model import Config
from ravebot.config.patterns import patterns_overlap
from ravebot.config.values import LONGEST
from ravebot.errors import Refused
from ravebot.operations.tokens.reports import TokenLine, TokenMade
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor
from ravebot.store import api_tokens
from ravebot.store.api_tokens import ApiToken, Scope, TokenId
from ravebot.store.database import Database, Transaction
from ravebot.tools import tokens


@dataclass(frozen=True)
class TokenOperator:
    """Implements `operations.tokens.reports.TokenOperations`."""

    config: Config
    database: Database
    people: People

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
        """Make a token; its owner must be a user of GitLab."""
        self._check(owner, scopes, projects, agent, expires)
        person = await self.people.gitlab.user(owner)
        if person is None:
            raise Refused(f"GitLab has no user {owner}: write the owner's user name, without the @.")
        text = tokens.new()
        token_hash = tokens.hash_of(text)
        assert token_hash

        def make(tx: Transaction) -> ApiToken:
            fresh = ApiToken(
                id=TokenId(0),
                owner=person.username,
                name=name,
                scopes=tuple(scope.value for scope in Scope if scope.value in scopes),
                projects=tuple(dict.fromkeys(projects)),
                agent=agent,
                created_at=tx.now,
                created_by=str(actor),
                expires_at=tx.now + expires,
            )
            return api_tokens.add(tx, fresh, token_hash, actor)

        made = await self.database.write(make)
        remarks: tuple[str, ...] = ()
        if self.config.api.address is None:
            remarks = ("Nobody can use it yet: api.listen is not set in the configuration.",)
        return TokenMade(_line(made, ""), text, remarks)

    async def tokens(self) -> tuple[TokenLine, ...]:
        """Every token, the newest first."""
        return await self.database.read(
            lambda tx: tuple(_line(one, one.problem(tx.now)) for one in api_tokens.listed(tx))
        )

    async def revoke_token(self, token: int, actor: Actor) -> Outcome:
        """End a token for good."""

        def revoke(tx: Transaction) -> Outcome:
            found = api_tokens.get(tx, TokenId(token))
            if found is None:
                return Outcome(False, f"There is no token {token}: `ravebot token list` shows which exist.")
            if api_tokens.revoke(tx, found, actor):
                return Outcome(True, f"Token {token} ({found.name}) is revoked: it is not valid from now on.")
            return Outcome(True, f"Token {token} ({found.name}) was revoked before.")

        return await self.database.write(revoke)

    def _check(
        self, owner: str, scopes: tuple[str, ...], projects: tuple[str, ...], agent: str, expires: timedelta
    ) -> None:
        there = {scope.value for scope in Scope}
        if not scopes or not set(scopes) <= there:
            raise Refused(f"A token needs at least one of the scopes {', '.join(sorted(there))}.")
        if not projects:
            raise Refused("A token needs at least one project, like group/app, or a pattern like group/*.")
        for project in projects:
            if not patterns_overlap((project,), self.config.gitlab.projects):
                served = ", ".join(self.config.gitlab.projects)
                raise Refused(f"{project} is not among gitlab.projects, so the token could do nothing there: {served}.")
        if not timedelta(0) < expires <= LONGEST:
            raise Refused("A token ends after at most a year: write a time like 30d, 90d or 365d.")
        if (Scope.AGENT.value in scopes) != bool(agent):
            raise Refused("A token with the scope agent is for one agent: give both --scope agent and --agent NAME.")
        known = registry.find(self.config, agent) if agent else None
        if agent and known is None:
            names = ", ".join(sorted(registry.names(self.config))) or "none is configured"
            raise Refused(f"No agent called {agent} can be spoken to. There are: {names}.")
        if known and known.acp is not None:
            raise Refused(f"{agent} works in sandboxes, and takes its messages there: it needs no token.")
        if known and known.owner != owner:
            raise Refused(f"{agent} is {known.owner}'s: write --owner {known.owner}, or change agents[].owner.")


def _line(token: ApiToken, problem: str) -> TokenLine:
    return TokenLine(
        token.id,
        token.owner,
        token.name,
        token.scopes,
        token.projects,
        token.agent,
        token.created_at,
        token.created_by,
        token.expires_at,
        token.used_at,
        problem,
    )
