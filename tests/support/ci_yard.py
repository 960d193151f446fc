"""The door for CI jobs over a pool that is run step by step: real HTTP, SQLite and GitLab's client and the stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from ravebot.gitlab.ci.keys import JobKeys
from ravebot.gitlab.ci.places import JobPlaces
from ravebot.gitlab.ci.tokens import JobTokens
from ravebot.gitlab.client import GitLab
from ravebot.sandboxes.model import MergeRequest as StoredMergeRequest
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.sandboxes.projectfiles import ProjectFiles
from ravebot.web.ci.door import ImageNews, JobDoor
from ravebot.web.ci.gate import JobGate
from ravebot.web.ci.routes import JobRoutes
from ravebot.web.server import serve
from tests.support.gitlab import DEVELOPER, GitLabServer, Job, MergeRequest, Project, User
from tests.support.yard import Yard, a_yard

AUDIENCE = "https://rave.example.org"


@dataclass(frozen=True)
class JobHeard:
    """An answer of the door; `log` as its own lines."""

    status: int
    facts: Mapping[str, str]
    log: list[str]
    headers: Mapping[str, str]

    @property
    def state(self) -> str:
        return self.facts.get("state", "")

    @property
    def error(self) -> str:
        return self.facts.get("error", "")

    @property
    def reason(self) -> str:
        return self.facts.get("reason", "")


@dataclass
class Ticking:
    """A monotonic clock that tests move."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class CiYard:
    """What tests of the door work with. In `group/app` alice and ravebot are Developers."""

    yard: Yard
    server: GitLabServer
    gitlab: GitLab
    url: str
    session: aiohttp.ClientSession
    ticking: Ticking
    app: Project
    alice: User
    bot: User
    mr: MergeRequest
    looked: list[tuple[int, str]] = field(default_factory=list)
    stop_serving: Callable[[], Awaitable[None]] = field(init=False)

    def job(self, mr: MergeRequest | None = None, name: str = "review", **how: Any) -> Job:
        """A running job of a new pipeline of a merge request."""
        return self.server.start_job(self.server.run_pipeline(mr or self.mr, **how).job(name))

    def token(self, job: Job, **claims: Any) -> str:
        return self.server.id_token(job, claims.pop("aud", AUDIENCE), **claims)

    async def ask(self, method: str, path: str, token: Job | str | None, **more: Any) -> JobHeard:
        headers = dict(more.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {self.token(token) if isinstance(token, Job) else token}"
        async with self.session.request(method, f"{self.url}/api/v1/ci{path}", headers=headers, **more) as answer:
            lines = [line.partition("=")[::2] for line in (await answer.text()).splitlines()]
            facts = {name: value for name, value in lines if name != "log"}
            return JobHeard(answer.status, facts, [text for name, text in lines if name == "log"], answer.headers)

    async def get(self, token: Job | str | None, query: str = "", **more: Any) -> JobHeard:
        return await self.ask("GET", f"/sandbox{query}", token, **more)

    async def post(self, path: str, token: Job | str | None, **more: Any) -> JobHeard:
        return await self.ask("POST", path, token, **more)

    async def stored(self, mr: MergeRequest | None = None) -> StoredMergeRequest:
        """A merge request as our client reads it."""
        of = mr or self.mr
        return await self.gitlab.merge_request(MergeRequestRef(of.project.id, of.iid))

    async def ready(self, mr: MergeRequest | None = None) -> None:
        await self.yard.make_ready(await self.stored(mr))

    async def reaches(self, state: str) -> None:
        """Pass after pass, until the sandbox is in that state."""
        mr = await self.stored()
        await self.yard.until(lambda: self.yard.is_in(mr, state))

    def calls(self, part: str = "") -> int:
        """How many requests GitLab had whose path has that."""
        return sum(part in request.path for request in self.server.requests)


@asynccontextmanager
async def a_ci_yard(
    folder: Path, *, server: GitLabServer | None = None, images: ImageNews | None = None, **changes: Any
) -> AsyncIterator[CiYard]:
    """`server`: it goes on when this ends; then its merge request 1 and users are taken."""
    if server is None:
        async with GitLabServer() as fresh, a_ci_yard(folder, server=fresh, images=images, **changes) as made:
            yield made
        return
    if not server.state.projects:
        alice, bot = server.add_user("alice"), server.add_user("ravebot", bot=True)
        app = server.add_project("group/app")
        for user in (alice, bot):
            server.set_role(app, user, DEVELOPER)
        server.open_merge_request(app, alice)
    users = [server.state.user_named(name) for name in ("alice", "ravebot")]
    assert users[0] and users[1]
    mr = server.state.merge_requests[0]
    changes["gitlab"] = {"url": server.url, "ci": {"audience": AUDIENCE}, **changes.get("gitlab", {})}
    async with a_yard(folder, **changes) as yard, aiohttp.ClientSession() as session:
        yard.clock.advance(datetime.now(UTC) - yard.clock.now())
        gitlab, ticking = GitLab(server.url, server.token_for(users[1]), yard.clock, 5), Ticking()
        made = CiYard(yard, server, gitlab, "", session, ticking, mr.project, users[0], users[1], mr)

        async def look_now(project_id: int, path: str) -> None:
            made.looked.append((project_id, path))

        tokens = JobTokens(JobKeys(gitlab.ci.keys, ticking), server.url, AUDIENCE, yard.clock)
        places = JobPlaces(yard.config, gitlab.ci, ticking)
        files = ProjectFiles(yard.database, gitlab)
        door = JobDoor(yard.config, yard.database, places, files, yard.intents, yard.views, look_now, images)
        app_ = web.Application()
        JobRoutes(door, JobGate(tokens)).add_to(app_)
        try:
            async with AsyncExitStack() as stack:
                host, port = await stack.enter_async_context(serve(app_, "127.0.0.1", 0))
                made.url, made.stop_serving = f"http://{host}:{port}", stack.aclose
                yield made
        finally:
            await gitlab.close()
