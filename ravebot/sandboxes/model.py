"""What a sandbox, a machine and a merge request are: frozen facts, shared by every other module."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType

SandboxId = NewType("SandboxId", int)
MachineId = NewType("MachineId", int)
ProjectId = NewType("ProjectId", int)
RunId = NewType("RunId", int)


CODE_FOLDER = "/srv/merge-request"
"""Where the code is in a guest (the guest contract)."""


class SandboxState(StrEnum):
    """The states of a sandbox's lifecycle."""

    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    ENDED = "ended"


NO_KEYS = "nobody of this merge request has an SSH key on GitLab: add one in your GitLab preferences, it is let in soon"

KEPT = "kept"
"""What people are shown instead of "ready" while a machine is kept whose set-up failed."""


class EndReason(StrEnum):
    """Why a sandbox ended."""

    EXPIRED = "expired"
    STOPPED = "stopped"
    MERGED = "merged"
    CLOSED = "closed"
    SUPERSEDED = "superseded"
    FAILED = "failed"
    LOST = "lost"


class MachineState(StrEnum):
    """What our database wants of a machine."""

    BUILDING = "building"
    WARM = "warm"
    LEASED = "leased"
    STOPPING = "stopping"
    GONE = "gone"


class Observed(StrEnum):
    """What the provider says of a machine. UNKNOWN: it could not be asked; this never means ABSENT."""

    ABSENT = "absent"
    OFF = "off"
    AGENT_SILENT = "running, agent silent"
    AGENT_ANSWERS = "running, agent answers"
    CRASHED = "crashed"
    PAUSED = "paused"
    UNKNOWN = "unknown"


class Stage(StrEnum):
    """The steps from a claimed machine to an announced sandbox, in order."""

    HOST_KEYS = "host keys"
    AUTHORIZE = "authorize"
    COPY = "copy"
    SETUP = "setup"
    TEST = "test"
    OPEN_PORTS = "open ports"
    ANNOUNCE = "announce"


CLAIM_STAGES: tuple[Stage, ...] = tuple(Stage)
UPDATE_STAGES: tuple[Stage, ...] = (Stage.COPY, Stage.SETUP, Stage.TEST, Stage.ANNOUNCE)


@dataclass(frozen=True, order=True)
class MergeRequestRef:
    """A merge request's identity: the numeric project id and the number that people see (`!42`)."""

    project_id: int
    iid: int


@dataclass(frozen=True)
class Person:
    """A GitLab user, by id and user name (without `@`)."""

    id: int
    username: str


@dataclass(frozen=True)
class MergeRequest:
    """What we know of a merge request, as GitLab last told us. Titles and branches are untrusted text."""

    ref: MergeRequestRef
    project_path: str
    title: str
    web_url: str
    source_branch: str
    source_project_id: int
    head_sha: str
    author: Person
    people: tuple[Person, ...] = ()  # assignees and reviewers
    target_branch: str = ""
    labels: tuple[str, ...] = ()
    draft: bool = False
    state: str = "opened"  # opened, closed, merged, locked
    updated_at: datetime | None = None  # by GitLab's clock: older news than this is stale
    approved_sha: str | None = None  # of a fork: the head that a Developer approved with `/sandbox start SHA`
    note_id: int | None = None  # the status note, once posted

    @property
    def from_fork(self) -> bool:
        return self.source_project_id != self.ref.project_id

    @property
    def full_ref(self) -> str:
        """As people write it: `group/app!42`."""
        return f"{self.project_path}!{self.ref.iid}"


@dataclass(frozen=True)
class Actor:
    """Who caused something: `kind` is gitlab, matrix, shell or ravebot; `name` is their name there.

    `place`: the configured room of their command, whose answer tells there what follows; `thread`: the thread in it
    where that is told. Neither is stored.
    """

    kind: str
    name: str
    place: str = field(default="", compare=False)
    thread: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.name if self.kind == "ravebot" else f"{self.name} ({self.kind})"


RAVEBOT = Actor("ravebot", "ravebot")


@dataclass(frozen=True)
class Machine:
    """One VM that a provider runs for us. `address` and `mac` are assigned by us, never read from the guest."""

    id: MachineId
    name: str
    uuid: str
    state: MachineState
    image: str
    address: str
    mac: str
    tap: str
    created_at: datetime
    state_since: datetime
    sandbox_id: SandboxId | None = None
    host_keys: tuple[str, ...] = ()
    restarts: int = 0
    booted_at: datetime | None = None  # first answer of the guest agent
    cpu_seconds: float = 0.0
    memory_peak_bytes: int = 0
    memory_bytes: int = 0  # given to it
    disk_bytes: int = 0
    vcpus: int = 0  # 0: made by an earlier version, as configured
    cpu_before_restart: float = 0.0
    disk_peak_bytes: int = 0  # allocated on the host
    received_bytes: int = 0  # by the guest, from its network
    sent_bytes: int = 0
    received_before_restart: int = 0
    sent_before_restart: int = 0
    memory_used_bytes: int = 0  # at the last look, as the next
    disk_used_bytes: int = 0
    open_files: int = 0  # descriptors of its QEMU; 0: not known
    measured_at: datetime | None = None  # when its CPU time was compared last; it was `measured_cpu_seconds` then
    measured_cpu_seconds: float = 0.0
    busy_since: datetime | None = None  # since when it uses all its processors
    silent_since: datetime | None = None  # since when every check found the guest agent silent
    silent_seen_at: datetime | None = None  # the last of these checks
    unhealthy_told: bool = False
    paused_since: datetime | None = None  # since when it is paused, but not by us; this was reported
    paused_by_us: bool = False

    @property
    def is_paused(self) -> bool:
        """Whether it was paused, and not seen to run since."""
        seen = self.silent_seen_at
        return self.paused_since is not None and (seen is None or seen <= self.paused_since)


@dataclass(frozen=True)
class StageResult:
    """How one stage went. `tail` is the bounded end of its output, untrusted."""

    stage: Stage
    ok: bool
    seconds: float
    tail: str = ""
    at: datetime | None = None  # when it ended; set when it is stored


@dataclass(frozen=True)
class Run:
    """What set-up and tests printed when they ran once: the results with output, and when the last of them ended."""

    at: datetime
    results: tuple[StageResult, ...]

    @property
    def ok(self) -> bool:
        return all(result.ok for result in self.results)


@dataclass(frozen=True)
class Sandbox:
    """What one merge request gets: a lease on a machine, with access, owner, expiry and history."""

    id: SandboxId
    mr: MergeRequestRef
    state: SandboxState
    requested_by: Actor
    created_at: datetime
    state_since: datetime
    sha: str  # what it should run
    wait_reason: str = ""  # why it is queued, beyond its turn
    not_before: datetime | None = None  # backoff after a failed build
    notice: str = ""  # what went wrong with the last update, or NO_KEYS
    running_sha: str | None = None  # the code that is in the machine
    machine_id: MachineId | None = None
    stage: Stage | None = None  # None while nothing is under way
    stage_started_at: datetime | None = None
    attempt: int = 1  # of the whole sandbox: a new machine each
    stage_attempt: int = 0
    ssh_port: int | None = None
    web_port: int | None = None
    web_scheme: str | None = None  # http or https, probed at ready; None: nothing answered
    ports_open: bool = False
    ready_at: datetime | None = None
    expires_at: datetime | None = None
    end_reason: EndReason | None = None
    end_detail: str = ""
    ended_at: datetime | None = None
    warned: frozenset[int] = frozenset()  # thresholds in seconds whose warning was sent
    refreshed_at: datetime | None = None  # when card and note were last rewritten

    @property
    def is_kept(self) -> bool:
        """Whether its set-up failed, and its machine is kept for a while so that people can look inside."""
        return self.state is SandboxState.READY and self.end_reason is EndReason.FAILED

    @property
    def update_failed(self) -> bool:
        """Whether its newest code was not taken, or its tests failed, and it goes on as it is."""
        return bool(self.notice) and self.notice != NO_KEYS

    @property
    def status(self) -> str:
        """Its state in one word for lists and metrics: one that is kept is not called ready."""
        return KEPT if self.is_kept else self.state.value

    @property
    def time_since(self) -> datetime | None:
        """Since when its time runs: that of being ready, or of being kept."""
        return self.state_since if self.is_kept else self.ready_at

    @property
    def web_open(self) -> bool:
        """Whether its web port should be open too; one that is kept opens it when set-up and tests have worked."""
        return self.ports_open and (not self.is_kept or self.stage in (Stage.OPEN_PORTS, Stage.ANNOUNCE))


class RunState(StrEnum):
    """The states of a command that somebody runs in a sandbox."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    LOST = "lost"  # its sandbox, machine or boot is gone: how far it got can't be known

    @property
    def is_over(self) -> bool:
        return self not in (RunState.WAITING, RunState.RUNNING)


@dataclass(frozen=True)
class GuestRun:
    """One command that somebody runs in a sandbox, at most once. `salt` is part of its name in the guest."""

    id: RunId
    sandbox_id: SandboxId
    by_kind: str
    by: str
    command: str
    timeout_seconds: int
    state: RunState
    salt: str
    created_at: datetime
    machine_id: MachineId | None = None
    restarts: int = 0  # of the machine, when it was given the command
    boot: str = ""  # the guest's boot in which it may be started
    sha: str = ""  # the code in which it runs
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    why: str = ""  # for people: why it did not simply end
    cancelled_by: str = ""
    taken_bytes: int = 0  # of its output
    characters: int = 0  # of its output, stored
    cut: bool = False  # it printed more than is kept

    @property
    def guest_key(self) -> str:
        """Its name in the guest, never used twice."""
        return f"run-{self.id}-{self.salt}"


class EventKind(StrEnum):
    """What the event log records. `telling` says which kinds people are told of."""

    SANDBOX_QUEUED = "sandbox.queued"
    SANDBOX_WAITING = "sandbox.waiting"
    SANDBOX_STARTING = "sandbox.starting"
    SANDBOX_READY = "sandbox.ready"
    SANDBOX_KEPT = "sandbox.kept"
    SANDBOX_CODE = "sandbox.code"
    SANDBOX_UPDATED = "sandbox.updated"
    SANDBOX_UPDATE_FAILED = "sandbox.update_failed"
    SANDBOX_EXTENDED = "sandbox.extended"
    SANDBOX_WARNED = "sandbox.warned"
    SANDBOX_REQUEUED = "sandbox.requeued"
    SANDBOX_STOPPING = "sandbox.stopping"
    SANDBOX_ENDED = "sandbox.ended"
    MACHINE_BOOTED = "machine.booted"
    MACHINE_FORCED = "machine.forced"
    MACHINE_UNHEALTHY = "machine.unhealthy"
    MACHINE_HEALTHY = "machine.healthy"
    MACHINE_RESTARTED = "machine.restarted"
    MACHINE_DISK_FULL = "machine.disk_full"
    MACHINE_SUSPENDED = "machine.suspended"
    MACHINE_RESUMED = "machine.resumed"
    STAGE_DONE = "stage.done"
    STAGE_FAILED = "stage.failed"
    BUILD_HELD = "build.held"
    BUILD_RESUMED = "build.resumed"
    WEB_FOUND = "web.found"
    FORK_APPROVED = "fork.approved"
    MR_APPROVED = "mr.approved"
    MR_UNAPPROVED = "mr.unapproved"
    ACCESS_FIRST = "access.first"
    ACCESS_CHANGED = "access.changed"
    FIREWALL_REPAIRED = "firewall.repaired"
    COMMAND_REFUSED = "command.refused"
    APPROVAL_ASKED = "approval.asked"
    APPROVAL_DECIDED = "approval.decided"
    APPROVAL_DONE = "approval.done"
    AGENT_ASKED = "agent.asked"
    AGENT_CANCEL_ASKED = "agent.cancel_asked"
    AGENT_TURN_ENDED = "agent.turn_ended"
    AGENT_DROPPED = "agent.dropped"
    AGENT_PAUSED = "agent.paused"
    AGENT_RESUMED = "agent.resumed"
    RUN_ASKED = "run.asked"
    RUN_ENDED = "run.ended"
    TOKEN_CREATED = "token.created"  # noqa: S105 - no token
    TOKEN_REVOKED = "token.revoked"  # noqa: S105 - no token
    API_CALL = "api.call"
    ORPHAN_REMOVED = "orphan.removed"
    STATE_RESTORED = "state.restored"

    @classmethod
    def read(cls, text: str) -> EventKind | str:
        """The kind that a stored row names; the text itself where another version wrote one that is not here."""
        try:
            return cls(text)
        except ValueError:
            return text


@dataclass(frozen=True)
class Event:
    """One line of the append-only log; its `kind` is what `EventKind.read` makes of the row's."""

    id: int
    at: datetime
    kind: EventKind | str
    actor: Actor
    mr: MergeRequestRef | None = None
    sandbox_id: SandboxId | None = None
    machine_id: MachineId | None = None
    data: dict[str, object] = field(default_factory=dict)
