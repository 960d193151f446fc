"""Carries out one step at GitLab, and says what to keep of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never
from urllib.parse import urlsplit

from ravebot.backoff import Backoff
from ravebot.clock import age
from ravebot.config.model import Config
from ravebot.errors import Forbidden, NotFound, Unavailable
from ravebot.gitlab.environments import Environments, FoundEnvironment, NameTaken
from ravebot.gitlab.escape import one_line
from ravebot.gitlab.transport import TIMEOUT_SECONDS
from ravebot.notify.environments.wording import foreign
from ravebot.sandboxes.environments.model import STATUS_NAME, AskedFor, CommitState, EnvironmentRecord, EnvironmentState
from ravebot.sandboxes.environments.plan import LONGEST_DESCRIPTION, Deed, ShowStep
from ravebot.sandboxes.model import MergeRequest

Change = Callable[[EnvironmentRecord], EnvironmentRecord]
_LOOK_AGAIN_SECONDS = 3.0
_STOPPING_SECONDS = 10.0
_TAKEN_PAUSES = Backoff.growing(2.0, 900.0)
_NO_COMMIT = "404 Commit Not Found"


class Foreign(Forbidden):
    """The environment is not ours."""


@dataclass(frozen=True)
class ShowTask:
    """A step that is recorded, and what was known then."""

    step: ShowStep
    known: EnvironmentRecord
    mr: MergeRequest


def asking(known: EnvironmentRecord, step: ShowStep, now: datetime) -> EnvironmentRecord:
    """What must be recorded before the request is made, as the process may be killed meanwhile."""
    match step.deed:
        case Deed.CREATE_ENVIRONMENT:
            return replace(known, asked=AskedFor.ENVIRONMENT, asked_what=step.url, asked_at=now)
        case Deed.CREATE_DEPLOYMENT:
            return replace(known, asked=AskedFor.DEPLOYMENT, asked_what=f"{step.sha} {step.sandbox}", asked_at=now)
        case Deed.SET_STATUS:
            return replace(known, status_asked=f"{step.sha} {step.state}", status_asked_at=now)
        case Deed.STOP_ENVIRONMENT:  # from now on a stop that is seen is ours
            return replace(known, state=EnvironmentState.STOPPING)
    return known


def answered(known: EnvironmentRecord) -> EnvironmentRecord:
    """GitLab no longer works on the environment or deployment that it was asked for."""
    return replace(known, asked=AskedFor.NOTHING, asked_what="", asked_at=None)


def looked_for(known: EnvironmentRecord, deed: Deed) -> EnvironmentRecord:
    """GitLab said that something is wrong, so that it is not at work any more; it may have done it all the same."""
    if deed.is_of_status:
        return replace(known, status_asked_at=None)
    return replace(known, asked_at=None)


def status_answered(known: EnvironmentRecord) -> EnvironmentRecord:
    """GitLab no longer works on the commit status that it was asked for."""
    return replace(known, status_asked="", status_asked_at=None)


def without_environment(known: EnvironmentRecord) -> EnvironmentRecord:
    """The environment is gone, and its deployments with it."""
    return replace(
        known,
        environment_id=None,
        state=EnvironmentState.NONE,
        external_url="",
        seen_at=None,
        deployment_id=None,
        deployment_sandbox=None,
        deployment_sha="",
        deployment_status="",
    )


def git_ref(mr: MergeRequest) -> str:
    """The ref of its commits in the project; a fork's branch is not there."""
    return f"refs/merge-requests/{mr.ref.iid:d}/head" if mr.from_fork else mr.source_branch


class EnvironmentSteps:
    """Each step raises what `GitLab` raises; then nothing of it is to be kept."""

    def __init__(self, config: Config, gitlab: Environments) -> None:
        self._host = config.sandbox.host
        self._gitlab = gitlab
        self._longest = config.gitlab.request_limit + timedelta(seconds=TIMEOUT_SECONDS)

    async def carry_out(self, task: ShowTask, now: datetime) -> Change:
        """Make the request; returns what to keep. `now`: when the task was recorded."""
        step, known = task.step, task.known
        project, number = known.ref.project_id, known.environment_id or 0
        match step.deed:
            case Deed.FIND_ENVIRONMENT:
                found = await self._gitlab.find(project, known.name)
                if found is None:
                    return answered
                if found.external_url or await self._gitlab.is_deployed(project, known.name):
                    return self._adopt(found, task, now)
                # A job of a pipeline names it, for which GitLab made it. Nobody uses it, so that it becomes ours.
                return _has(found.id, _state(found.state), "", now)
            case Deed.CREATE_ENVIRONMENT:
                try:
                    made = await self._gitlab.create(project, known.name, step.url)
                except NameTaken:
                    return lambda record: _taken(record, now)
                return _has(made.id, EnvironmentState.AVAILABLE, step.url, now)
            case Deed.SET_URL:
                try:
                    await self._gitlab.set_url(project, number, step.url)
                except NotFound:  # somebody deleted it, or a backup from before its end was restored
                    return without_environment
                return lambda record: replace(record, external_url=step.url)
            case Deed.STOP_ENVIRONMENT:
                return await self._stop(task)
            case Deed.DELETE_ENVIRONMENT:
                await self._gitlab.delete(project, number)
                return without_environment
            case Deed.FIND_DEPLOYMENT:
                return await self._find_deployment(task, now)
            case Deed.CREATE_DEPLOYMENT:
                ids = await self._gitlab.deploy(project, known.name, step.sha, git_ref(task.mr), step.state)
                return _deployed(step, *ids)
            case Deed.SET_DEPLOYMENT:
                try:
                    await self._gitlab.set_deployment(project, known.deployment_id or 0, step.state)
                except NotFound:  # somebody deleted it
                    return lambda record: replace(record, deployment_id=None, deployment_status=step.state)
                return lambda record: replace(record, deployment_status=step.state)
            case Deed.FIND_STATUS:
                return await self._find_status(task, now)
            case Deed.SET_STATUS:
                return await self._set_status(task)
            case _:
                assert_never(step.deed)

    def _adopt(self, found: FoundEnvironment, task: ShowTask, now: datetime) -> Change:
        """Take the environment that was made before a crash, or by a lost database: it links to where only ours do."""
        try:
            host = urlsplit(found.external_url).hostname
        except ValueError:
            host = None
        links = {task.known.asked_what, task.mr.web_url} - {""}
        if found.external_url not in links and host != self._host:
            raise Foreign(foreign(task.known.name))
        return _has(found.id, _state(found.state), found.external_url, now)

    async def _stop(self, task: ShowTask) -> Change:
        number = task.known.environment_id or 0
        try:
            state = await self._gitlab.stop(task.known.ref.project_id, number)
        except NotFound:
            return without_environment
        if state == EnvironmentState.STOPPED:
            return lambda record: replace(record, state=EnvironmentState.STOPPED)
        if state == EnvironmentState.STOPPING:
            raise Unavailable("GitLab is still stopping the environment", _STOPPING_SECONDS)
        raise Forbidden("GitLab did not stop the environment")  # it answers 200 also to who may not

    async def _find_deployment(self, task: ShowTask, now: datetime) -> Change:
        sha = task.step.sha
        found = await self._gitlab.find_deployment(task.known.ref.project_id, task.known.name, sha)
        if found is None:
            self._check_settled(task.known.asked_at, now)
            return answered
        number, status = found
        return lambda record: answered(
            replace(
                record,
                deployment_id=number,
                deployment_sha=sha,
                deployment_status=status,
                deployment_sandbox=task.step.sandbox,
            )
        )

    async def _find_status(self, task: ShowTask, now: datetime) -> Change:
        sha = task.step.sha
        try:
            found = await self._gitlab.find_status(task.known.ref.project_id, sha, STATUS_NAME)
        except NotFound:
            return status_answered
        if found is None or found[0] != task.step.state:
            self._check_settled(task.known.status_asked_at, now)
        if found is None:
            return status_answered
        state, pipeline_id = _commit_state(found[0]), found[1]
        return lambda record: status_answered(
            replace(record, status_sha=sha, status_state=state, pipeline_id=pipeline_id)
        )

    def _check_settled(self, asked_at: datetime | None, now: datetime) -> None:
        """Raises Unavailable while GitLab may still carry out a request that it did not answer."""
        if asked_at is None:
            return
        left = self._longest - age(asked_at, now)
        if left > timedelta(0):
            seconds = min(left.total_seconds(), _LOOK_AGAIN_SECONDS)
            raise Unavailable("GitLab may still be working on an earlier request", seconds)

    async def _set_status(self, task: ShowTask) -> Change:
        step, known, mr = task.step, task.known, task.mr
        same = known.status_sha == step.sha
        page = known.page_url(mr) or mr.web_url

        async def ask(pipeline_id: int | None) -> int | None:
            return await self._gitlab.set_status(
                known.ref.project_id,
                step.sha,
                STATUS_NAME,
                git_ref(mr),
                step.state,
                one_line(step.description, LONGEST_DESCRIPTION),
                page,
                pipeline_id,
            )

        try:
            pipeline_id = await ask(known.pipeline_id if same else None)
        except NotFound as error:
            if _NO_COMMIT in str(error):  # it was pushed over and is gone: there is nothing to tell of it
                pipeline_id = None
            elif same and known.pipeline_id is not None:
                pipeline_id = await ask(None)  # somebody deleted the pipeline
            else:
                raise
        return lambda record: status_answered(
            replace(record, status_sha=step.sha, status_state=step.state, pipeline_id=pipeline_id)
        )


def _taken(record: EnvironmentRecord, now: datetime) -> EnvironmentRecord:
    """It is looked at next: at once, but later if GitLab says so again and shows none of that name."""
    failures = record.environment_failures + 1
    pause = timedelta(0) if failures == 1 else timedelta(seconds=_TAKEN_PAUSES.after(failures))
    return replace(record, environment_failures=failures, environment_since=now, environment_until=now + pause)


def _commit_state(said: str) -> CommitState:
    try:
        return CommitState(said)
    except ValueError:
        return CommitState.CANCELED  # skipped, manual … by somebody else: it is over


def _state(said: str) -> EnvironmentState:
    try:
        return EnvironmentState(said)
    except ValueError:
        return EnvironmentState.STOPPING  # of a newer GitLab


def _has(environment_id: int, state: EnvironmentState, url: str, now: datetime) -> Change:
    return lambda record: answered(
        replace(without_environment(record), environment_id=environment_id, state=state, external_url=url, seen_at=now)
    )


def _deployed(step: ShowStep, deployment_id: int, environment_id: int) -> Change:
    def keep(record: EnvironmentRecord) -> EnvironmentRecord:
        known = answered(
            replace(
                record,
                deployment_id=deployment_id,
                deployment_sha=step.sha,
                deployment_status=step.state,
                deployment_sandbox=step.sandbox,
            )
        )
        if environment_id == record.environment_id:
            return known
        # Somebody had deleted the environment: this made it again, without a link.
        return replace(known, environment_id=environment_id, state=EnvironmentState.AVAILABLE, external_url="")

    return keep
