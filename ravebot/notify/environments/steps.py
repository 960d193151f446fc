"""Carries out one step at GitLab, and says what to keep of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never

from ravebot.clock import age
from ravebot.config.model import Config
from ravebot.errors import Forbidden, NotFound, RavebotError, Unavailable
from ravebot.gitlab.environments import Environments, FoundEnvironment, NameTaken
from ravebot.gitlab.escape import one_line
from ravebot.gitlab.transport import TIMEOUT_SECONDS
from ravebot.notify.environments.keeping import Change, answered, deployed, has, status_answered, taken
from ravebot.notify.environments.sightings import Sighting, look
from ravebot.notify.environments.wording import foreign
from ravebot.sandboxes.environments.model import (
    STATUS_NAME,
    CommitState,
    EnvironmentRecord,
    EnvironmentState,
    without_environment,
)
from ravebot.sandboxes.environments.plan import LONGEST_DESCRIPTION, Deed, ShowStep
from ravebot.sandboxes.model import MergeRequest

_CLOCKS_DIFFER = timedelta(minutes=1)
"""So much GitLab's clock may be behind ours."""
_FAR_BEHIND = timedelta(minutes=30)
"""As much with deployments: their ids tell most of the earlier ones apart, so that the time need not be exact."""
_LOOK_AGAIN_SECONDS = 3.0
_STOPPING_SECONDS = 10.0
_NO_COMMIT = "404 Commit Not Found"


class Unseen(RavebotError):
    """The look before a request failed, for that reason; the request itself was not made."""

    def __init__(self, why: RavebotError) -> None:
        super().__init__(str(why))
        self.why = why


class Foreign(Forbidden):
    """The environment is not ours."""


@dataclass(frozen=True)
class ShowTask:
    """A step that is recorded, and what was known then."""

    step: ShowStep
    known: EnvironmentRecord
    mr: MergeRequest
    sandbox: int = 0  # the newest one


def git_ref(mr: MergeRequest) -> str:
    """The ref of its commits in the project; a fork's branch is not there."""
    return f"refs/merge-requests/{mr.ref.iid:d}/head" if mr.from_fork else mr.source_branch


class EnvironmentSteps:
    """Each step raises what `GitLab` raises; then nothing of it is to be kept."""

    def __init__(self, config: Config, gitlab: Environments) -> None:
        self._gitlab = gitlab
        self._longest = config.gitlab.request_limit + timedelta(seconds=TIMEOUT_SECONDS)

    async def carry_out(self, task: ShowTask, now: datetime) -> Change | Sighting:
        """Make the request; returns what to keep. `now`: when the task was recorded.

        A sighting is all that comes of a step that is about to make an environment available which somebody stopped.
        """
        step, known = task.step, task.known
        if step.deed is Deed.LOOK_AT_ENVIRONMENT:
            return await look(self._gitlab, known, now, task.sandbox)
        if not step.look_first:
            return await self._ask(task, now)
        try:
            sighting = await look(self._gitlab, known, now, task.sandbox)
        except RavebotError as error:
            raise Unseen(error) from error
        if sighting.state is not EnvironmentState.AVAILABLE:
            return sighting
        change = await self._ask(task, now)
        return lambda record: change(replace(record, seen_at=sighting.at, seen_with=sighting.sandbox))

    async def _ask(self, task: ShowTask, now: datetime) -> Change:
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
                return has(found.id, EnvironmentState.of(found.state), "", now, task.sandbox)
            case Deed.CREATE_ENVIRONMENT:
                try:
                    made = await self._gitlab.create(project, known.name, step.url)
                except NameTaken:
                    return lambda record: taken(record, now)
                return has(made.id, EnvironmentState.AVAILABLE, step.url, now, task.sandbox)
            case Deed.LOOK_AT_ENVIRONMENT:
                raise AssertionError("a look changes nothing")
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
                return deployed(step, *ids, now, task.sandbox)
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
        """Take the environment that we asked for before a crash, or that a lost database knew: it links to where ours
        would. One without a link is ours if it was made since we asked for such a one."""
        asked = task.known.asked_what
        links = {asked, task.step.url, task.mr.web_url} - {""}
        without_link = not asked and not found.external_url and _since(found.created_at, task.known.asked_since)
        if found.external_url not in links and not without_link:
            raise Foreign(foreign(task.known.name))
        return has(found.id, EnvironmentState.of(found.state), found.external_url, now, task.sandbox)

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
        """Take the one that we asked for before a crash: neither one from before, as after a rebuild with the same
        commit, nor one of a pipeline's job."""
        sha, known = task.step.sha, task.known
        listed = await self._gitlab.deployments(known.ref.project_id, known.name, sha)
        ours = (
            one
            for one in listed
            if one.id > known.newest_deployment
            and not one.of_a_job
            and _since(one.created_at, known.asked_since, _FAR_BEHIND)
        )
        found = next(ours, None)
        if found is None:
            self._check_settled(known.asked_at, now)
            return answered
        return lambda record: answered(
            replace(
                record,
                newest_deployment=found.id,
                deployment_id=found.id,
                deployment_sha=sha,
                deployment_status=found.status,
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


def _commit_state(said: str) -> CommitState:
    try:
        return CommitState(said)
    except ValueError:
        return CommitState.CANCELED  # skipped, manual … by somebody else: it is over


def _since(made_at: datetime | None, asked_since: datetime | None, behind: timedelta = _CLOCKS_DIFFER) -> bool:
    """Whether what was made then can be what was asked for."""
    return made_at is None or asked_since is None or made_at >= asked_since - behind
