"""What GitLab shows of a merge request's sandbox, as we last left it there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from ravebot.clock import Wait
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef

STATUS_NAME = "ravebot/sandbox"
"""The commit status by which ravebot tells how the sandbox of a commit is."""
NAME_PREFIX = "review/mr-"


def environment_name(ref: MergeRequestRef) -> str:
    return f"{NAME_PREFIX}{ref.iid:d}"


class EnvironmentState(StrEnum):
    """What we know of an environment. STOPPING: somebody stopped it, or we do; it may be stopped already."""

    NONE = "none"
    AVAILABLE = "available"
    STOPPING = "stopping"
    STOPPED = "stopped"

    @classmethod
    def of(cls, said: str) -> EnvironmentState:
        """What GitLab says; a word of a newer one is as good as stopping."""
        return cls(said) if said in list(cls) else cls.STOPPING


class DeploymentStatus(StrEnum):
    """https://docs.gitlab.com/api/deployments/#create-a-deployment"""

    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELED = "canceled"


class CommitState(StrEnum):
    """https://docs.gitlab.com/api/commits/#set-commit-pipeline-status"""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        return self not in (CommitState.PENDING, CommitState.RUNNING)


class AskedFor(StrEnum):
    """A request that must not be made twice: it was made, and its answer is not known."""

    NOTHING = ""
    ENVIRONMENT = "environment"
    DEPLOYMENT = "deployment"


@dataclass(frozen=True)
class EnvironmentRecord:
    """One row: what we know is at GitLab, what we asked of it, and what it refuses."""

    ref: MergeRequestRef
    changes: int = 1
    settled: int = 0
    looked_at: datetime | None = None
    next_at: datetime | None = None
    asked: AskedFor = AskedFor.NOTHING
    asked_what: str = ""  # the environment's URL, or the deployment's SHA and sandbox
    asked_at: datetime | None = None
    asked_since: datetime | None = None  # when it was asked for first; what was made before is not its doing
    status_asked: str = ""  # SHA and state of a status that was asked for
    status_asked_at: datetime | None = None
    environment_id: int | None = None
    state: EnvironmentState = EnvironmentState.NONE
    external_url: str = ""
    seen_at: datetime | None = None  # when it was last seen available
    seen_with: int = 0  # the newest sandbox at that moment
    newest_deployment: int = 0  # the highest id of a deployment that was ever ours; a new one has a higher
    deployment_id: int | None = None
    deployment_sandbox: int | None = None
    deployment_sha: str = ""
    deployment_status: str = ""  # a DeploymentStatus
    status_sha: str = ""
    status_state: str = ""  # a CommitState
    pipeline_id: int | None = None
    environment_refused: str = ""
    environment_refused_since: datetime | None = None
    environment_failures: int = 0
    environment_since: datetime | None = None
    environment_until: datetime | None = None
    deployment_refused: str = ""
    deployment_refused_since: datetime | None = None
    deployment_failures: int = 0
    deployment_since: datetime | None = None
    deployment_until: datetime | None = None
    status_refused: str = ""
    status_refused_since: datetime | None = None
    status_failures: int = 0
    status_since: datetime | None = None
    status_until: datetime | None = None

    @property
    def name(self) -> str:
        return environment_name(self.ref)

    @property
    def environment_wait(self) -> Wait | None:
        """The pause after a failure with environment or deployment."""
        return _wait(self.environment_since, self.environment_until)

    @property
    def deployment_wait(self) -> Wait | None:
        """The pause after a deployment was refused, which holds up nothing else of the environment."""
        return _wait(self.deployment_since, self.deployment_until)

    @property
    def status_wait(self) -> Wait | None:
        return _wait(self.status_since, self.status_until)

    def page_url(self, mr: MergeRequest) -> str | None:
        """The environment's page in GitLab; None while there is none."""
        if self.environment_id is None:
            return None
        return f"{mr.web_url.partition('/-/')[0]}/-/environments/{self.environment_id:d}"

    @property
    def hint(self) -> str:
        """What a person should do about GitLab's refusals; empty while it refuses nothing."""
        return self.environment_refused or self.deployment_refused or self.status_refused


def without_environment(known: EnvironmentRecord) -> EnvironmentRecord:
    """The environment is gone, and its deployments with it."""
    return replace(
        known,
        environment_id=None,
        state=EnvironmentState.NONE,
        external_url="",
        seen_at=None,
        seen_with=0,
        deployment_id=None,
        deployment_sandbox=None,
        deployment_sha="",
        deployment_status="",
        deployment_refused="",
        deployment_refused_since=None,
        deployment_failures=0,
        deployment_since=None,
        deployment_until=None,
    )


def _wait(since: datetime | None, until: datetime | None) -> Wait | None:
    return Wait(since, until) if since and until else None
