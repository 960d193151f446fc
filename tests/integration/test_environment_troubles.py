"""What GitLab refuses, loses or takes long for costs no more than itself, and environments of others are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import pytest_asyncio

from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import environments
from ravebot.store.database import Transaction
from tests.support.environment_show import Show, a_show
from tests.support.gitlab import DEVELOPER, REPORTER

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def show(tmp_path: Path) -> AsyncIterator[Show]:
    async with a_show(tmp_path) as made:
        yield made


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
