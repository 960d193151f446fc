"""The stand-in keeps GitLab's rules for environments, deployments and statuses, and our calls live with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import gitlab as python_gitlab
import pytest
from aiohttp import ClientSession

from ravebot.clock import SystemClock
from ravebot.errors import Forbidden, NotFound, RavebotError, Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.environments import Environments, NameTaken
from tests.support.gitlab import DEVELOPER, REPORTER, GitLabServer, Project, User

pytestmark = pytest.mark.integration
PAGE = "https://gitlab.example.org/group/app/-/environments/1"


@dataclass
class Scene:
    server: GitLabServer
    project: Project
    bot: User
    ours: Environments
    theirs: Any  # the project in python-gitlab, which nobody here wrote


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with GitLabServer() as server:
        bot = server.add_user("ravebot", bot=True)
        project = server.add_project("group/app")
        server.set_role(project, bot, DEVELOPER)
        token = server.token_for(bot)
        ours = GitLab(server.url, token, SystemClock(), 2)
        lazy = python_gitlab.Gitlab(server.url, private_token=token).projects.get(project.id, lazy=True)
        yield Scene(server, project, bot, ours.environments, lazy)
        server.restore()
        await ours.close()


def refused(call: Callable[[], Any]) -> tuple[int | None, str]:
    with pytest.raises(python_gitlab.GitlabError) as error:
        call()
    return error.value.response_code, str(error.value.error_message)


async def test_only_a_stopped_environment_can_be_deleted(scene: Scene) -> None:
    made = scene.theirs.environments.create({"name": "review/mr-1", "tier": "development"})
    assert refused(made.delete)[0] == 403
    made.stop()
    made.delete()
    assert scene.project.environments == {}


async def test_a_name_is_there_once_and_who_may_not_stop_one_is_not_told(scene: Scene) -> None:
    made = await scene.ours.create(scene.project.id, "review/mr-1", "https://x.example.org")
    with pytest.raises(NameTaken):
        await scene.ours.create(scene.project.id, "review/mr-1", "")
    scene.server.set_role(scene.project, scene.bot, REPORTER)
    assert await scene.ours.stop(scene.project.id, made.id) == "available"
    with pytest.raises(Forbidden):
        await scene.ours.create(scene.project.id, "review/mr-2", "")
    scene.project.has_environments = False
    with pytest.raises(Forbidden):
        await scene.ours.find(scene.project.id, "review/mr-1")


async def test_one_is_found_by_exactly_its_name_and_the_available_ones_by_its_beginning(scene: Scene) -> None:
    one = await scene.ours.create(scene.project.id, "review/mr-1", "")
    ten = await scene.ours.create(scene.project.id, "review/mr-10", "")
    other = await scene.ours.create(scene.project.id, "production", "")
    found = await scene.ours.find(scene.project.id, "review/mr-1")
    assert found
    assert found.id == one.id
    assert await scene.ours.find(scene.project.id, "review/mr") is None
    assert await scene.ours.available(scene.project.id, "review/mr-") == {one.id, ten.id}
    assert await scene.ours.stop(scene.project.id, ten.id) == "stopped"
    assert await scene.ours.available(scene.project.id, "review/mr-") == {one.id}
    assert other.id not in await scene.ours.available(scene.project.id, "review/mr-")
    assert refused(lambda: scene.theirs.environments.list(search="re"))[0] == 400


async def test_a_deployment_that_ended_never_runs_again_and_a_success_starts_its_environment(scene: Scene) -> None:
    sha = scene.project.head
    made = await scene.ours.create(scene.project.id, "review/mr-1", "")
    number, environment_id = await scene.ours.deploy(scene.project.id, "review/mr-1", sha, "main", "running")
    assert environment_id == made.id
    deployment = scene.theirs.deployments.get(number, lazy=True)
    deployment.status = "running"
    assert refused(deployment.save) == (400, """{'status': ['cannot transition via "run"']}""")
    await scene.ours.stop(scene.project.id, made.id)
    await scene.ours.set_deployment(scene.project.id, number, "success")
    await scene.ours.set_deployment(scene.project.id, number, "success")  # is no error: it has it already
    assert scene.project.environments[made.id].state == "available"
    (found,) = await scene.ours.deployments(scene.project.id, "review/mr-1", sha)
    assert (found.id, found.status, found.of_a_job) == (number, "success", False)
    assert await scene.ours.deployments(scene.project.id, "review/mr-1", "f" * 40) == ()


async def test_a_status_under_way_is_changed_and_a_finished_one_gets_a_successor(scene: Scene) -> None:
    sha, project = scene.project.head, scene.project.id

    async def tell(state: str, pipeline_id: int | None = None) -> int | None:
        return await scene.ours.set_status(project, sha, "ravebot/sandbox", "main", state, "words", PAGE, pipeline_id)

    with pytest.raises(RavebotError, match="Only allowed schemes are http, https"):
        await scene.ours.set_status(project, sha, "ravebot/sandbox", "main", "pending", "words", "", None)
    pipeline_id = await tell("pending")
    commit = scene.theirs.commits.get(sha, lazy=True)
    again = {"state": "pending", "name": "ravebot/sandbox", "ref": "main"}
    status, words = refused(lambda: commit.statuses.create(again))
    assert status == 400
    assert words.startswith("Cannot transition status via :enqueue from :pending")
    assert await tell("running", pipeline_id) == pipeline_id
    assert await tell("running", pipeline_id) == pipeline_id, "it has it already"
    await tell("success", pipeline_id)
    assert [one.status for one in scene.project.statuses] == ["success"]
    await tell("failed", pipeline_id)
    assert [one.status for one in scene.project.statuses] == ["success", "failed"]
    assert await scene.ours.find_status(project, sha, "ravebot/sandbox") == ("failed", pipeline_id)
    with pytest.raises(NotFound):
        await tell("success", 4711)
    with pytest.raises(NotFound):
        await scene.ours.set_status(project, "f" * 40, "ravebot/sandbox", "main", "success", "", PAGE, None)


async def test_a_forks_commit_is_in_the_project_by_its_merge_request_and_takes_a_status_there(scene: Scene) -> None:
    """doc/ci/ci_cd_for_external_repos/external_commit_statuses.md: found by SHA and ref, else a pipeline is made."""
    server, project = scene.server, scene.project
    mallory = server.add_user("mallory")
    fork = server.add_project("mallory/app")
    mr = server.open_merge_request(fork, mallory, "Add a feature", "patch", {"a.txt": "new"}, fork_of=project)
    ref = f"refs/merge-requests/{mr.iid}/head"
    commit = scene.theirs.commits.get(mr.sha, lazy=True)
    told = {"state": "running", "name": "ravebot/sandbox"}
    assert refused(lambda: commit.statuses.create(told)) == (404, "404 References for commit Not Found")
    pipeline = await scene.ours.set_status(project.id, mr.sha, "ravebot/sandbox", ref, "running", "words", PAGE, None)
    assert [(one.id, one.sha, one.ref) for one in project.pipelines] == [(pipeline, mr.sha, ref)]
    assert fork.pipelines == []
    assert (await scene.ours.find_status(project.id, mr.sha, "ravebot/sandbox")) == ("running", pipeline)
    with pytest.raises(NotFound, match="404"):  # the bot's user is no member of the fork
        await scene.ours.set_status(fork.id, mr.sha, "ravebot/sandbox", "patch", "running", "words", PAGE, None)
    unseen = server.push(server.open_merge_request(fork, mallory, "Other", "other", {"b.txt": "new"}), {"c.txt": "x"})
    with pytest.raises(NotFound, match="404 Commit Not Found"):  # no merge request brings it here
        await scene.ours.set_status(project.id, unseen, "ravebot/sandbox", ref, "running", "words", PAGE, None)


async def test_a_status_joins_the_pipeline_that_somebody_ran_for_the_forks_merge_request(scene: Scene) -> None:
    server, project = scene.server, scene.project
    fork = server.add_project("mallory/app")
    mr = server.open_merge_request(fork, server.add_user("mallory"), "Add a feature", "patch", fork_of=project)
    ref = f"refs/merge-requests/{mr.iid}/head"
    ran = server.state.add_pipeline(project, mr.sha, ref)
    joined = await scene.ours.set_status(project.id, mr.sha, "ravebot/sandbox", ref, "running", "words", PAGE, None)
    assert joined == ran.id


async def test_while_another_update_of_a_status_is_under_way_gitlab_says_so_and_it_is_no_refusal(scene: Scene) -> None:
    scene.server.fail(409, 1, method="POST", path="statuses")
    with pytest.raises(Unavailable):
        await scene.ours.set_status(
            scene.project.id, scene.project.head, "ravebot/sandbox", "main", "running", "words", PAGE, None
        )


async def test_the_page_shows_an_environment_and_its_button_stops_it(scene: Scene) -> None:
    hostile = await scene.ours.create(scene.project.id, "review/mr-1", 'javascript-not:"><script>alert(1)</script>')
    page = f"{scene.server.url}/group/app/-/environments"
    async with ClientSession() as session:
        async with session.get(page) as answer:
            text = await answer.text()
        assert "review/mr-1" in text
        assert "<script>" not in text
        async with session.post(f"{page}/{hostile.id}/stop") as answer:
            assert ">stopped<" in await answer.text()
        async with session.get(f"{page}/4711") as answer:
            assert answer.status == 404
    assert await scene.ours.available(scene.project.id, "review/") == frozenset()


@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_what_passes_is_unavailable(scene: Scene, status: int) -> None:
    scene.server.fail(status, 1, retry_after=7)
    with pytest.raises(Unavailable):
        await scene.ours.create(scene.project.id, "review/mr-1", "")


async def test_an_answer_of_another_form_is_an_error_of_ours(scene: Scene) -> None:
    scene.server.state.add_environment(scene.project, "review/mr-1", "", "x")
    broken = next(iter(scene.project.environments.values()))
    broken.name = 5  # type: ignore[assignment]
    with pytest.raises(RavebotError):
        await scene.ours.get(scene.project.id, broken.id)
    assert await scene.ours.find(scene.project.id, "review/mr-1") is None
