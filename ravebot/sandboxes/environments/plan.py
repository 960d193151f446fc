"""What GitLab should show of a sandbox, and the one step towards it. Pure.

GitLab's rules: only a stopped environment can be deleted, a deployment's success makes its environment available again,
a finished deployment never runs again, and a commit status can't be set to the state that it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ravebot.clock import Wait, age, is_due
from ravebot.sandboxes.environments.model import (
    AskedFor,
    CommitState,
    DeploymentStatus,
    EnvironmentRecord,
    EnvironmentState,
)
from ravebot.sandboxes.model import EndReason, MergeRequest, Sandbox, SandboxState

SETTLE = timedelta(seconds=5)
"""A commit's first status waits so long, if it says only that something is under way: by then GitLab has made the
commit's pipeline, in which the status then is, and often there is a result to tell instead."""
JUST_MADE = timedelta(seconds=5)
"""So long after it was made or seen, an environment gets its first deployment without another look."""
RECENT = timedelta(days=1)
"""The result of a sandbox that ended longer ago is told only where GitLab still shows that something is under way."""
LASTING = timedelta(days=1)
"""What was refused for so long is tried again only as often, and for a new sandbox."""
GIVEN_UP = timedelta(days=7)
"""After so long of refusals nothing is tried any more for a sandbox that is gone, unless its environment is known."""
LONGEST_URL = 255  # app/models/environment.rb
LONGEST_DESCRIPTION = 255
SUPERSEDED = "Newer code came"
ENDED = "The sandbox ended"


class Presence(StrEnum):
    """What should be with the environment."""

    AVAILABLE = "available"
    AS_IT_IS = "as it is"
    STOPPED = "stopped"
    GONE = "gone"


@dataclass(frozen=True)
class WantedDeployment:
    """`only_ends`: one that runs should end so; a new one is not made for it."""

    sha: str
    status: DeploymentStatus
    only_ends: bool = False


@dataclass(frozen=True)
class WantedStatus:
    """`since`: since when this is so; `only_ends`: as for deployments."""

    sha: str
    state: CommitState
    description: str
    since: datetime
    only_ends: bool = False


@dataclass(frozen=True)
class ShownSandbox:
    """What GitLab should show. `sandbox`: its id, which tells two deployments of a commit apart; `since`: when it was
    asked for."""

    place: Presence = Presence.GONE
    url: str = ""
    sandbox: int = 0
    since: datetime | None = None
    deployment: WantedDeployment | None = None
    status: WantedStatus | None = None


def wanted(
    sandbox: Sandbox | None, mr: MergeRequest, web_url: str | None, now: datetime, cases: str = ""
) -> ShownSandbox:
    """What GitLab should show of the newest sandbox of a merge request; `web_url` is where its web page answers,
    `cases` how many tests there were and failed, in short.

    Of a fork's commit that nobody approved nothing is shown.
    """
    if sandbox is None:
        return ShownSandbox()
    place, url = _place(sandbox), next((one for one in (web_url, mr.web_url) if one and len(one) <= LONGEST_URL), "")
    if mr.from_fork and mr.approved_sha != sandbox.sha:
        return ShownSandbox(place, url, sandbox.id, sandbox.created_at)
    status = _status(sandbox, now, cases)
    deployment = _deployment(sandbox, status) if status else None
    return ShownSandbox(place, url, sandbox.id, sandbox.created_at, deployment, status)


def _place(sandbox: Sandbox) -> Presence:
    match sandbox.state:
        case SandboxState.QUEUED:
            return Presence.AS_IT_IS  # after `rebuild` there is one
        case SandboxState.STARTING | SandboxState.READY:
            return Presence.AVAILABLE
        case SandboxState.STOPPING:
            return Presence.STOPPED
        case SandboxState.ENDED:
            return Presence.GONE


def _status(sandbox: Sandbox, now: datetime, cases: str) -> WantedStatus | None:
    def told(state: CommitState, description: str, *, only_ends: bool = False) -> WantedStatus:
        more = f": {cases}" if cases and state in (CommitState.SUCCESS, CommitState.FAILED) else ""
        words = " ".join(description.split())
        line = (words[:1].upper() + words[1:])[: LONGEST_DESCRIPTION - len(more)] + more
        since = sandbox.stage_started_at or sandbox.state_since
        return WantedStatus(sandbox.sha, state, line, since, only_ends)

    match sandbox.state:
        case SandboxState.QUEUED:
            return told(CommitState.PENDING, "The sandbox waits for a machine")
        case SandboxState.STARTING:
            return told(CommitState.RUNNING, "The sandbox is starting")
        case SandboxState.READY if sandbox.stage is not None:
            return told(CommitState.RUNNING, "The sandbox takes this commit")
        case SandboxState.READY if sandbox.is_kept:
            return told(CommitState.FAILED, sandbox.end_detail or "The sandbox's set-up failed")
        case SandboxState.READY if sandbox.update_failed:
            return told(CommitState.FAILED, sandbox.notice)
        case SandboxState.READY:
            return told(CommitState.SUCCESS, "The sandbox is ready")
    if sandbox.end_reason in (EndReason.FAILED, EndReason.LOST):
        old = sandbox.ended_at is not None and age(sandbox.ended_at, now) >= RECENT
        if sandbox.end_reason is EndReason.FAILED or sandbox.ready_at is None:
            why = sandbox.end_detail or f"The sandbox {sandbox.end_reason.value}"
            return told(CommitState.FAILED, why, only_ends=old)
    return told(CommitState.CANCELED, ENDED, only_ends=True)


def _deployment(sandbox: Sandbox, status: WantedStatus) -> WantedDeployment | None:
    """One runs as soon as there is a machine, and goes as the commit's status goes."""
    if sandbox.state is SandboxState.QUEUED:
        return None
    ending = sandbox.state in (SandboxState.STOPPING, SandboxState.ENDED)
    return WantedDeployment(sandbox.sha, DeploymentStatus(status.state.value), only_ends=ending)


class Deed(StrEnum):
    """One request to GitLab."""

    FIND_ENVIRONMENT = "find the environment"
    CREATE_ENVIRONMENT = "create the environment"
    LOOK_AT_ENVIRONMENT = "look at the environment"
    SET_URL = "set the environment's URL"
    STOP_ENVIRONMENT = "stop the environment"
    DELETE_ENVIRONMENT = "delete the environment"
    FIND_DEPLOYMENT = "find the deployment"
    CREATE_DEPLOYMENT = "create a deployment"
    SET_DEPLOYMENT = "set the deployment's status"
    FIND_STATUS = "find the commit status"
    SET_STATUS = "set the commit status"

    @property
    def is_of_status(self) -> bool:
        """Whether it is about the commit status, which has pauses and refusals of its own."""
        return self in (Deed.FIND_STATUS, Deed.SET_STATUS)


@dataclass(frozen=True)
class ShowStep:
    """A request, and what of it depends on the sandbox. `look_first`: whether GitLab would make a stopped environment
    available by it, or a deleted one again, so that it is looked at right before."""

    deed: Deed
    url: str = ""
    sha: str = ""
    state: str = ""
    description: str = ""
    sandbox: int = 0
    look_first: bool = False


def decide(shown: ShownSandbox, known: EnvironmentRecord, now: datetime) -> ShowStep | datetime | None:
    """The next step; a moment: none before then; None: GitLab shows what it should."""
    found = (
        _unless_waiting(known.environment_wait, shown, now, _of_environment(shown, known, now)),
        _unless_waiting(known.status_wait, shown, now, _of_status(shown, known, now)),
    )
    for step in found:
        if isinstance(step, ShowStep):
            return step
    return min((moment for moment in found if isinstance(moment, datetime)), default=None)


def _unless_waiting(
    pause: Wait | None, shown: ShownSandbox, now: datetime, step: ShowStep | datetime | None
) -> ShowStep | datetime | None:
    if step is None or pause is None or pause.is_over(now):
        return step
    is_new = shown.since is not None and shown.since > pause.since
    return step if is_new and pause.until - pause.since >= LASTING else pause.until


def _is_given_up(shown: ShownSandbox, refused_since: datetime | None, now: datetime) -> bool:
    """Whether GitLab refuses it for so long that there is nothing to hope for, as when the project was deleted."""
    return shown.place is Presence.GONE and refused_since is not None and age(refused_since, now) >= GIVEN_UP


def _of_environment(shown: ShownSandbox, known: EnvironmentRecord, now: datetime) -> ShowStep | datetime | None:
    given_up = _is_given_up(shown, known.environment_refused_since, now)
    if known.asked is AskedFor.ENVIRONMENT:
        return None if given_up else ShowStep(Deed.FIND_ENVIRONMENT, url=shown.url)
    if known.environment_id is None:
        create = shown.place is Presence.AVAILABLE
        return ShowStep(Deed.CREATE_ENVIRONMENT, url=shown.url) if create else None
    if known.asked is AskedFor.DEPLOYMENT and not given_up:
        sha, _, sandbox = known.asked_what.partition(" ")
        return ShowStep(Deed.FIND_DEPLOYMENT, sha=sha, sandbox=int(sandbox))
    lives = shown.place in (Presence.AVAILABLE, Presence.AS_IT_IS)
    if lives and known.state is EnvironmentState.AVAILABLE and not _was_seen_with(shown, known):
        return ShowStep(Deed.LOOK_AT_ENVIRONMENT)
    if shown.place is Presence.AS_IT_IS:
        return None
    deployment = _unless_waiting(known.deployment_wait, shown, now, _of_deployment(shown, known, now))
    if shown.place is Presence.AVAILABLE and known.state is EnvironmentState.AVAILABLE:
        if shown.url != known.external_url:
            return ShowStep(Deed.SET_URL, url=shown.url, look_first=True)
        return deployment
    if isinstance(deployment, ShowStep) and deployment.deed is Deed.SET_DEPLOYMENT:
        return deployment
    if known.state is not EnvironmentState.STOPPED:
        return ShowStep(Deed.STOP_ENVIRONMENT)
    return None if shown.place is Presence.STOPPED else ShowStep(Deed.DELETE_ENVIRONMENT)


def _was_seen_with(shown: ShownSandbox, known: EnvironmentRecord) -> bool:
    """Whether it was available when this sandbox was there: a stop that is seen later is then one of this sandbox."""
    return known.seen_with >= shown.sandbox


def _of_deployment(shown: ShownSandbox, known: EnvironmentRecord, now: datetime) -> ShowStep | None:
    wanted_one, runs = shown.deployment, known.deployment_status == DeploymentStatus.RUNNING
    if wanted_one is None:
        return None
    same = (known.deployment_sha, known.deployment_sandbox) == (wanted_one.sha, shown.sandbox)
    if not same:
        if runs and known.deployment_id is not None:  # newer code came, or a new sandbox, before it was ready
            return ShowStep(Deed.SET_DEPLOYMENT, state=DeploymentStatus.CANCELED)
        if wanted_one.only_ends:
            return None
        just_made = not known.deployment_sha and not is_due(known.seen_at, JUST_MADE, now)
        look_first = wanted_one.status is DeploymentStatus.SUCCESS or not just_made
        create, sha, status = Deed.CREATE_DEPLOYMENT, wanted_one.sha, wanted_one.status
        return ShowStep(create, sha=sha, state=status, sandbox=shown.sandbox, look_first=look_first)
    if known.deployment_id is None:  # somebody deleted it
        return None
    if known.deployment_status == wanted_one.status or wanted_one.status is DeploymentStatus.RUNNING:
        return None
    if wanted_one.only_ends and not runs:
        return None
    look_first = wanted_one.status is DeploymentStatus.SUCCESS
    return ShowStep(Deed.SET_DEPLOYMENT, state=wanted_one.status, look_first=look_first)


def _of_status(shown: ShownSandbox, known: EnvironmentRecord, now: datetime) -> ShowStep | datetime | None:
    if _is_given_up(shown, known.status_refused_since, now):
        return None
    if known.status_asked:
        sha, _, state = known.status_asked.partition(" ")
        return ShowStep(Deed.FIND_STATUS, sha=sha, state=state)
    status, under_way = shown.status, bool(known.status_state) and not CommitState(known.status_state).is_final
    if status is None:  # one under way would hold up the merge for ever
        canceled = ShowStep(Deed.SET_STATUS, sha=known.status_sha, state=CommitState.CANCELED, description=ENDED)
        return canceled if under_way else None
    same = known.status_sha == status.sha
    if same and known.status_state == status.state:
        return None
    if not same and under_way:
        return ShowStep(Deed.SET_STATUS, sha=known.status_sha, state=CommitState.CANCELED, description=SUPERSEDED)
    if status.only_ends and not (same and under_way):
        return None
    settling = Wait(status.since, status.since + SETTLE)
    if not same and not status.state.is_final and not settling.is_over(now):
        return settling.until
    return ShowStep(Deed.SET_STATUS, sha=status.sha, state=status.state, description=status.description)
