"""A stop on GitLab's page ends the sandbox that it means, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.environment_show import Show, a_show
from tests.support.gitlab import DEVELOPER
from tests.support.records import BY_ALICE

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def show(tmp_path: Path) -> AsyncIterator[Show]:
    async with a_show(tmp_path) as made:
        yield made


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
