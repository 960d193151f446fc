"""The door for CI jobs over HTTP: what a job may, what it hears, and that no other token opens anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.images.pipelines.announcing import AnnouncedImages
from ravebot.providers.base import RunResult
from ravebot.sandboxes.model import MergeRequest as StoredMergeRequest
from ravebot.store import pipeline_images
from ravebot.store.database import Transaction
from tests.support.ci_yard import CiYard, a_ci_yard
from tests.support.environment_show import Show
from tests.support.gitlab import DEVELOPER, GitLabServer, Job, MergeRequest
from tests.support.gitlab.published import misfits
from tests.support.records import BY_ALICE, make_config
from tests.support.yard import HOW_A_JOB_GOES

pytestmark = pytest.mark.integration


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[CiYard]:
    async with a_ci_yard(tmp_path / "state") as made:
        yield made


async def sandboxes_of(yard: CiYard, mr: MergeRequest | None = None) -> list[str]:
    of = mr or yard.mr
    found = await yard.yard.read(
        lambda tx: tx.all(
            "SELECT state FROM sandboxes WHERE project_id = ? AND iid = ? ORDER BY id", (of.project.id, of.iid)
        )
    )
    return [row["state"] for row in found]


async def test_a_job_hears_how_its_sandbox_comes_until_it_is_ready(yard: CiYard) -> None:
    job = yard.job()
    heard = await yard.get(job)
    assert (heard.status, heard.state) == (202, "queued"), "no webhook came: what GitLab says counts as one"
    assert heard.facts["waits"]
    await yard.reaches("ready")
    ready = await yard.get(job)
    assert (ready.status, ready.state, ready.facts["sha"]) == (200, "ready", yard.mr.sha)
    assert ready.facts["ssh"].startswith("ssh -o HostKeyAlias=")
    as_json = yard.session.get(
        f"{yard.url}/api/v1/ci/sandbox",
        headers={"Accept": "application/json", "Authorization": f"Bearer {yard.token(job)}"},
    )
    async with as_json as answer:
        assert (await answer.json())["state"] == "ready"


async def test_a_job_waits_at_the_door_and_hears_at_once_when_it_is_ready(yard: CiYard) -> None:
    job = yard.job()
    await yard.get(job)
    waiting = asyncio.create_task(yard.get(job, "?wait=20"))
    await yard.ready()
    heard = await asyncio.wait_for(waiting, 5)
    assert heard.status == 200


async def test_a_failed_sandbox_is_told_with_its_reason_and_the_end_of_the_output(yard: CiYard) -> None:
    yard.yard.provider.answers[HOW_A_JOB_GOES] = RunResult(0, "3\none\n\x1b[31mtwo\x07\nerror=three\n")
    job = yard.job()
    await yard.get(job)
    for _ in range(40):
        await yard.yard.go()
        yard.yard.pass_by(seconds=1)
        heard = await yard.get(job)
        if heard.status != 202:
            break
    assert (heard.status, heard.state) == (422, "failed")
    assert "failed" in heard.reason
    assert heard.log[-1].endswith("error=three")
    assert "\x1b" not in "".join(heard.log)
    assert heard.error == "", "output can't be taken for a fact"


async def test_a_token_that_set_up_prints_does_not_reach_the_job(yard: CiYard) -> None:
    token = "glpat-abcdefghij0123456789"
    printed = (
        f"clone https://ci:p@ss-{token}@host/x\nPRIVATE-TOKEN: {token}\n\x1b[1m{token[:9]}\x1b[0m{token[9:]}\nend\n"
    )
    yard.yard.provider.answers[HOW_A_JOB_GOES] = RunResult(0, f"3\n{printed}")
    job = yard.job()
    await yard.get(job)
    for _ in range(40):
        await yard.yard.go()
        yard.yard.pass_by(seconds=1)
        heard = await yard.get(job)
        if heard.status != 202:
            break
    assert (heard.status, heard.log[-1].strip()) == (422, "end")
    said = str(heard)
    assert said.count("[masked]") >= 3
    assert not any(part in said for part in ("abcdefghij", "0123456789", "p@ss", "ss-"))


async def test_an_older_commits_job_hears_that_it_is_overtaken(yard: CiYard) -> None:
    job = yard.job()
    await yard.get(job)
    yard.server.push(yard.mr, {"more": "code"})
    yard.ticking.seconds += 31
    heard = await yard.get(job)
    assert (heard.status, heard.state) == (409, "overtaken")
    assert yard.mr.sha[:8] in heard.reason
    assert (await yard.post("/sandbox", job)).status == 409
    assert (await yard.get(yard.job())).status == 202


async def test_a_webhook_of_a_newer_commit_counts_before_gitlab_is_asked_again(yard: CiYard) -> None:
    job = yard.job()
    await yard.get(job)
    yard.server.push(yard.mr, {"more": "code"})
    await yard.yard.told(await yard.stored())
    assert (await yard.get(job)).status == 409


async def test_a_merged_results_pipeline_is_of_the_head_while_it_is_the_head_pipeline(yard: CiYard) -> None:
    job = yard.job(kind="merge")
    assert job.pipeline.sha != yard.mr.sha
    assert (await yard.get(job)).status == 202
    yard.server.push(yard.mr, {"more": "code"})  # GitLab goes on naming that pipeline until there is another
    yard.ticking.seconds += 31
    assert (await yard.get(job)).status == 409


async def test_a_branchs_pipeline_belongs_to_the_merge_request_of_that_branch(yard: CiYard) -> None:
    pipeline = yard.server.run_branch_pipeline(yard.app, "feature", ["review"], by=yard.alice)
    job = yard.server.start_job(pipeline.job("review"))
    assert (await yard.get(job)).status == 202
    yard.server.open_merge_request(yard.app, yard.alice, "The same branch", "feature")
    yard.ticking.seconds += 31
    refused = await yard.get(job)
    assert refused.status == 403
    assert "several" in refused.error
    alone = yard.server.run_branch_pipeline(yard.app, "main", ["review"], by=yard.alice)
    assert "no merge request" in (await yard.get(yard.server.start_job(alone.job("review")))).error


@pytest.mark.parametrize("source", ["parent_pipeline", "pipeline", "external", "security_orchestration_policy"])
async def test_a_pipeline_that_another_one_started_on_the_branch_reaches_none(yard: CiYard, source: str) -> None:
    pipeline = yard.server.run_branch_pipeline(yard.app, "feature", ["review"], by=yard.alice, source=source)
    refused = await yard.post("/stop", yard.server.start_job(pipeline.job("review")))
    assert (refused.status, "as one that another pipeline started" in refused.error) == (403, True)


async def test_a_branch_that_is_named_like_a_merge_request_reaches_none(yard: CiYard) -> None:
    job = yard.job(source="push")
    refused = await yard.post("/stop", job)
    assert refused.status == 403
    assert "neither a merge request's nor a branch's" in refused.error


async def test_a_job_starts_at_most_one_sandbox_however_often_it_asks(yard: CiYard) -> None:
    await yard.ready()
    first = yard.job()
    assert (await yard.post("/stop", first)).state == "stopping"
    await yard.reaches("ended")
    assert (await yard.get(first)).status == 404
    yard.yard.pass_by(seconds=60)
    later = yard.job()
    later.started_at = yard.yard.clock.now()
    again = [await yard.post("/sandbox", later) for _ in range(3)]
    assert [one.status for one in again] == [202, 202, 202]
    assert await sandboxes_of(yard) == ["ended", "queued"]
    await yard.post("/stop", later)
    refused = await yard.post("/sandbox", later)
    assert (refused.status, "run the job again" in refused.reason) == (404, True), "it had its one"
    assert await sandboxes_of(yard) == ["ended", "ended"]
    recorded = await yard.yard.log("api.call")
    assert [(one["tool"], one["job"]) for one in recorded] == [
        ("ci_stop", first.id), ("ci_start", later.id), ("ci_stop", later.id),
    ]  # fmt: skip


async def test_to_stop_is_repeated_in_peace_also_after_the_merge_and_by_an_old_pipeline(yard: CiYard) -> None:
    old = yard.job(name="review")
    await yard.ready()
    yard.server.push(yard.mr, {"more": "code"})
    await yard.yard.told(await yard.stored())
    assert [(await yard.post("/stop", old)).status for _ in range(3)] == [200, 200, 200]
    assert (await sandboxes_of(yard)) == ["stopping"]
    await yard.reaches("ended")
    yard.server.merge(yard.mr)
    heard = await yard.post("/stop", old)
    assert (heard.status, heard.state) == (200, "none")
    assert await sandboxes_of(yard) == ["ended"]


async def test_a_job_of_one_merge_request_reaches_no_other(yard: CiYard) -> None:
    other = yard.server.open_merge_request(yard.app, yard.alice, "Another", "other")
    await yard.ready()
    await yard.ready(other)
    await yard.post("/stop", yard.job(other))
    assert await sandboxes_of(yard) == ["ready"]
    assert await sandboxes_of(yard, other) == ["stopping"]


async def test_a_project_that_gets_no_sandboxes_is_refused_whatever_the_token_says(yard: CiYard) -> None:
    strange = yard.server.add_project("elsewhere/app", public=True)
    mr = yard.server.open_merge_request(strange, yard.alice)
    job = yard.job(mr)
    before = yard.calls("/jobs/")
    refused = await yard.get(job)
    assert refused.status == 403
    assert "gitlab.projects" in refused.error
    assert yard.calls("/jobs/") == before, "GitLab was not asked"
    lying = await yard.get(yard.token(job, job_project_path="group/app"))
    assert lying.status == 403
    mine = yard.token(job, job_project_id=str(yard.app.id), job_project_path="group/app")
    assert (await yard.get(mine)).status == 403, "the job is not one of group/app"


async def test_a_pipeline_in_a_fork_does_not_reach_the_forks_own_merge_request_of_that_number(yard: CiYard) -> None:
    fork = yard.server.add_project("group/fork", public=True)
    for user in (yard.alice, yard.bot):
        yard.server.set_role(fork, user, DEVELOPER)
    own = yard.server.open_merge_request(fork, yard.alice, "Its own", "own")
    upstream = yard.server.open_merge_request(fork, yard.alice, "For upstream", "work", fork_of=yard.app)
    await yard.ready(own)
    upstream.iid = own.iid  # the numbers are of two projects
    job = yard.job(upstream, project=fork)
    refused = await yard.post("/stop", job)
    assert refused.status == 403
    assert await sandboxes_of(yard, own) == ["ready"]


async def test_a_forks_job_starts_nothing_before_its_commit_is_approved(yard: CiYard) -> None:
    fork = yard.server.add_project("mallory/app")
    mallory = yard.server.add_user("mallory")
    mr = yard.server.open_merge_request(fork, mallory, "Trust me", fork_of=yard.app)
    job = yard.job(mr, by=yard.alice)
    assert yard.server.claims(job, "x")["project_id"] == str(fork.id), "the token names the fork"
    for heard in (await yard.get(job), await yard.post("/sandbox", job)):
        assert heard.status == 404
        assert f"/sandbox start {mr.sha}" in heard.reason
    assert await sandboxes_of(yard, mr) == []


async def test_what_start_says_holds_for_jobs_too(yard: CiYard) -> None:
    yard.server.push(yard.mr, {".rave.yml": "start: command\n"})
    heard = await yard.post("/sandbox", yard.job())
    assert (heard.status, heard.state) == (404, "none")
    assert "command only" in heard.reason
    draft = yard.server.open_merge_request(yard.app, yard.alice, "Not yet", "draft", {".rave.yml": "start: ready\n"},
                                           draft=True)  # fmt: skip
    assert "drafts" in (await yard.post("/sandbox", yard.job(draft))).reason
    yard.server.label(yard.mr, "sandbox::off")
    assert "label" in (await yard.post("/sandbox", yard.job())).reason
    assert await sandboxes_of(yard) == []


@pytest.mark.parametrize("status", ["success", "failed", "canceled", "canceling"])
async def test_a_finished_jobs_token_is_of_no_use(yard: CiYard, status: str) -> None:
    await yard.ready()
    job = yard.job()
    token = yard.token(job)
    assert (await yard.get(token)).status == 200
    yard.server.finish_job(job, status)
    for path in ("/stop", "/sandbox"):  # what acts asks GitLab in any case
        refused = await yard.post(path, token)
        assert refused.status == 403
        assert status in refused.error
    yard.ticking.seconds += 11
    assert (await yard.get(token)).status == 403
    assert await sandboxes_of(yard) == ["ready"]


async def test_a_job_that_has_not_begun_may_not_ask(yard: CiYard) -> None:
    job = yard.server.run_pipeline(yard.mr).job("review")
    assert (await yard.get(job)).status == 403


async def test_polling_costs_about_one_call_in_ten_seconds(yard: CiYard) -> None:
    job = yard.job()
    await yard.ready()
    await yard.get(job)
    before = len(yard.server.requests)
    for _ in range(20):
        yard.ticking.seconds += 3
        assert (await yard.get(job)).status == 200
    assert len(yard.server.requests) - before <= 8, "in a minute"


async def test_a_first_request_asks_gitlab_at_most_three_things_of_its_api(yard: CiYard) -> None:
    job = yard.job()
    await yard.get(job)
    assert [request.path.rpartition("/api/v4")[2] for request in yard.server.requests if "/api/" in request.path] == [
        f"/projects/{yard.app.id}/jobs/{job.id}",
        f"/projects/{yard.app.id}/merge_requests/1",
        f"/projects/{yard.app.id}/repository/files/.rave.yml/raw",
    ]


async def test_while_gitlab_does_not_answer_a_job_is_told_to_come_again(yard: CiYard) -> None:
    job = yard.job()
    token = yard.token(job)
    yard.server.fail(503, path="/jobs/")
    heard = await yard.get(token)
    assert (heard.status, int(heard.headers["Retry-After"]) > 0) == (503, True)
    yard.server.restore()
    assert (await yard.get(token)).status == 202


async def test_a_scheduled_job_on_the_default_branch_has_its_project_looked_at_and_no_more(yard: CiYard) -> None:
    def scheduled(branch: str, source: str) -> Job:
        pipeline = yard.server.run_branch_pipeline(yard.app, branch, ["clean-up"], source=source, by=yard.alice)
        return yard.server.start_job(pipeline.job("clean-up"))

    right = scheduled("main", "schedule")
    assert [(await yard.post("/reconcile", right)).status for _ in range(2)] == [200, 200]
    assert yard.looked == [(yard.app.id, "group/app")] * 2
    for wrong in (scheduled("feature", "schedule"), scheduled("main", "push"), yard.job()):
        refused = await yard.post("/reconcile", wrong)
        assert refused.status == 403
        assert "schedule" in refused.error
    assert (await yard.post("/stop", right)).status == 403
    assert len(yard.looked) == 2


async def test_what_was_begun_before_a_crash_is_answered_the_same_after_it(tmp_path: Path) -> None:
    async with GitLabServer() as server:
        async with a_ci_yard(tmp_path / "state", server=server) as yard:
            job = yard.job()
            first = await yard.post("/sandbox", job)
        async with a_ci_yard(tmp_path / "state", server=server) as yard:
            assert (await yard.post("/sandbox", job)).facts.get("state") == first.facts["state"] == "queued"
            assert await sandboxes_of(yard) == ["queued"]
            assert (await yard.post("/stop", job)).status == 200
        async with a_ci_yard(tmp_path / "state", server=server) as yard:
            assert (await yard.post("/stop", job)).status == 200
            assert await sandboxes_of(yard) == ["ended"]


async def test_other_addresses_and_methods_and_odd_requests_are_told_what_there_is(yard: CiYard) -> None:
    job = yard.job()
    assert (await yard.ask("DELETE", "/sandbox", job)).status == 405
    assert "POST /stop" in (await yard.post("/everything", job)).error
    for wait in ("26", "-1", "x", "9" * 30):
        assert (await yard.get(job, f"?wait={wait}")).status == 400
    assert (await yard.post("/image", job)).status == 404
    large = await yard.post("/image", job, data=b"x" * 5000)
    assert large.status == 413


async def test_a_job_that_floods_is_slowed_and_others_are_not(yard: CiYard) -> None:
    job, other = yard.job(), yard.job()
    token = yard.token(job)
    heard = [await yard.get(token) for _ in range(40)]
    assert {one.status for one in heard} == {202, 429}
    assert int(heard[-1].headers["Retry-After"]) >= 1
    assert (await yard.get(other)).status == 202
    crowd = await asyncio.gather(*(yard.get(yard.token(other), "?wait=1") for _ in range(7)))
    assert sorted({one.status for one in crowd}) == [202, 429]


async def test_a_wrong_token_is_answered_as_http_wants_and_many_of_them_are_slowed(yard: CiYard) -> None:
    job = yard.job()
    refused = await yard.get(yard.token(job, aud="https://other.example.org"))
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"].startswith("Bearer ")
    assert "id_tokens: {RAVEBOT_TOKEN: {aud: https://rave.example.org}}" in refused.error
    assert (await yard.get(None)).status == 401
    heard = [await yard.post("/stop", "no.token.atall") for _ in range(30)]
    assert {one.status for one in heard} == {401, 429}
    assert (await yard.get(job)).status == 202, "one that is right, from the same address"


async def test_tokens_that_name_keys_which_nobody_knows_count_as_wrong_ones_of_their_address(yard: CiYard) -> None:
    job = yard.job()
    assert (await yard.get(job)).status == 202
    claims = yard.server.claims(job, "https://rave.example.org")
    heard = [await yard.get(yard.server.sign(claims, kid=f"key-{number}")) for number in range(30)]
    assert [one.status for one in heard[:2]] == [503, 503], "GitLab was asked for its keys less than a minute ago"
    assert heard[-1].status == 429
    assert "too many wrong tokens came from your address" in heard[-1].error
    assert (await yard.get(job)).status == 202, "one that is right, from the same address"


async def test_a_head_that_is_too_long_is_not_read(yard: CiYard) -> None:
    head = {"Authorization": "Bearer " + "a" * 20_000}
    async with yard.session.post(f"{yard.url}/api/v1/ci/stop", headers=head) as answer:
        assert answer.status == 400, "no longer head is read"


async def test_gitlab_describes_every_request_that_the_door_makes(yard: CiYard) -> None:
    old = yard.job()
    await yard.get(old)
    yard.server.push(yard.mr, {"more": "code"})
    await yard.post("/stop", old)
    branch = yard.server.run_branch_pipeline(yard.app, "feature", ["review"], by=yard.alice)
    await yard.get(yard.server.start_job(branch.job("review")))
    scheduled = yard.server.run_branch_pipeline(yard.app, "main", ["clean-up"], source="schedule", by=yard.alice)
    await yard.post("/reconcile", yard.server.start_job(scheduled.job("clean-up")))
    asked = [request for request in yard.server.requests if "/api/v4/" in request.path]
    assert {part for part in ("jobs", "pipelines", "merge_requests") if any(part in one.path for one in asked)} == {
        "jobs", "pipelines", "merge_requests",
    }  # fmt: skip
    assert misfits(asked) == []


async def test_stop_on_gitlabs_page_its_job_and_our_own_stop_end_in_peace(yard: CiYard) -> None:
    await yard.ready()
    show = Show(yard.server, yard.yard, yard.gitlab, yard.app, yard.alice, yard.bot)
    await show.settle()
    pipeline = yard.server.run_pipeline(yard.mr, ["review", "stop"])
    yard.server.name_environment(pipeline.job("review"), "review/mr-1", on_stop="stop")
    yard.server.name_environment(pipeline.job("stop"), "review/mr-1", action="stop")
    yard.server.finish_job(pipeline.job("review"))
    environment = yard.server.environment(yard.app, "review/mr-1")
    assert environment
    yard.server.stop_environment(environment)
    assert environment.state == "stopping", "GitLab runs the job first"
    stop = yard.server.start_job(pipeline.job("stop"))
    assert (await yard.post("/stop", stop)).state == "stopping"
    await yard.reaches("ended")
    await show.settle()
    assert pipeline.job("stop") is stop, "our own stop ran the job no other time"
    assert (await yard.post("/stop", stop)).state == "none"
    yard.server.finish_job(stop)
    await show.settle()
    assert yard.server.environment(yard.app, "review/mr-1") is None
    assert await sandboxes_of(yard) == ["ended"]


async def test_our_own_stop_does_not_run_the_job_that_would_stop_again(yard: CiYard) -> None:
    await yard.ready()
    show = Show(yard.server, yard.yard, yard.gitlab, yard.app, yard.alice, yard.bot)
    await show.settle()
    pipeline = yard.server.run_pipeline(yard.mr, ["review", "stop"])
    yard.server.name_environment(pipeline.job("review"), "review/mr-1", on_stop="stop")
    stop = pipeline.job("stop")
    stop.status = "manual"
    yard.server.finish_job(pipeline.job("review"))
    assert (await yard.post("/stop", yard.job())).state == "stopping"
    await yard.reaches("ended")
    await show.settle()
    assert (stop.status, pipeline.job("stop")) == ("manual", stop)


async def test_a_gitlab_below_a_path_signs_with_that_path_and_shows_its_keys_there(tmp_path: Path) -> None:
    async with GitLabServer(prefix="/gitlab") as server, a_ci_yard(tmp_path / "state", server=server) as yard:
        job = yard.job()
        assert (await yard.get(job)).status == 202
        assert (await yard.get(yard.token(job, iss=server.url.removesuffix("/gitlab")))).status == 401


@dataclass
class Kept:
    """What was told of images, for a part that believes all of it but one job."""

    told: list[tuple[str, str, int, str, str, str]] = field(default_factory=list)

    def announced(
        self, tx: Transaction, mr: StoredMergeRequest, sha: str, pipeline_id: int, job: str, path: str, sha256: str
    ) -> str:
        assert tx.now
        if job == "nobody":
            return "the pipeline has no job nobody: name the one that makes the image"
        self.told.append((mr.full_ref, sha, pipeline_id, job, path, sha256))
        return ""


async def test_a_job_says_which_file_is_the_image_of_its_own_commit(tmp_path: Path) -> None:
    kept, digest = Kept(), "ab" * 32
    async with a_ci_yard(tmp_path / "state", images=kept) as yard:
        job = yard.job()
        assert (await yard.post("/image", job)).state == "noted"
        told = {"job": "build", "path": "image/sandbox.qcow2", "sha256": digest}
        for body in ({"json": told}, {"data": told}, {"json": told}):
            assert (await yard.post("/image", job, **body)).status == 200
        whose = ("group/app!1", yard.mr.sha, job.pipeline.id)
        assert kept.told == [(*whose, "", "", ""), *[(*whose, "build", "image/sandbox.qcow2", digest)] * 3]
        refused = await yard.post("/image", job, json={"job": "nobody"})
        assert (refused.status, "no job nobody" in refused.error) == (422, True)
        for wrong in ({"path": "../x"}, {"sha256": "1"}, {"url": "http://evil"}, {"job": 7}, ["job"]):
            assert (await yard.post("/image", job, json=wrong)).status == 400
        job = yard.job()
        assert (await yard.post("/image", job, data=b"\xff\xfe")).status == 400
        assert (await yard.post("/image", job, data=b"[" * 4000)).status == 400
        assert (await yard.post("/image", job, data=b"x" * 5000)).status == 413
        yard.server.push(yard.mr, {"more": "code"})
        assert (await yard.post("/image", job)).status == 409
        assert len(kept.told) == 4


async def test_a_gitlab_that_is_silent_costs_a_job_seconds_and_nobody_else_anything(yard: CiYard) -> None:
    job = yard.job()
    assert (await yard.get(job)).status == 202
    yard.server.drop(path="/jobs/")
    yard.ticking.seconds += 11
    asked = asyncio.create_task(yard.get(yard.token(job)))
    await asyncio.sleep(0.1)
    assert not asked.done()
    assert (await yard.stored()).head_sha == yard.mr.sha, "other calls have threads of their own"
    yard.server.restore()
    assert (await asked).status in (200, 202, 503)


async def test_what_a_job_says_of_its_image_is_there_for_the_sandbox_that_waits_for_it(tmp_path: Path) -> None:
    where = {"pipeline_images": {"folder": str(tmp_path / "images")}}
    config = make_config(tmp_path, provider=where)
    async with a_ci_yard(tmp_path / "state", images=AnnouncedImages(config), provider=where) as yard:
        without = await yard.post("/image", yard.job())
        assert (without.status, "image_job" in without.error) == (422, True)
        yard.server.push(yard.mr, {".rave.yml": "image_job: build\n"})
        job = yard.job()
        told = {"job": "make", "path": "out/disk.qcow2", "sha256": "0" * 64}
        assert [(await yard.post("/image", job, json=told)).status for _ in range(2)] == [200, 200]
        stored = await yard.stored()
        kept = await yard.yard.read(lambda tx: pipeline_images.get(tx, stored.ref, yard.mr.sha))
        assert kept
        assert (kept.pipeline_id, kept.announced_job, kept.announced_path) == (
            job.pipeline.id, "make", "out/disk.qcow2",
        )  # fmt: skip
        assert (await yard.get(job)).state == "queued"


async def test_what_a_person_stops_while_a_job_runs_the_job_does_not_start_again(yard: CiYard) -> None:
    await yard.ready()
    yard.yard.pass_by(seconds=60)
    job = yard.job()
    job.started_at = yard.yard.clock.now()
    yard.yard.pass_by(seconds=10)
    mr = await yard.yard.mr(await yard.stored())
    await yard.yard.write(lambda tx: yard.yard.intents.stop(tx, mr, BY_ALICE))
    await yard.reaches("ended")
    refused = await yard.post("/sandbox", job)
    assert (refused.status, "was stopped. A job starts at most one" in refused.reason) == (404, True)
    again = yard.job()
    again.started_at = yard.yard.clock.now() + timedelta(seconds=6)
    assert (await yard.post("/sandbox", again)).status == 202, "the job was run again"


async def test_a_job_starts_one_after_an_earlier_commit_s_sandbox_has_failed_in_the_job_s_time(yard: CiYard) -> None:
    yard.yard.provider.answers[HOW_A_JOB_GOES] = RunResult(0, "3\nbroken\n")
    old = yard.job()
    await yard.get(old)
    while (await yard.get(old)).status == 202:
        await yard.yard.go()
        yard.yard.pass_by(seconds=1)
    yard.server.push(yard.mr, {"more": "code"})
    mending = yard.job()
    assert mending.started_at
    await yard.reaches("ended")
    assert (await yard.post("/sandbox", mending)).status == 202
    assert await sandboxes_of(yard) == ["ended", "queued"]


async def test_an_older_gitlab_tells_of_a_forks_job_with_the_project_that_the_request_names(yard: CiYard) -> None:
    fork = yard.server.add_project("mallory/app")
    mr = yard.server.open_merge_request(fork, yard.server.add_user("mallory"), "From afar", fork_of=yard.app)
    job = yard.job(mr, by=yard.alice)
    token = yard.token(job, job_project_id=None, job_project_path=None)
    assert (await yard.get(token)).status == 403, "the fork is all that the token names"
    for project, status in ((yard.app.id, 404), (fork.id, 403), ("x", 403), (0, 403)):
        assert (await yard.get(token, headers={"X-Project-Id": str(project)})).status == status
        yard.ticking.seconds += 11
    lying = yard.token(yard.job(), job_project_id=str(fork.id), job_project_path="mallory/app")
    assert (await yard.get(lying, headers={"X-Project-Id": str(yard.app.id)})).status == 403, "newer ones are sure"


async def test_a_job_that_waits_does_not_hold_up_the_end_of_ravebot(tmp_path: Path) -> None:
    async with GitLabServer() as server, a_ci_yard(tmp_path / "state", server=server) as yard:
        waiting = asyncio.create_task(yard.get(yard.job(), "?wait=25"))
        while not await sandboxes_of(yard):
            await asyncio.sleep(0.01)
        began = time.monotonic()
        await yard.stop_serving()
        assert time.monotonic() - began < 3
        assert (await waiting).status == 202
