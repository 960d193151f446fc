"""Environments, deployments and commit statuses at the stand-in: made, kept true, stopped and removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ravebot.gitlab.client import GitLab
from ravebot.notify.environments.loop import EnvironmentLoop
from ravebot.notify.environments.steps import EnvironmentSteps
from ravebot.notify.environments.stops import EnvironmentStops
from ravebot.sandboxes.model import MergeRequest as KnownMergeRequest
from ravebot.sandboxes.model import MergeRequestRef
from tests.support.gitlab import DEVELOPER, GitLabServer, MergeRequest, Project, User
from tests.support.gitlab.state import Environment
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration


@dataclass
class Show:
    """A GitLab and a yard, with what shows sandboxes there."""

    server: GitLabServer
    yard: Yard
    gitlab: GitLab
    project: Project
    alice: User
    bot: User

    def loop(self) -> EnvironmentLoop:
        steps = EnvironmentSteps(self.yard.config, self.gitlab.environments)
        return EnvironmentLoop(self.yard.database, self.yard.views, self.yard.lifecycle.journal, steps)

    def stops(self) -> EnvironmentStops:
        return EnvironmentStops(self.yard.database, self.gitlab.environments, self.yard.lifecycle, self.yard.clock)

    async def open(self, branch: str = "feature", **more: Any) -> tuple[MergeRequest, KnownMergeRequest]:
        mr = self.server.open_merge_request(self.project, self.alice, "Add a feature", branch, **more)
        return mr, await self.known(mr)

    async def known(self, mr: MergeRequest) -> KnownMergeRequest:
        return await self.gitlab.merge_request(MergeRequestRef(mr.project.id, mr.iid))

    async def settle(self, seconds: float = 5) -> None:
        """Run the loop until nothing is due."""
        task = asyncio.create_task(self.loop().run())
        try:
            async with asyncio.timeout(seconds):
                while not await self.yard.read(self._is_settled):
                    assert not task.done(), task
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @staticmethod
    def _is_settled(tx: Any) -> bool:
        rows = tx.all("SELECT next_at FROM environments WHERE changes <> settled")
        return all(row["next_at"] is not None and row["next_at"] > tx.now_us for row in rows)

    def environment(self, mr: MergeRequest) -> Environment | None:
        return self.server.environment(self.project, f"review/mr-{mr.iid}")

    def changes(self) -> list[str]:
        """The requests that change something, each by method and what it is about."""
        asked = [one for one in self.server.requests if one.method != "GET"]
        words = ("stop", "environments", "deployments", "statuses")
        return [f"{one.method} {next(word for word in words if word in one.path)}" for one in asked]

    def deployments(self) -> list[tuple[str, str]]:
        return [(one.sha, one.status) for one in self.project.deployments.values()]


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


@pytest_asyncio.fixture
async def show(tmp_path: Path) -> AsyncIterator[Show]:
    async with a_show(tmp_path) as made:
        yield made


async def test_a_sandbox_is_an_environment_from_its_start_to_its_end(show: Show) -> None:
    mr, known = await show.open()
    await show.yard.started(known)
    await show.settle()
    environment = show.environment(mr)
    assert environment
    page = f"{show.server.url}/group/app/-/merge_requests/{mr.iid}"
    assert (environment.tier, environment.external_url) == ("development", page)
    assert show.deployments() == [(mr.sha, "running")]
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    await show.settle()
    assert environment.external_url == "https://sandboxes.example.org:43000/"
    assert show.deployments() == [(mr.sha, "success")]
    assert show.server.statuses(show.project, mr.sha) == [("ravebot/sandbox", "success", "The sandbox is ready")]
    assert show.project.statuses[0].target_url.endswith(f"/group/app/-/environments/{environment.id}")
    show.server.merge(mr)
    await show.yard.told(await show.known(mr))
    await show.settle()
    assert environment.state == "stopped"
    await show.yard.until(lambda: show.yard.is_in(known, "ended"))
    await show.settle()
    assert show.environment(mr) is None
    assert show.changes() == [
        "POST environments", "POST deployments", "PUT environments", "PUT deployments", "POST statuses",
        "POST stop", "DELETE environments",
    ]  # fmt: skip
