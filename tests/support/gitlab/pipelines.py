"""Pipelines and jobs: what they are, and what people and runners do with them.

https://docs.gitlab.com/ci/pipelines/merge_request_pipelines/, https://docs.gitlab.com/api/jobs/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.gitlab.state import Environment, MergeRequest, Project, State, User

ArtifactFiles = Mapping[str, "bytes | Path"]
"""By their paths in the archive; what is a path on disk is streamed from there."""
FINISHED = frozenset({"success", "failed", "canceled", "skipped"})
_TRUE_ENDS = frozenset({"success", "failed", "canceled"})


@dataclass(eq=False)
class Pipeline:
    """`project` is where it runs; `sha` of a merged results pipeline is that of a commit that merges the head."""

    id: int
    iid: int
    project: Project
    sha: str
    ref: str
    source: str
    created_at: datetime
    updated_at: datetime
    user: User | None = None
    mr: MergeRequest | None = None
    branch: str = ""
    """What `ref` is called for tokens: the branch that the code comes from."""
    status: str = "created"
    jobs: list[Job] = field(default_factory=list)

    def job(self, name: str) -> Job:
        """The newest of that name."""
        return next(job for job in reversed(self.jobs) if job.name == name)


@dataclass(eq=False)
class Job:
    """`environment`, `action` and `on_stop` are those keywords of `.gitlab-ci.yml`."""

    id: int
    name: str
    stage: str
    pipeline: Pipeline
    user: User
    created_at: datetime
    status: str = "created"
    started_at: datetime | None = None
    finished_at: datetime | None = None
    retried: bool = False
    allow_failure: bool = False
    environment: str = ""
    action: str = "start"
    on_stop: str = ""
    url: str = ""
    """The `url` of its environment."""
    timeout: timedelta = timedelta(hours=1)
    artifacts: dict[str, bytes | Path] = field(default_factory=dict)
    artifacts_expire_at: datetime | None = None
    failure_reason: str = ""

    @property
    def project(self) -> Project:
        return self.pipeline.project

    def has_artifacts(self, now: datetime) -> bool:
        return bool(self.artifacts) and (self.artifacts_expire_at is None or now < self.artifacts_expire_at)


class PipelineActions:
    """What `Actions` can do with them; tests play the runner."""

    state: State

    def run_pipeline(
        self,
        mr: MergeRequest,
        jobs: Iterable[str] = ("build", "review"),
        *,
        kind: str = "head",
        source: str = "merge_request_event",
        project: Project | None = None,
        by: User | None = None,
    ) -> Pipeline:
        """A merge request pipeline with its jobs, none of which has started. It becomes the head pipeline.

        `kind` is head, merge or train (a merged results pipeline runs on a commit of its own that merges the head).
        `project`: where it runs, the merge request's own unless told: pipelines of forks run in the fork until a
        member of the target runs one there.
        """
        with self.state.lock:
            where, user, sha = project or mr.project, by or mr.author, mr.sha
            if kind != "head":
                tree = {**mr.project.commits[mr.project.head], **mr.source_project.commits[mr.sha]}
                title = f"Merge {mr.sha} into {mr.project.head}"
                sha = self.state.commit(where, tree, parent=mr.project.head, message=title, merged=mr.sha)
            ref = f"refs/merge-requests/{mr.iid}/{kind}"
            made = self._pipeline(where, sha, ref, source, user, jobs, mr=mr, branch=mr.branch)
            mr.head_pipeline, mr.updated_at = made, self.state.now()
            return made

    def run_branch_pipeline(
        self,
        project: Project,
        branch: str = "main",
        jobs: Iterable[str] = ("build",),
        *,
        source: str = "push",
        by: User | None = None,
    ) -> Pipeline:
        """A pipeline of a branch; `source` is schedule for a scheduled one.

        It is also the head pipeline of merge requests that come from that branch and have none of their own.
        """
        with self.state.lock:
            head = self.state.branch(project, branch)
            assert head is not None, f"there is no branch {branch}"
            made = self._pipeline(project, head, branch, source, by, jobs, branch=branch)
            for mr in self.state.merge_requests:
                if mr.source_project is project and mr.branch == branch and mr.state == "opened":
                    own = mr.head_pipeline is not None and mr.head_pipeline.mr is mr
                    if not own or (mr.head_pipeline and mr.head_pipeline.sha != head):
                        mr.head_pipeline = made
            return made

    def name_environment(self, job: Job, name: str, action: str = "start", on_stop: str = "", url: str = "") -> None:
        """The job's keyword `environment`: GitLab makes that environment with the pipeline, without a link.

        app/services/environments/create_for_job_service.rb
        """
        with self.state.lock:
            job.environment, job.action, job.on_stop, job.url = name, action, on_stop, url
            if all(one.name != name for one in job.project.environments.values()):
                self.state.add_environment(job.project, name, "", "development")

    def on_stop_job(self, environment: Environment) -> Job | None:
        """The job that the newest successful job of the environment names in `on_stop`."""
        with self.state.lock:
            jobs = [job for pipeline in environment.project.pipelines for job in pipeline.jobs]
            of_it = [job for job in jobs if job.environment == environment.name and job.action == "start"]
            last = max((job for job in of_it if job.status == "success"), key=lambda job: job.id, default=None)
            return last.pipeline.job(last.on_stop) if last and last.on_stop else None

    def play_job(self, job: Job) -> Job:
        """Let a runner have it; one that ended is run again."""
        with self.state.lock:
            if job.status in FINISHED:
                return self.retry_job(job)
            job.status = "pending"
            self._settle(job.pipeline)
            return job

    def start_job(self, job: Job) -> Job:
        """A runner takes it."""
        with self.state.lock:
            job.status, job.started_at = "running", self.state.now()
            self._settle(job.pipeline)
            return job

    def finish_job(
        self,
        job: Job,
        status: str = "success",
        *,
        artifacts: ArtifactFiles | None = None,
        expire_in: timedelta | None = timedelta(days=30),
        failure_reason: str = "script_failure",
    ) -> Job:
        """It ends, and leaves these files."""
        with self.state.lock:
            now = self.state.now()
            job.status, job.finished_at, job.started_at = status, now, job.started_at or now
            job.failure_reason = failure_reason if status == "failed" else ""
            job.artifacts = dict(artifacts or {})
            job.artifacts_expire_at = now + expire_in if expire_in and job.artifacts else None
            if (job.action, status) == ("stop", "success"):  # app/workers/environments/stop_job_success_worker.rb
                for one in job.project.environments.values():
                    if one.name == job.environment:
                        one.state, one.updated_at = "stopped", now
            self._settle(job.pipeline)
            return job

    def retry_job(self, job: Job) -> Job:
        """As the button does: a new job of the same name in the same pipeline."""
        with self.state.lock:
            job.retried = True
            made = self._job(job.pipeline, job.name, job.stage, job.user)
            made.environment, made.action, made.on_stop, made.url = job.environment, job.action, job.on_stop, job.url
            made.status = "pending"
            self._settle(job.pipeline)
            return made

    def expire_artifacts(self, job: Job) -> None:
        """GitLab deletes them at their time."""
        with self.state.lock:
            job.artifacts_expire_at = self.state.now()

    def _pipeline(
        self,
        project: Project,
        sha: str,
        ref: str,
        source: str,
        by: User | None,
        jobs: Iterable[str],
        *,
        mr: MergeRequest | None = None,
        branch: str = "",
    ) -> Pipeline:
        made = self.state.add_pipeline(project, sha, ref, source)
        made.user, made.mr, made.branch, made.status = by, mr, branch, "pending"
        for name in jobs:
            self._job(made, name, name, by).status = "pending"
        return made

    def _job(self, pipeline: Pipeline, name: str, stage: str, by: User | None) -> Job:
        user = by or next(iter(self.state.users.values()))
        job = Job(self.state.next_id(), name, stage, pipeline, user, self.state.now())
        pipeline.jobs.append(job)
        return job

    def _settle(self, pipeline: Pipeline) -> None:
        """What its jobs make of it, more simply than GitLab's stages do."""
        states = {job.status for job in pipeline.jobs if not job.retried and job.status != "manual"}
        pipeline.updated_at = self.state.now()
        if states - FINISHED:
            pipeline.status = "running" if states & ({"running"} | _TRUE_ENDS) else "pending"
        else:
            order = ("failed", "canceled", "success", "skipped")
            pipeline.status = next((one for one in order if one in states), "skipped")
