"""Where a job belongs: GitLab is asked, and what the token says besides the job's number counts for nothing.

The pipeline's ref names the merge request; a branch's pipeline belongs to the one open merge request of that branch.
What GitLab said of a running job is believed for ten seconds, so that a job that polls costs about one call in that
time.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ravebot.config.model import Config
from ravebot.errors import Forbidden, NotFound, RavebotError
from ravebot.gitlab.ci.jobs import CiJob, CiJobs, HeadOf, JobPipeline
from ravebot.gitlab.ci.tokens import JobClaims
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef

BELIEVED_SECONDS = 10.0
_MERGE_REQUEST_SECONDS = 30.0
"""Webhooks tell of new commits in between."""
_MOST_KNOWN = 2_000
_REF = re.compile(r"refs/merge-requests/([1-9][0-9]{0,9})/(head|merge|train)")
FROM_MERGE_REQUEST, FROM_SCHEDULE = "merge_request_event", "schedule"
_OF_A_BRANCH = frozenset({"push", "web", "webide", "api", "trigger", "chat", FROM_SCHEDULE})
"""Why GitLab runs a branch's own pipelines; `parent_pipeline` and `pipeline` are those that another one started."""


class JobRefused(RavebotError):
    """The job is known, and may not do this; the text says why, and what to do."""


@dataclass(frozen=True)
class JobPlace:
    """A running job and its merge request. `is_head`: its pipeline runs on the merge request's newest commit."""

    job: CiJob
    mr: MergeRequest
    is_head: bool


def named_by(pipeline: JobPipeline) -> tuple[MergeRequestRef, str] | None:
    """The merge request that a merge request pipeline's ref names, and how it runs: head, merge or train.

    Only GitLab itself runs pipelines for that reason; a branch may have such a name, too.
    """
    found = _REF.fullmatch(pipeline.ref)
    if found is None or pipeline.source != FROM_MERGE_REQUEST:
        return None
    return MergeRequestRef(pipeline.project_id, int(found[1])), found[2]


def runs_head(job: CiJob, head: HeadOf, kind: str = "head") -> bool:
    """Whether a job's pipeline runs the merge request's newest commit, or GitLab's merge of it into the target."""
    if job.pipeline.sha == head.mr.head_sha:
        return True
    # The first parent of such a merge is the target's: a head that was moved there is another commit.
    merges = kind in ("merge", "train") and job.parents[1:] == (head.mr.head_sha,)
    return merges and head.pipeline_id == job.pipeline.id


def branch_of(job: CiJob) -> str:
    """The branch that a job's pipeline runs on. Raises JobRefused if it is none."""
    if job.of_tag or job.pipeline.source not in _OF_A_BRANCH or job.pipeline.ref.startswith("refs/"):
        raise JobRefused(
            "this job's pipeline is neither a merge request's nor a branch's, as one that another pipeline started:"
            " put the job into the merge request's own pipeline, with `rules: [{if: $CI_MERGE_REQUEST_IID}]`"
        )
    return job.pipeline.ref


@dataclass
class _Known:
    job: CiJob | None = None
    place: JobPlace | None = None
    job_at: float = 0.0
    place_at: float = 0.0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class JobPlaces:
    """Asks GitLab. Every method raises JobRefused, Unavailable or Forbidden."""

    config: Config
    gitlab: CiJobs
    monotonic: Callable[[], float] = time.monotonic
    _known: OrderedDict[int, _Known] = field(default_factory=OrderedDict)

    async def place(
        self, claims: JobClaims, *, hint: int | None = None, fresh: bool = False, head: str = ""
    ) -> JobPlace:
        """Where a job belongs that runs now.

        `hint`: a project that may know it as well; `fresh`: ask in any case; `head`: what we know to be the merge
        request's newest commit, so that GitLab is asked again where it said otherwise.
        """
        known = self._entry(claims.job_id)
        async with known.asking:
            now = self.monotonic()
            if known.job is None or fresh or now - known.job_at >= BELIEVED_SECONDS:
                known.job = None  # if it can't be asked now, nothing is believed any more
                known.job = await self._running(claims, hint)
                known.job_at = now
            old = known.place
            late = old is None or fresh or now - known.place_at >= _MERGE_REQUEST_SECONDS
            if old is None or late or (head and head != old.mr.head_sha):
                known.place = None
                old = await self._find(known.job)
                known.place_at = now
            known.place = replace(old, job=known.job)
            return known.place

    async def must_belong(self, place: JobPlace) -> None:
        """Raises JobRefused unless GitLab lists the job's pipeline as one of the merge request's. A pipeline in a fork
        has the number of a merge request elsewhere in its ref."""
        if place.is_head or await self.gitlab.has_pipeline(place.mr.ref, place.job.pipeline.id):
            return
        raise JobRefused(f"GitLab does not know this job's pipeline as one of {place.mr.full_ref}")

    async def scheduled(self, claims: JobClaims, hint: int | None = None) -> tuple[CiJob, int, str]:
        """A job of a scheduled pipeline on its project's default branch; the project's id and path."""
        job = await self._running(claims, hint)
        project_id = job.pipeline.project_id
        path, branch = await self.gitlab.default_branch(project_id)
        self._must_serve(path)
        if job.pipeline.source != FROM_SCHEDULE or job.of_tag or not branch or job.pipeline.ref != branch:
            raise JobRefused(
                "only a job of a scheduled pipeline on the default branch may ask for this: make a schedule for"
                f" {branch or 'it'} under Build, Pipeline schedules, and give the job"
                ' `rules: [{if: $CI_PIPELINE_SOURCE == "schedule"}]`'
            )
        return job, project_id, path

    def _entry(self, job_id: int) -> _Known:
        known = self._known.setdefault(job_id, _Known())
        self._known.move_to_end(job_id)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return known

    def _must_serve(self, path: str) -> None:
        if not self.config.serves(path):
            raise JobRefused(f"{path} gets no sandboxes: an operator of ravebot can add it to gitlab.projects")

    async def _running(self, claims: JobClaims, hint: int | None) -> CiJob:
        if claims.project_path:
            self._must_serve(claims.project_path)
        likely = dict.fromkeys((claims.project_id, *((hint,) if hint and not claims.is_sure else ())))
        for project_id in likely:
            try:
                job = await self.gitlab.job(project_id, claims.job_id)
            except (NotFound, Forbidden):
                continue
            if job.id != claims.job_id or job.pipeline.project_id != project_id:
                continue
            if job.status != "running":
                raise JobRefused(
                    f"GitLab says that job {job.id} is {job.status}, and only a running job may ask: a token is of no"
                    " use after its job"
                )
            return job
        raise JobRefused(
            f"GitLab does not show job {claims.job_id} to ravebot: its user needs the role Developer in the project"
            " where the pipeline runs. A fork's pipelines run in the fork, unless a member runs one in the target"
            " project"
        )

    async def _find(self, job: CiJob) -> JobPlace:
        named = named_by(job.pipeline)
        if named is not None:
            ref, kind = named
            try:
                head = await self.gitlab.head_of(ref)
            except NotFound as error:
                raise JobRefused(f"GitLab does not show merge request !{ref.iid} to ravebot ({error})") from error
            self._must_serve(head.mr.project_path)
            return JobPlace(job, head.mr, runs_head(job, head, kind))
        branch = branch_of(job)
        found = await self.gitlab.of_branch(job.pipeline.project_id, branch)
        opened = [one for one in found if one.state == "opened"]
        if len(opened) > 1:
            raise JobRefused(
                "several open merge requests come from this job's branch: use merge request pipelines, with"
                " `rules: [{if: $CI_MERGE_REQUEST_IID}]`"
            )
        mr = next(iter(opened or found), None)
        if mr is None:
            raise JobRefused("there is no merge request from this job's branch: open one, and run the pipeline again")
        self._must_serve(mr.project_path)
        return JobPlace(job, mr, runs_head(job, HeadOf(mr, None)))
