"""The stand-in's pipelines, jobs, artifacts and tokens of jobs are as GitLab's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import gitlab as python_gitlab
import jwt
import pytest
from aiohttp import ClientPayloadError, ClientSession
from gitlab.v4.objects import Project as ApiProject

from tests.support.gitlab import REPORTER, GitLabServer, MergeRequest, Project, User

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Place:
    gitlab: GitLabServer
    project: Project
    mr: MergeRequest
    bot: User
    token: str

    def api(self) -> ApiProject:
        """python-gitlab, unmodified."""
        client = python_gitlab.Gitlab(self.gitlab.url, private_token=self.token, timeout=10)
        return client.projects.get(self.project.path)

    @property
    def base(self) -> str:
        return f"{self.gitlab.url}/api/v4/projects/{self.project.id}"


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with GitLabServer() as gitlab:
        alice, bot = gitlab.add_user("alice"), gitlab.add_user("bot", bot=True)
        project = gitlab.add_project("group/app")
        gitlab.set_role(project, bot, REPORTER)
        yield Place(gitlab, project, gitlab.open_merge_request(project, alice), bot, gitlab.token_for(bot))


async def test_python_gitlab_reads_pipelines_and_jobs_unmodified(place: Place) -> None:
    pipeline = place.gitlab.run_pipeline(place.mr)
    build = place.gitlab.start_job(pipeline.job("build"))

    def read() -> None:
        api = place.api()
        mr, found = api.mergerequests.get(place.mr.iid), api.pipelines.get(pipeline.id)
        assert (mr.head_pipeline["id"], mr.head_pipeline["sha"]) == (pipeline.id, place.mr.sha)
        assert (found.ref, found.source) == (f"refs/merge-requests/{place.mr.iid}/head", "merge_request_event")
        assert [job.name for job in found.jobs.list(iterator=True)] == ["review", "build"]
        assert [job.name for job in found.jobs.list(scope=["running"], iterator=True)] == ["build"]
        job = api.jobs.get(build.id)
        assert (job.status, job.pipeline["id"]) == ("running", pipeline.id)
        assert [one.id for one in mr.pipelines.list(iterator=True)] == [pipeline.id]
        assert "head_pipeline" not in next(iter(api.mergerequests.list(iterator=True))).attributes

    await asyncio.to_thread(read)
    place.gitlab.finish_job(build)
    place.gitlab.finish_job(pipeline.job("review"), "failed")
    assert pipeline.status == "failed"
    again = place.gitlab.retry_job(pipeline.job("review"))
    assert (pipeline.status, pipeline.job("review")) == ("running", again)


async def test_one_file_of_artifacts_is_streamed_until_it_expires(place: Place, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"QFI\xfb" * 250_000)
    pipeline = place.gitlab.run_pipeline(place.mr)
    job = place.gitlab.finish_job(pipeline.job("build"), artifacts={"image/sandbox.qcow2": image, "log": b"fine"})
    url, headers = f"{place.base}/jobs/{job.id}/artifacts", {"PRIVATE-TOKEN": place.token}
    async with ClientSession(headers=headers) as session:
        async with session.get(f"{url}/image/sandbox.qcow2") as answer:
            assert await answer.read() == image.read_bytes()
            assert answer.content_length == 1_000_000
        for path, status in (("nothing", 404), ("image", 404), ("log", 200)):
            async with session.get(f"{url}/{path}") as answer:
                assert answer.status == status, path
        place.gitlab.truncate_archives()
        async with session.get(f"{url}/image/sandbox.qcow2") as answer:
            with pytest.raises(ClientPayloadError):
                await answer.read()
        place.gitlab.restore()
        place.gitlab.expire_artifacts(job)
        async with session.get(f"{url}/log") as answer:
            assert answer.status == 404
        async with session.get(f"{place.base}/jobs/{job.id}") as answer:
            assert "artifacts_file" not in await answer.json()
    async with ClientSession() as stranger, stranger.get(f"{url}/log") as answer:
        assert answer.status == 401


async def test_a_jobs_token_is_signed_by_a_key_that_everyone_can_read(place: Place) -> None:
    fork = place.gitlab.add_project("mallory/app")
    of_fork = place.gitlab.open_merge_request(fork, place.gitlab.add_user("mallory"), fork_of=place.project)
    job = place.gitlab.run_pipeline(of_fork, kind="merge").job("review")
    job.timeout = timedelta(minutes=5)
    first = place.gitlab.id_token(job, "https://rave.example")
    place.gitlab.rotate_keys()
    second = place.gitlab.id_token(job, "https://rave.example", jti=None)
    async with ClientSession() as session:
        async with session.get(f"{place.gitlab.url}/.well-known/openid-configuration") as answer:
            address = (await answer.json())["jwks_uri"]
        async with session.get(address) as answer:
            keys = jwt.PyJWKSet.from_dict(await answer.json())
        place.gitlab.fail(503, path="/oauth/discovery/keys")
        async with session.get(address) as answer:
            assert answer.status == 503
    claims = [
        jwt.decode(one, keys[jwt.get_unverified_header(one)["kid"]], algorithms=["RS256"], audience="https://rave.example")
        for one in (first, second)
    ]  # fmt: skip
    assert len(keys.keys) == 2
    assert (claims[0]["job_id"], claims[0]["pipeline_id"]) == (str(job.id), str(job.pipeline.id))
    assert (claims[0]["project_id"], claims[0]["job_project_id"]) == (str(fork.id), str(place.project.id))
    assert (claims[0]["exp"] - claims[0]["iat"], claims[0]["ref"]) == (300, "feature")
    assert claims[0]["sha"] != of_fork.sha, "a merged results pipeline has a commit of its own"
    assert "jti" not in claims[1]
    place.gitlab.rotate_keys(keep=False)
    assert len(place.gitlab.keys()["keys"]) == 1
