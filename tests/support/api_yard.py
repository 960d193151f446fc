"""The API over a pool that is run step by step: real HTTP, SQLite and GitLab's client against the stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp

from ravebot.agents.allowed import StillAllowed
from ravebot.agents.answers import AgentAnswers
from ravebot.agents.elsewhere import ElsewhereTurns
from ravebot.agents.model import Conversation, Turn, TurnId
from ravebot.agents.reception import Reception
from ravebot.agents.rights import ChainRights
from ravebot.commands.people import People
from ravebot.commands.permissions import Decision
from ravebot.config.model import ApiConfig, Config
from ravebot.gitlab.client import GitLab
from ravebot.operations.tokens.operator import TokenOperator
from ravebot.operations.tokens.reports import TokenMade
from ravebot.parts import make_diffs
from ravebot.sandboxes.model import Actor, MergeRequest, MergeRequestRef
from ravebot.store import conversations
from ravebot.store.database import Transaction
from ravebot.tools.calls import ActLimits, ToolCalls
from ravebot.tools.limits import Buckets, CallRate
from ravebot.tools.workbench import Workbench
from ravebot.web.api.gate import REQUESTS, Gate
from ravebot.web.api.server import serve_api
from tests.support.agent_yard import AgentYard, an_agent, an_agent_yard
from tests.support.gitlab import DEVELOPER, GUEST, MAINTAINER, GitLabServer, Project, User

ROOT = Actor("shell", "root")
HELPER = an_agent("helper", acp=None, inbox=True)
"""It works elsewhere."""
ALL = ("read", "sandbox", "run", "message")


@dataclass(frozen=True)
class Heard:
    """An answer of the API."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass
class ApiYard:
    """What tests of the API work with. In `group/app` alice is a Developer and gina a Guest; bob only in
    `group/secret`."""

    world: AgentYard
    server: GitLabServer
    gitlab: GitLab
    people: People
    bench: Workbench
    calls: ToolCalls
    gate: Gate
    tokens: TokenOperator
    url: str
    session: aiohttp.ClientSession
    app: Project
    secret: Project
    users: dict[str, User]
    mr: MergeRequest
    hidden: MergeRequest

    async def token(self, owner: str = "alice", scopes: tuple[str, ...] = ALL, **facts: Any) -> TokenMade:
        """A new token."""
        known: dict[str, Any] = {
            "name": "test", "projects": ("group/*",), "agent": "", "expires": timedelta(days=90), "actor": ROOT,
        }  # fmt: skip
        return await self.tokens.create_token(owner=owner, scopes=scopes, **{**known, **facts})

    async def ask(
        self,
        method: str,
        path: str,
        token: TokenMade | str | None = None,
        *,
        json: Any = None,
        key: str = "",
        **more: Any,
    ) -> Heard:
        headers = dict(more.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token if isinstance(token, str) else token.text}"
        if key:
            headers["Idempotency-Key"] = key
        async with self.session.request(method, f"{self.url}{path}", json=json, headers=headers, **more) as answer:
            body = await answer.json(content_type=None) if await answer.read() else None
            return Heard(answer.status, body, answer.headers)

    async def get(self, path: str, token: TokenMade | str | None = None, **more: Any) -> Heard:
        return await self.ask("GET", f"/api/v1{path}", token, **more)

    async def post(self, path: str, token: TokenMade | str | None = None, json: Any = None, **more: Any) -> Heard:
        return await self.ask("POST", f"/api/v1{path}", token, json=json, **more)

    async def open_merge_request(self, title: str = "Another one", *, project: Project | None = None) -> MergeRequest:
        where = project or self.app
        opened = self.server.open_merge_request(where, self.users["alice"], title, f"branch-{title.replace(' ', '-')}")
        return await self.gitlab.merge_request(MergeRequestRef(where.id, opened.iid))

    async def still_may(self, turn_id: TurnId) -> Decision:
        """What is looked up right before a turn is given to its agent."""

        def find(tx: Transaction) -> tuple[Conversation, Turn]:
            turn = conversations.turn(tx, turn_id)
            conversation = conversations.get(tx, turn.conversation_id) if turn else None
            assert turn
            assert conversation
            return conversation, turn

        found = await self.world.yard.read(find)
        return await ChainRights(self.bench.config, self.world.yard.database, self.people).still_may(*found)

    async def ready(self, mr: MergeRequest | None = None) -> None:
        await self.world.yard.make_ready(mr or self.mr)


def a_workbench(world: AgentYard, config: Config, people: People, gitlab: GitLab) -> Workbench:
    """The parts that tools work with."""
    yard, turns = world.yard, ElsewhereTurns(config, world.progress)
    may_give = ChainRights(config, yard.database, people).still_may
    return Workbench(
        config, yard.database, people, yard.intents, yard.views, Reception(config, people, world.desk),
        make_diffs(config, yard.database, yard.provider, gitlab),
        AgentAnswers(config, yard.database, turns, StillAllowed(yard.database, turns.give_up, may_give)),
    )  # fmt: skip


@asynccontextmanager
async def an_api_yard(
    folder: Path, rate: CallRate = REQUESTS, gitlab_server: GitLabServer | None = None
) -> AsyncIterator[ApiYard]:
    """The API on loopback; nothing runs by itself but the server. `rate`: of each token; `gitlab_server`: it goes on
    when this ends."""
    there = nullcontext(gitlab_server) if gitlab_server else GitLabServer()
    async with there as server, an_agent_yard(folder, an_agent(), HELPER) as world:
        bot = server.add_user("ravebot")
        users = {name: server.add_user(name) for name in ("alice", "bob", "gina")}
        app, secret = server.add_project("group/app"), server.add_project("group/secret")
        for project in (app, secret):
            server.set_role(project, bot, MAINTAINER)
        server.set_role(app, users["alice"], DEVELOPER)
        server.set_role(app, users["gina"], GUEST)
        server.set_role(secret, users["bob"], DEVELOPER)
        gitlab = GitLab(server.url, server.token_for(bot), world.yard.clock, 5)
        api = ApiConfig.model_construct(listen="127.0.0.1:0")
        config = world.config.model_copy(update={"api": api})
        yard = world.yard
        people = People(config, yard.database, gitlab)
        bench = a_workbench(world, config, people, gitlab)
        acts = ActLimits(rate) if rate is not REQUESTS else ActLimits()
        calls, gate = ToolCalls(bench, acts), Gate(yard.database, Buckets(rate))
        tokens = TokenOperator(config, yard.database, people)
        try:
            async with (
                serve_api(api, calls, gate) as (host, port),
                aiohttp.ClientSession() as session,
            ):
                opened = server.open_merge_request(app, users["alice"], "Add a feature", "feature")
                concealed = server.open_merge_request(secret, users["bob"], "Hide", "feature")
                mr = await gitlab.merge_request(MergeRequestRef(app.id, opened.iid))
                hidden = await gitlab.merge_request(MergeRequestRef(secret.id, concealed.iid))
                yield ApiYard(
                    world, server, gitlab, people, bench, calls, gate, tokens, f"http://{host}:{port}", session,
                    app, secret, users, mr, hidden,
                )  # fmt: skip
        finally:
            await gitlab.close()
