"""Deployments and commit statuses at the stand-in: one a commit, with an end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from ravebot.notify.environments.loop import EnvironmentLoop
from ravebot.notify.environments.steps import EnvironmentSteps
from ravebot.store import environments
from tests.support.environment_show import Show, a_show, settle
from tests.support.records import BY_ALICE, NOON

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def show(tmp_path: Path) -> AsyncIterator[Show]:
    async with a_show(tmp_path) as made:
        yield made


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


async def test_a_lost_answer_makes_no_second_deployment_though_gitlabs_clock_is_behind(show: Show) -> None:
    show.yard.clock.advance(datetime.now(UTC) + timedelta(minutes=2) - show.yard.clock.now())
    show.server.fail(502, 1, method="POST", path="deployments$", after=True)
    mr, known = await show.open()
    await show.yard.make_ready(known)
    await show.calm()
    assert show.deployments() == [(mr.sha, "success")]


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
