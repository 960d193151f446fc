"""A GitLab and a yard, with what shows sandboxes there as environments: what the tests of environments share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import ClientSession

from ravebot.gitlab.client import GitLab
from ravebot.notify.environments.loop import EnvironmentLoop
from ravebot.notify.environments.steps import EnvironmentSteps
from ravebot.notify.environments.stops import EnvironmentStops
from ravebot.sandboxes.model import MergeRequest as KnownMergeRequest
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import environments
from ravebot.store.database import Database, Transaction
from tests.support.gitlab import DEVELOPER, GitLabServer, MergeRequest, Project, User
from tests.support.gitlab.state import Environment
from tests.support.records import World
from tests.support.yard import Yard, a_yard

T = TypeVar("T")


@dataclass
class Show:
    """A GitLab and a yard, with what shows sandboxes there."""

    server: GitLabServer
    yard: Yard
    gitlab: GitLab
    project: Project
    alice: User
    bot: User

    def loop(self, database: Database | None = None) -> EnvironmentLoop:
        steps = EnvironmentSteps(self.yard.config, self.gitlab.environments)
        return EnvironmentLoop(database or self.yard.database, self.yard.views, self.yard.lifecycle, steps, 0)

    def stops(self) -> EnvironmentStops:
        return EnvironmentStops(
            self.yard.config, self.yard.database, self.gitlab.environments, self.yard.lifecycle, self.yard.clock
        )

    async def open(self, branch: str = "feature", **more: Any) -> tuple[MergeRequest, KnownMergeRequest]:
        mr = self.server.open_merge_request(self.project, self.alice, "Add a feature", branch, **more)
        return mr, await self.known(mr)

    async def ready(self) -> tuple[MergeRequest, KnownMergeRequest]:
        """One whose sandbox is ready, and shown as such."""
        mr, known = await self.open()
        await self.yard.make_ready(known)
        await self.settle()
        return mr, known

    async def known(self, mr: MergeRequest) -> KnownMergeRequest:
        return await self.gitlab.merge_request(MergeRequestRef(mr.project.id, mr.iid))

    async def settle(self) -> None:
        await settle(self.yard, self.loop())

    async def calm(self) -> None:
        """Settle, also what waits until GitLab can't be at work on an earlier request any more."""
        await self.settle()
        self.yard.pass_by(seconds=81)
        await self.settle()

    async def die(self, when: str, at: int) -> bool:
        """Run the loop until it dies at that write; False if there was nothing left to do before."""
        task = asyncio.create_task(self.loop(MortalStore(self.yard.database, when, at)).run())
        while not task.done() and not await self.yard.read(_is_settled):
            await asyncio.sleep(0.002)
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        return isinstance(ended, ExceptionGroup)

    def environment(self, mr: MergeRequest) -> Environment | None:
        return self.server.environment(self.project, f"review/mr-{mr.iid}")

    def changes(self) -> list[str]:
        """The requests that change something, each by method and what it is about."""
        asked = [one for one in self.server.requests if one.method != "GET"]
        words = ("stop", "environments", "deployments", "statuses")
        return [f"{one.method} {next(word for word in words if word in one.path)}" for one in asked]

    def deployments(self) -> list[tuple[str, str]]:
        return [(one.sha, one.status) for one in self.project.deployments.values()]


async def text_at(url: str) -> str:
    async with ClientSession() as session, session.get(url) as answer:
        return await answer.text()


async def settle(world: World, loop: EnvironmentLoop, seconds: float = 60) -> None:
    """Run the loop until nothing is due."""
    task = asyncio.create_task(loop.run())
    try:
        async with asyncio.timeout(seconds):
            while not await world.read(_is_settled):
                assert not task.done(), task
                await asyncio.sleep(0.005)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await world.write(lambda _: None)  # after the loop's last look, which must not see a clock that is moved next


def _is_settled(tx: Transaction) -> bool:
    return environments.due(tx, (), 1) == ()


class Died(Exception):
    """The process was killed."""


class MortalStore(Database):
    """A database that is open already, and dies at the n-th write: before it, or after it."""

    def __init__(self, alive: Database, when: str, at: int) -> None:
        self.__dict__ |= alive.__dict__
        self._when, self._left = when, at

    async def write(self, function: Callable[[Transaction], T], **how: Any) -> T:
        self._left -= 1
        if self._left == 0 and self._when == "before":
            raise Died
        result = await super().write(function, **how)
        if self._left == 0:
            raise Died
        return result


@asynccontextmanager
async def a_show(folder: Path, **config: Any) -> AsyncIterator[Show]:
    async with GitLabServer() as server, a_yard(folder, gitlab={"url": server.url}, **config) as yard:
        bot, alice = server.add_user("ravebot", bot=True), server.add_user("alice")
        project = server.add_project("group/app", public=True)
        for user in (bot, alice):
            server.set_role(project, user, DEVELOPER)
        gitlab = GitLab(server.url, server.token_for(bot), yard.clock, 2)
        yield Show(server, yard, gitlab, project, alice, bot)
        server.restore()
        await gitlab.close()
