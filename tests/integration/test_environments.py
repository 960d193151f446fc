"""Environments, deployments and commit statuses at the stand-in: made, kept true, stopped and removed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from ravebot.config.file import LoadedConfig
from ravebot.config.secrets import Secrets
from ravebot.gitlab.client import GitLab
from ravebot.notify.environments.loop import EnvironmentLoop
from ravebot.notify.environments.steps import EnvironmentSteps
from ravebot.notify.environments.stops import EnvironmentStops
from ravebot.operations.environments import remove_environments
from ravebot.sandboxes.model import MergeRequest as KnownMergeRequest
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import environments
from ravebot.store.database import Database, Transaction
from tests.support.gitlab import DEVELOPER, REPORTER, GitLabServer, MergeRequest, Project, User
from tests.support.gitlab.published import described, misfits, published
from tests.support.gitlab.state import Environment
from tests.support.records import BY_ALICE, NOON, World
from tests.support.yard import Yard, a_yard

T = TypeVar("T")
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


async def settle(world: World, loop: EnvironmentLoop, seconds: float = 5) -> None:
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
    asked = [one.path for one in show.server.requests if one.method == "GET" and "environments" in one.path]
    assert len(asked) == 2, "it is looked at before its new address, and before the deployment's success"


async def test_every_request_is_as_gitlab_describes_it(show: Show) -> None:
    published()
    show.server.fail(500, 1, method="POST", path="deployments", after=True)
    show.server.hang_up(1, method="POST", path="statuses", after=True)
    mr, known = await show.open()
    await show.yard.started(known)
    show.yard.pass_by(seconds=6)
    await show.calm()
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    await show.calm()
    await show.stops().look_at(show.project.id)
    environment = show.environment(mr)
    assert environment
    show.server.stop_environment(environment)
    show.yard.pass_by(seconds=1)
    await show.stops().look_at(show.project.id)
    await show.yard.until(lambda: show.yard.is_in(known, "ended"))
    await show.calm()
    ours = [one for one in show.server.requests if re.search("environments|deployments|statuses", one.path)]
    assert len({(one.method, re.sub(r"[0-9a-f]{2,}", "", one.path)) for one in ours}) >= 9
    assert misfits(ours) == []
    assert [one for one in ours if described(one) is None] == []


async def test_a_stop_on_gitlabs_page_ends_the_sandbox(show: Show) -> None:
    mr, known = await show.ready()
    environment = show.environment(mr)
    assert environment
    show.server.stop_environment(environment)
    show.yard.pass_by(seconds=61)
    await show.stops().look()
    sandbox = await show.yard.latest(known)
    assert (sandbox.state.value, sandbox.end_detail) == ("stopping", "its environment was stopped in GitLab")
    await show.yard.until(lambda: show.yard.is_in(known, "ended"))
    await show.settle()
    assert show.environment(mr) is None


async def test_projects_are_asked_once_a_minute_however_many_sandboxes_they_have(show: Show) -> None:
    for number in range(2):
        await show.yard.make_ready((await show.open(f"feature-{number}"))[1])
    await show.settle()
    before = len(show.server.requests)
    stops = show.stops()
    for _ in range(12):  # a minute
        show.yard.pass_by(seconds=5)
        await stops.look()
    assert [one.path.rpartition("/")[2] for one in show.server.requests[before:]] == ["environments"]


@pytest.mark.parametrize("by_itself", [True, False])
async def test_a_stop_from_before_a_new_sandbox_does_not_end_it(show: Show, by_itself: bool) -> None:
    mr, known = await show.ready()
    environment = show.environment(mr)
    assert environment
    show.server.stop_environment(environment)  # by GitLab's clock, which is far ahead of ours
    show.yard.pass_by(seconds=61)
    await show.yard.write(lambda tx: show.yard.intents.rebuild(tx, known, BY_ALICE))
    await (show.settle() if by_itself else show.stops().look())
    assert (await show.yard.latest(known)).state.value == "queued"
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    await show.settle()
    await show.stops().look()
    assert await show.yard.is_in(known, "ready")
    again = show.environment(mr)
    assert again is not None
    assert again.id != environment.id
    assert (again.state, again.external_url[:8]) == ("available", "https://")
    assert show.deployments() == [(mr.sha, "success")]


async def test_a_stop_is_seen_before_a_new_address_or_a_success_would_undo_it(show: Show) -> None:
    """GitLab makes an environment available again when a deployment to it succeeds."""
    for branch, was_ready in (("address", False), ("success", True)):
        mr, known = await show.open(branch)
        await show.yard.started(known)
        if was_ready:
            await show.yard.until(lambda: show.yard.is_in(known, "ready"))  # noqa: B023
        await show.settle()
        if was_ready:
            show.server.push(mr, {"more.txt": "more\n"})
            await show.yard.told(await show.known(mr))
            await show.settle()
        assert show.deployments()[-1] == (mr.sha, "running")
        environment = show.environment(mr)
        assert environment
        show.server.stop_environment(environment)

        async def runs_it() -> bool:
            sandbox = await show.yard.latest(known)  # noqa: B023
            return sandbox.state.value == "ready" and sandbox.stage is None

        await show.yard.until(runs_it)
        await show.settle()
        sandbox = await show.yard.latest(known)
        assert (sandbox.state.value, sandbox.end_detail) == ("stopping", "its environment was stopped in GitLab")
        assert environment.state == "stopped"
        assert show.deployments()[-1] == (mr.sha, "canceled")
        await show.yard.until(lambda: show.yard.is_in(known, "ended"))  # noqa: B023
        await show.settle()
        assert show.environment(mr) is None


async def test_one_that_somebody_deleted_is_not_made_again_by_a_deployment_of_new_code(show: Show) -> None:
    mr, known = await show.ready()
    environment = show.environment(mr)
    assert environment
    show.server.delete_environment(environment)
    show.server.push(mr, {"more.txt": "more\n"})
    await show.yard.told(await show.known(mr))
    await show.settle()
    sandbox = await show.yard.latest(known)
    assert (sandbox.state.value, sandbox.end_detail) == ("stopping", "its environment was deleted in GitLab")
    assert show.environment(mr) is None
    assert show.deployments() == []


async def test_a_stop_after_a_rebuild_ends_the_new_sandbox_though_that_only_waits(show: Show) -> None:
    mr, known = await show.ready()
    await show.yard.write(lambda tx: show.yard.intents.rebuild(tx, known, BY_ALICE))
    await show.settle()
    environment = show.environment(mr)
    assert environment
    show.server.stop_environment(environment)
    environment.updated_at -= timedelta(days=400)  # by GitLab's clock, which is far behind ours
    show.yard.pass_by(seconds=61)
    await show.stops().look()
    sandbox = await show.yard.latest(known)
    assert (sandbox.state.value, sandbox.end_detail) == ("ended", "its environment was stopped in GitLab")
    await show.settle()
    assert show.environment(mr) is None


async def test_a_project_that_can_not_be_seen_before_a_deployment_ends_no_sandbox(show: Show) -> None:
    mr, known = await show.open()
    await show.yard.started(known)
    await show.settle()
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    show.server.fail(404, method="GET", path=f"/projects/{show.project.id}/")
    await show.settle()
    assert await show.yard.is_in(known, "ready")
    assert show.deployments() == [(mr.sha, "running")]
    show.server.restore()
    show.yard.pass_by(minutes=2)
    await show.settle()
    assert show.deployments() == [(mr.sha, "success")]


async def test_one_that_may_not_be_looked_at_hides_no_stop_of_others(show: Show) -> None:
    one, two = await show.open("one"), await show.open("two")
    for _, known in (one, two):
        await show.yard.make_ready(known)
    await show.settle()
    for mr, _ in (one, two):
        environment = show.environment(mr)
        assert environment
        show.server.stop_environment(environment)
    for status in (403, 500):
        show.server.fail(status, 1, method="GET", path="/environments/[0-9]+")
    show.yard.pass_by(seconds=61)
    stops = show.stops()
    await stops.look_at(show.project.id)  # 403 for the first, and 500 for the second
    assert [await show.yard.is_in(known, "ready") for _, known in (one, two)] == [True, True]
    show.server.fail(403, 1, method="GET", path="/environments/[0-9]+")
    await stops.look_at(show.project.id)
    assert [await show.yard.is_in(known, "ready") for _, known in (one, two)] == [True, False]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_write_leaves_one_environment_and_one_deployment_a_commit(show: Show, when: str) -> None:
    """Right before a write is right after a request, whose answer is then lost."""
    died = 0
    for at in range(1, 9):
        mr, known = await show.open(f"feature-{at}")
        await show.yard.started(known)
        died += await show.die(when, at)
        await show.calm()
        await show.yard.until(lambda: show.yard.is_in(known, "ready"))  # noqa: B023
        died += await show.die(when, at)
        await show.calm()
        environments = [one for one in show.project.environments.values() if one.name == f"review/mr-{mr.iid}"]
        assert [one.external_url[:8] for one in environments] == ["https://"]
        assert [status for sha, status in show.deployments() if sha == mr.sha] == ["success"]
        assert [state for _, state, _ in show.server.statuses(show.project, mr.sha)] == ["success"]
        show.server.merge(mr)
        await show.yard.told(await show.known(mr))
        for state in ("stopping", "ended"):
            await show.yard.until(lambda: show.yard.is_in(known, state))  # noqa: B023
            died += await show.die(when, at)
            await show.calm()
        assert show.environment(mr) is None
        assert [state for _, state, _ in show.server.statuses(show.project, mr.sha)] == ["success"]
    assert died > 12
    assert show.project.environments == {}


async def test_a_deployment_that_gitlab_makes_late_is_not_made_twice(show: Show) -> None:
    show.server.hold(1, method="POST", path="deployments")
    mr, _ = await show.ready()  # until it waits
    assert show.deployments() == []
    await show.server.let_go()
    await show.calm()
    assert show.deployments() == [(mr.sha, "success")]


async def test_without_the_role_one_hint_is_told_and_all_is_made_up_for_when_the_role_is_there(show: Show) -> None:
    show.server.set_role(show.project, show.bot, REPORTER)
    mr, known = await show.open()
    await show.yard.make_ready(known)
    await show.yard.empty_outbox()
    await show.settle()
    record = await show.yard.read(lambda tx: environments.get(tx, known.ref))
    assert record
    assert record.hint == (
        "GitLab does not let ravebot make environments here: give its user the role Developer in this project, "
        "and switch on Environments in its settings"
    )
    assert [kind for kind in await show.yard.told_kinds() if kind == "gitlab note"] == ["gitlab note"]
    assert [path for path, _ in await show.yard.read(environments.refused)] == ["group/app"]
    view = await show.yard.read(lambda tx: show.yard.views.latest(tx, known.ref))
    assert view
    assert view.hint == record.hint
    await show.yard.empty_outbox()
    show.yard.pass_by(minutes=2)
    await show.settle()
    assert await show.yard.told_kinds() == [], "it is told once"
    show.server.set_role(show.project, show.bot, DEVELOPER)
    show.yard.pass_by(hours=6)
    await show.settle()
    assert show.deployments() == [(mr.sha, "success")]
    assert await show.yard.told_kinds() == ["gitlab note"]
    assert await show.yard.read(environments.refused) == ()


@pytest.mark.parametrize("url", ["https://else.example.org", "https://sandboxes.example.org:43999/"])
async def test_an_environment_that_ravebot_did_not_make_is_left_alone_and_said_once(show: Show, url: str) -> None:
    mr, known = await show.open()
    theirs = show.server.state.add_environment(show.project, f"review/mr-{mr.iid}", url, "other")
    await show.yard.make_ready(known)
    await show.yard.empty_outbox()
    await show.settle()
    record = await show.yard.read(lambda tx: environments.get(tx, known.ref))
    assert record
    assert "that ravebot did not make" in record.hint
    assert show.deployments() == []
    assert await show.yard.told_kinds() == ["gitlab note"]
    await show.yard.empty_outbox()
    tried = len(show.server.requests)
    for _ in range(2):
        show.yard.pass_by(minutes=16)
        await show.settle()
    assert len(show.server.requests) > tried
    assert await show.yard.told_kinds() == [], "it is said once"
    assert [state for _, state, _ in show.server.statuses(show.project, mr.sha)] == ["success"]
    show.server.merge(mr)
    await show.yard.told(await show.known(mr))
    await show.yard.until(lambda: show.yard.is_in(known, "ended"))
    await show.settle()
    assert show.environment(mr) is theirs
    assert theirs.state == "available"


async def test_an_environment_with_the_address_that_ravebot_would_give_it_is_its_own(show: Show) -> None:
    """As after a database was lost."""
    mr, known = await show.open()
    before = show.server.state.add_environment(show.project, f"review/mr-{mr.iid}", known.web_url, "development")
    await show.yard.make_ready(known)
    await show.settle()
    assert show.environment(mr) is before
    assert (before.external_url, show.deployments()) == ("https://sandboxes.example.org:43000/", [(mr.sha, "success")])


async def test_a_request_that_got_lost_takes_no_other_deployment_of_the_commit_for_its_own(show: Show) -> None:
    mr, known = await show.open()
    await show.yard.started(known)
    await show.settle()
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    await show.settle()
    environment = show.environment(mr)
    assert environment
    show.server.hang_up(1, method="POST", path="deployments")
    await show.yard.write(lambda tx: show.yard.intents.rebuild(tx, known, BY_ALICE))
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    for of_a_job in (True, False):  # one of a pipeline, and one from before, which only a lost database knew
        other = show.server.state.add_deployment(environment, mr.sha, mr.branch, show.bot, "failed")
        other.of_a_job, other.created_at = of_a_job, other.created_at if of_a_job else NOON - timedelta(hours=1)
    await show.calm()
    assert show.deployments() == [(mr.sha, status) for status in ("success", "failed", "failed", "success")]
    record = await show.yard.read(lambda tx: environments.get(tx, known.ref))
    assert record
    assert record.deployment_id == max(show.project.deployments)


async def test_one_that_a_job_names_becomes_ravebot_s_and_the_merge_request_shows_view_app(show: Show) -> None:
    mr, known = await show.open()
    job = show.server.run_pipeline(mr, ["ravebot:review"]).job("ravebot:review")
    show.server.name_environment(job, f"review/mr-{mr.iid}", action="prepare")
    made = show.environment(mr)
    page = f"{show.server.url}/group/app/-/merge_requests/{mr.iid}"
    assert "View app" not in await text_at(page)
    await show.yard.make_ready(known)
    await show.settle()
    assert made
    assert show.environment(mr) is made
    assert made.external_url == "https://sandboxes.example.org:43000/"
    assert show.deployments() == [(mr.sha, "success")]
    shown = await text_at(page)
    assert f"Deployed to <b>{made.name}</b>" in shown
    assert f'<a href="{made.external_url}" rel="noopener noreferrer nofollow">View app</a>' in shown
    show.server.merge(mr)
    await show.yard.told(await show.known(mr))
    await show.yard.until(lambda: show.yard.is_in(known, "ended"))
    await show.settle()
    assert show.environment(mr) is None


async def test_one_without_a_link_to_which_somebody_deployed_is_left_alone(show: Show) -> None:
    mr, known = await show.open()
    theirs = show.server.state.add_environment(show.project, f"review/mr-{mr.iid}", "", "other")
    show.server.state.add_deployment(theirs, mr.sha, mr.branch, show.alice, "success")
    await show.yard.make_ready(known)
    await show.settle()
    record = await show.yard.read(lambda tx: environments.get(tx, known.ref))
    assert record
    assert "that ravebot did not make" in record.hint
    assert theirs.external_url == ""


@pytest.mark.parametrize("status", [400, 403, 404, 422])
async def test_a_deployment_that_is_refused_costs_only_the_deployment(show: Show, status: int) -> None:
    mr, known = await show.open()
    await show.yard.started(known)
    show.server.fail(status, method="POST", path="deployments")
    await show.settle()
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    await show.settle()
    environment = show.environment(mr)
    assert environment
    assert environment.external_url == "https://sandboxes.example.org:43000/"
    assert show.deployments() == []
    assert [state for _, state, _ in show.server.statuses(show.project, mr.sha)] == ["success"]
    ((_, why),) = await show.yard.read(environments.refused)
    assert "deployment" in why
    show.server.restore()
    show.yard.pass_by(minutes=15)
    await show.settle()
    assert show.deployments() == [(mr.sha, "success")]
    assert await show.yard.read(environments.refused) == ()


async def test_a_deployment_whose_end_is_refused_once_does_not_run_for_ever(show: Show) -> None:
    mr, known = await show.open()
    await show.yard.started(known)
    await show.settle()
    show.server.fail(403, 1, method="PUT", path="deployments")
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    await show.settle()
    assert show.deployments() == [(mr.sha, "running")]
    show.yard.pass_by(minutes=15)
    await show.settle()
    assert show.deployments() == [(mr.sha, "success")]
    assert await show.yard.read(environments.refused) == ()


async def test_an_archived_project_is_asked_once_a_day_and_the_reason_is_named(show: Show) -> None:
    mr, known = await show.ready()
    for method in ("POST", "PUT", "DELETE"):
        show.server.fail(403, method=method)
    show.server.merge(mr)
    await show.yard.told(await show.known(mr))
    await show.yard.until(lambda: show.yard.is_in(known, "ended"))
    for _ in range(6):
        await show.settle()
        show.yard.pass_by(hours=5)
    before = len(show.server.requests)
    for _ in range(18):
        show.yard.pass_by(hours=4)
        await show.settle()
    assert len(show.server.requests) - before == 3, "in three days"
    ((_, why),) = await show.yard.read(environments.refused)
    assert why.endswith("or unarchive the project if it is archived (tried once a day by now, and for a new sandbox)")
    show.server.restore()
    show.yard.pass_by(days=1)
    await show.settle()
    assert show.environment(mr) is None


async def test_an_environment_that_may_be_left_in_a_deleted_project_is_looked_for_a_week_at_most(show: Show) -> None:
    mr, known = await show.open()
    show.server.fail(502, 1, method="POST", path="environments$")
    show.server.fail(404, path=f"/projects/{show.project.id}/environments")
    await show.yard.started(known)
    await show.settle()
    show.server.merge(mr)
    await show.yard.told(await show.known(mr))
    await show.yard.until(lambda: show.yard.is_in(known, "ended"))
    for _ in range(10):
        await show.settle()
        show.yard.pass_by(hours=25)
    before = len(show.server.requests)
    await show.settle()
    assert len(show.server.requests) == before
    assert await show.yard.read(lambda tx: tx.all("SELECT 1 FROM environments WHERE changes <> settled")) == []


async def test_new_code_gets_a_deployment_of_its_own_and_the_old_status_ends(show: Show) -> None:
    mr, known = await show.open()
    await show.yard.started(known)
    show.yard.pass_by(seconds=6)
    await show.settle()
    old = mr.sha
    assert [state for _, state, _ in show.server.statuses(show.project, old)] == ["running"]
    new = show.server.push(mr, {"more.txt": "more\n"})
    await show.yard.told(await show.known(mr))
    await show.settle()
    assert show.deployments() == [(old, "canceled"), (new, "running")]
    assert show.server.statuses(show.project, old) == [("ravebot/sandbox", "canceled", "Newer code came")]
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    await show.settle()
    assert show.deployments() == [(old, "canceled"), (new, "success")]
    assert [state for _, state, _ in show.server.statuses(show.project, new)] == ["success"]


@pytest.mark.parametrize("status", [409, 500, 502])
async def test_what_fails_for_a_moment_is_made_once_all_the_same(show: Show, status: int) -> None:
    for path in ("environments$", "deployments$", "statuses"):
        show.server.fail(status, 1, method="POST", path=path, after=status != 409)
    mr, known = await show.open()
    await show.yard.make_ready(known)
    for _ in range(4):
        await show.calm()
    assert [one.name for one in show.project.environments.values()] == [f"review/mr-{mr.iid}"]
    assert show.deployments() == [(mr.sha, "success")]
    assert [one.status for one in show.project.statuses] == ["success"]


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_rate_limit_is_waited_for_and_a_token_that_expired_heals(show: Show, form: str) -> None:
    until = show.yard.clock.now() + timedelta(seconds=30)
    show.server.fail(
        429, 1, retry_after=30 if form == "seconds" else format_datetime(until, usegmt=True), method="POST"
    )
    mr, _ = await show.ready()
    show.yard.pass_by(seconds=28)
    await show.settle()
    assert show.environment(mr) is None
    show.yard.pass_by(seconds=3)
    show.server.fail(401, 1, method="POST")
    await show.settle()
    show.yard.pass_by(seconds=61)
    await show.settle()
    assert show.deployments() == [(mr.sha, "success")]


async def test_a_fork_shows_nothing_before_its_commit_is_approved(show: Show) -> None:
    fork = show.server.add_project("mallory/app", public=True)
    mallory = show.server.add_user("mallory")
    mr = show.server.open_merge_request(fork, mallory, "Add a feature", "main", fork_of=show.project)
    known = await show.known(mr)
    await show.yard.told(known)
    await show.settle()
    assert show.changes() == []
    await show.yard.write(lambda tx: show.yard.intents.start(tx, known, BY_ALICE, mr.sha))
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    await show.settle()
    assert [(one.ref, one.status) for one in show.project.deployments.values()] == [
        (f"refs/merge-requests/{mr.iid}/head", "success")
    ]
    assert [(one.ref, one.status) for one in show.project.statuses] == [
        (f"refs/merge-requests/{mr.iid}/head", "success")
    ]
    approved, before = mr.sha, show.changes()
    show.server.push(mr, {"new.txt": "not looked at"})
    pushed = await show.known(mr)
    await show.yard.told(pushed)
    await show.yard.go()
    await show.calm()
    assert show.changes() == before, "nothing on a commit that nobody approved"
    await show.yard.write(lambda tx: show.yard.intents.start(tx, pushed, BY_ALICE, mr.sha))

    async def took_it() -> bool:
        sandbox = await show.yard.latest(known)
        return sandbox.stage is None and sandbox.running_sha == mr.sha

    await show.yard.until(took_it)
    await show.calm()
    assert [(one.sha, one.status) for one in show.project.statuses] == [(approved, "success"), (mr.sha, "success")]


async def test_an_environment_that_somebody_deleted_ends_the_sandbox_as_only_a_stopped_one_can_be(show: Show) -> None:
    mr, known = await show.ready()
    environment = show.environment(mr)
    assert environment
    show.server.delete_environment(environment)
    show.yard.pass_by(seconds=61)
    await show.stops().look()
    sandbox = await show.yard.latest(known)
    assert (sandbox.state.value, sandbox.end_detail) == ("stopping", "its environment was deleted in GitLab")
    await show.settle()
    assert show.environment(mr) is None


async def test_a_project_that_can_not_be_seen_ends_no_sandbox(show: Show) -> None:
    _, known = await show.ready()
    for status in (403, 404, 500):
        show.server.fail(status, 1)
        show.yard.pass_by(seconds=61)
        await show.stops().look()
    assert (await show.yard.latest(known)).state.value == "ready"


async def test_one_that_gitlab_does_not_let_us_stop_is_told_and_removed_when_it_may_be(show: Show) -> None:
    mr, known = await show.ready()
    environment = show.environment(mr)
    assert environment
    environment.protected = True
    show.server.merge(mr)
    await show.yard.told(await show.known(mr))
    await show.yard.until(lambda: show.yard.is_in(known, "ended"))
    await show.settle()
    assert await show.yard.read(environments.refused) == (
        ("group/app", "GitLab does not let ravebot stop and delete its environments here: give its user the role "
         "Developer in this project, or unarchive the project if it is archived"),
    )  # fmt: skip
    environment.protected = False
    show.yard.pass_by(minutes=2)
    await show.settle()
    assert show.environment(mr) is None
    assert await show.yard.read(environments.refused) == ()


async def test_a_deployment_that_may_not_be_ended_does_not_keep_its_environment(show: Show) -> None:
    mr, known = await show.open()
    await show.yard.started(known)
    await show.settle()
    show.server.fail(403, method="PUT", path="deployments")
    show.server.merge(mr)
    await show.yard.told(await show.known(mr))
    await show.yard.until(lambda: show.yard.is_in(known, "ended"))
    await show.settle()
    assert show.environment(mr) is None


async def test_a_name_that_is_taken_and_can_not_be_read_is_asked_for_less_and_less_often(show: Show) -> None:
    mr, known = await show.open()
    show.server.state.add_environment(show.project, f"review/mr-{mr.iid}", "", "other")
    show.server.fail(200, method="GET", path="environments")  # an answer that is no list
    await show.yard.started(known)
    before = len(show.server.requests)
    for _ in range(60):
        await show.settle()
        show.yard.pass_by(seconds=1)
    assert 4 <= len(show.server.requests) - before <= 16


async def test_uninstalling_removes_the_environments_that_are_left(tmp_path: Path) -> None:
    async with a_show(tmp_path) as show:
        for branch in ("one", "two"):
            await show.yard.make_ready((await show.open(branch))[1])
        await show.settle()
        kept = next(one for one in show.project.environments.values() if one.name == "review/mr-1")
        kept.protected = True
        await show.yard.database.__aexit__(None, None, None)  # the bot is stopped
        secrets = Secrets(gitlab_token=show.server.token_for(show.bot))
        removed, left = await remove_environments(LoadedConfig(show.yard.config, secrets), lambda _: None)
        assert removed == ["the environment review/mr-2 of group/app"]
        assert left[0].startswith("the environment review/mr-1 of group/app: GitLab refuses it")
        assert [one.name for one in show.project.environments.values()] == [kept.name]


async def test_what_a_guest_printed_is_one_short_line_in_the_status(show: Show) -> None:
    mr, known = await show.open()
    await show.yard.make_ready(known)
    sandbox = await show.yard.latest(known)
    words = "its set-up failed:\x00\x1b[31m\u202e" + "x" * 1000
    await show.yard.write(lambda tx: show.yard.lifecycle.refresh(tx, replace(sandbox, notice=words)))
    await show.settle()
    ((_, state, description),) = show.server.statuses(show.project, mr.sha)
    assert (state, len(description) <= 255, description.isprintable()) == ("failed", True, True)


async def test_a_commit_that_is_gone_holds_up_no_status(show: Show) -> None:
    mr, known = await show.open()
    await show.yard.started(known)
    show.yard.pass_by(seconds=6)
    await show.settle()
    old = mr.sha
    new = show.server.push(mr, {"more.txt": "more\n"})
    del show.project.commits[old]
    await show.yard.told(await show.known(mr))
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    await show.settle()
    assert [state for _, state, _ in show.server.statuses(show.project, new)] == ["success"]


async def test_a_project_with_many_merge_requests_holds_up_no_other(show: Show) -> None:
    def step(tx: Transaction) -> tuple[MergeRequestRef, ...]:
        for iid in range(1, 6):
            environments.touch(tx, MergeRequestRef(1, iid))
        environments.touch(tx, MergeRequestRef(2, 1))
        return environments.due(tx, {MergeRequestRef(1, 1)}, 2)

    assert await show.yard.write(step) == (MergeRequestRef(2, 1), MergeRequestRef(1, 2))


async def test_a_gitlab_that_hangs_on_environments_answers_other_requests(show: Show) -> None:
    show.server.drop(path="environments")
    tasks = [asyncio.create_task(show.gitlab.environments.find(show.project.id, "review/mr-1")) for _ in range(5)]
    async with asyncio.timeout(1):
        assert (await show.gitlab.me()).id == show.bot.id
    show.server.restore()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_project_that_is_asked_for_is_looked_at_without_its_minute(show: Show) -> None:
    mr, known = await show.ready()
    stops = show.stops()
    show.yard.pass_by(seconds=61)
    await stops.look()
    environment = show.environment(mr)
    assert environment
    show.server.stop_environment(environment)
    show.yard.pass_by(seconds=1)
    await stops.look()
    assert (await show.yard.latest(known)).state.value == "ready"
    stops.ask_for(show.project.id)
    await stops.look()
    assert (await show.yard.latest(known)).state.value == "stopping"


async def test_a_stop_is_seen_though_the_clock_was_set_back(show: Show) -> None:
    show.yard.pass_by(days=1)
    mr, known = await show.ready()
    environment = show.environment(mr)
    assert environment
    show.server.stop_environment(environment)
    show.yard.pass_by(days=-1)
    await show.stops().look()
    assert (await show.yard.latest(known)).state.value == "stopping"


async def test_a_request_without_an_answer_does_not_wait_for_a_clock_that_was_set_back(show: Show) -> None:
    show.yard.clock.advance(datetime.now(UTC) + timedelta(days=1) - show.yard.clock.now())
    for path in ("environments$", "statuses"):
        show.server.fail(502, 1, method="POST", path=path)
    show.server.fail(502, 1, method="POST", path="deployments$", after=True)
    mr, _ = await show.ready()
    show.yard.pass_by(days=-1)
    await show.settle()
    assert show.changes().count("POST statuses") == 1, "GitLab may still be at work on it"
    for _ in range(4):
        await show.calm()
    assert show.deployments() == [(mr.sha, "success")]
    assert [one.status for one in show.project.statuses] == ["success"]


async def test_a_lost_answer_makes_no_second_deployment_though_gitlabs_clock_is_behind(show: Show) -> None:
    show.yard.clock.advance(datetime.now(UTC) + timedelta(minutes=2) - show.yard.clock.now())
    show.server.fail(502, 1, method="POST", path="deployments$", after=True)
    mr, known = await show.open()
    await show.yard.make_ready(known)
    await show.calm()
    assert show.deployments() == [(mr.sha, "success")]


async def test_a_rate_limit_stops_the_look_at_further_projects(show: Show) -> None:
    for number in range(2):
        project = show.server.add_project(f"group/p{number}", public=True)
        for user in (show.bot, show.alice):
            show.server.set_role(project, user, DEVELOPER)
        mr = show.server.open_merge_request(project, show.alice, "Add a feature", "feature")
        await show.yard.make_ready(await show.known(mr))
    await show.settle()
    show.yard.pass_by(seconds=61)
    stops, before = show.stops(), len(show.server.requests)
    show.server.fail(429, retry_after=1)
    for _ in range(3):
        stops.ask_for(project.id)
        await stops.look()
    assert len(show.server.requests) - before == 1
    show.server.restore()
    await asyncio.sleep(1)
    await stops.look()
    assert len(show.server.requests) - before == 3


async def test_a_status_that_is_under_way_still_ends_when_statuses_are_switched_off(show: Show) -> None:
    mr, known = await show.open()
    await show.yard.started(known)
    show.yard.pass_by(seconds=6)
    await show.settle()
    config = show.yard.config
    off = config.model_copy(update={"gitlab": config.gitlab.model_copy(update={"commit_status": False})})
    steps = EnvironmentSteps(off, show.gitlab.environments)
    views = replace(show.yard.views, config=off)
    switched = EnvironmentLoop(show.yard.database, views, show.yard.lifecycle, steps, 0)
    await show.yard.until(lambda: show.yard.is_in(known, "ready"))
    await settle(show.yard, switched)
    assert [state for _, state, _ in show.server.statuses(show.project, mr.sha)] == ["success"]
    new = show.server.push(mr, {"more.txt": "more\n"})
    await show.yard.told(await show.known(mr))
    await settle(show.yard, switched)
    assert show.server.statuses(show.project, new) == []
