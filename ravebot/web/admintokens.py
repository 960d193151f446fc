"""What the admin socket answers about tokens, and the shell's side of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from aiohttp import web
from pydantic import Field, TypeAdapter

from ravebot.config.values import ProjectPattern
from ravebot.operations.tokens.reports import TokenLine, TokenMade, TokenOperations
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor
from ravebot.web.admin import AdminQuestion, ask, route

_LARGEST_ID = 2**63 - 1


class CreateTokenQuestion(AdminQuestion):
    owner: str = Field(min_length=1, max_length=255)
    name: str = Field(min_length=1, max_length=100)
    scopes: tuple[Annotated[str, Field(max_length=20)], ...] = Field(max_length=10)
    projects: tuple[ProjectPattern, ...] = Field(max_length=100)
    agent: str = Field("", max_length=50)
    expires: timedelta


class RevokeTokenQuestion(AdminQuestion):
    token: int = Field(ge=1, le=_LARGEST_ID)


_MADE = TypeAdapter(TokenMade)
_LINES = TypeAdapter(tuple[TokenLine, ...])
_OUTCOME = TypeAdapter(Outcome)


def add_routes(app: web.Application, operations: TokenOperations) -> None:
    """One POST route per question, as in `admin.make_app`."""

    async def create(asked: CreateTokenQuestion, actor: Actor) -> TokenMade:
        return await operations.create_token(**dict(asked), actor=actor)

    async def listed(_: AdminQuestion, __: Actor) -> tuple[TokenLine, ...]:
        return await operations.tokens()

    async def revoke(asked: RevokeTokenQuestion, actor: Actor) -> Outcome:
        return await operations.revoke_token(asked.token, actor)

    app.router.add_post("/token/create", route(CreateTokenQuestion, create))
    app.router.add_post("/tokens", route(AdminQuestion, listed))
    app.router.add_post("/token/revoke", route(RevokeTokenQuestion, revoke))


@dataclass(frozen=True)
class TokenClient:
    """`TokenOperations` over the socket. Raises NotRunningError, Forbidden, Refused or Unavailable."""

    path: Path

    async def create_token(
        self,
        *,
        owner: str,
        name: str,
        scopes: tuple[str, ...],
        projects: tuple[str, ...],
        agent: str,
        expires: timedelta,
    ) -> TokenMade:
        question = CreateTokenQuestion(
            owner=owner, name=name, scopes=scopes, projects=projects, agent=agent, expires=expires
        )
        return await ask(self.path, "token/create", question, _MADE)

    async def tokens(self) -> tuple[TokenLine, ...]:
        return await ask(self.path, "tokens", AdminQuestion(), _LINES)

    async def revoke_token(self, token: int) -> Outcome:
        return await ask(self.path, "token/revoke", RevokeTokenQuestion(token=token), _OUTCOME)
