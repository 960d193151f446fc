"""Environments at the stand-in: made, kept true, and removed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ravebot.config.file import LoadedConfig
from ravebot.config.secrets import Secrets
from ravebot.operations.environments import remove_environments
from tests.support.environment_show import Show, a_show, text_at
from tests.support.gitlab.published import described, misfits, published
from tests.support.records import BY_ALICE

pytestmark = pytest.mark.integration


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


async def test_an_environment_with_the_address_that_ravebot_would_give_it_is_its_own(show: Show) -> None:
    """As after a database was lost."""
    mr, known = await show.open()
    before = show.server.state.add_environment(show.project, f"review/mr-{mr.iid}", known.web_url, "development")
    await show.yard.make_ready(known)
    await show.settle()
    assert show.environment(mr) is before
    assert (before.external_url, show.deployments()) == ("https://sandboxes.example.org:43000/", [(mr.sha, "success")])


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
