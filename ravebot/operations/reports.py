"""The requests of the shell to the running bot, and the answers, which cross the admin socket as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from ravebot.sandboxes.model import Actor, Run

if TYPE_CHECKING:
    from ravebot.sandboxes.intents import Outcome


@dataclass(frozen=True)
class SandboxLine:
    """One live sandbox in `ravebot list`. Titles and details are untrusted text."""

    ref: str  # group/app!42
    title: str
    state: str
    stage: str  # the stage that runs; empty if none does
    queue_position: int | None
    owner: str
    sha: str
    machine: str
    ssh_command: str
    web_url: str
    created_at: datetime
    ready_at: datetime | None
    expires_at: datetime | None
    trouble: str = ""  # what is wrong with its machine; empty if nothing is
    model_tokens: int = 0  # that agents used in it, over its life


@dataclass(frozen=True)
class CleanupReport:
    """What a cleanup did; `kept` says what was left alone, and why."""

    ended: tuple[str, ...] = ()  # sandboxes
    machines: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()  # DHCP entries, by MAC
    shared: tuple[str, ...] = ()  # descriptions of what all machines shared: network, storage pool, firewall, …
    kept: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Strangers:
    """What carries this instance's tag and is not in its database; the disks of `machines` are not listed."""

    machines: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()  # DHCP entries, by MAC

    def __bool__(self) -> bool:
        return bool(self.machines or self.volumes or self.addresses)


@dataclass(frozen=True)
class RemainingMachine:
    """A machine of another instance; `state` is for people: running, off, paused, crashed, unknown."""

    name: str
    state: str


@dataclass(frozen=True)
class RemainsReport:
    """What another instance has on this host, found by its id."""

    instance_id: str
    bot: str  # the process that runs it; empty if none does
    machines: tuple[RemainingMachine, ...]
    volumes: tuple[str, ...]  # disks, by name
    addresses: tuple[str, ...]  # DHCP entries: MAC and address
    shared: tuple[str, ...]  # descriptions: networks, storage pools with their folders, firewall tables, …

    def __bool__(self) -> bool:
        return bool(self.machines or self.volumes or self.addresses or self.shared)


@dataclass(frozen=True)
class AuditQuery:
    """Which events are asked for; what is not said leaves none out.

    `ref`: a merge request (`group/app!42`). `people`, `kinds`: as `store.events.Which` has them. `limit`: how many of
    the newest. `verify`: whether the whole log's hashes are checked.
    """

    ref: str | None = None
    project: str | None = None
    people: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 100
    verify: bool = False

    @property
    def with_access(self) -> bool:
        """Whether an export has who connected: it is known by address, not by person."""
        return not self.people and (not self.kinds or any("access.".startswith(kind) for kind in self.kinds))


@dataclass(frozen=True)
class ExportPlace:
    """How far an export is; the bot remembers nothing of it."""

    projects: tuple[int, ...] | None  # that were asked for
    iid: int | None
    last: int  # the newest event when it began
    event: int = 0  # the last one that was checked, and its hash
    hash: str = ""
    visit: tuple[int, str, str] | None = None  # the last one that was exported
    events: int = 0  # that were exported
    visits: int = 0


@dataclass(frozen=True)
class ExportPiece:
    """The next lines of an export, each JSON. `place` is None after the last; `broken_at`: the event that is missing or
    altered, which ends it."""

    lines: tuple[str, ...]
    place: ExportPlace | None
    broken_at: int | None = None


@dataclass(frozen=True)
class AuditLine:
    """One event, as a person reads it; `at` is None if the row was damaged. `detail` is JSON text."""

    id: int
    at: datetime | None
    kind: str
    actor: str
    ref: str
    machine: str
    detail: str


@dataclass(frozen=True)
class AuditReport:
    """Events, oldest first.

    `head` is the hash of the newest event of the whole log. `checked_rows` is None if no check was asked
    for, else the number of intact rows; `broken_at` is the first row that is not intact.
    """

    lines: tuple[AuditLine, ...]
    head: str
    checked_rows: int | None = None
    broken_at: int | None = None


@dataclass(frozen=True)
class LogsReport:
    """Where a merge request's logs are: the machines that its sandboxes had last, newest first, and what set-up and
    tests printed. `state`: of its newest sandbox; empty if there never was one."""

    ref: str
    state: str
    machines: tuple[str, ...]
    runs: tuple[Run, ...]


class UsageBy(StrEnum):
    """What use is added up by."""

    PROJECT = "project"
    PERSON = "person"  # the author of the merge request
    AGENT = "agent"
    WEEK = "week"  # of ISO 8601, in UTC


@dataclass(frozen=True)
class UsageQuery:
    """Which use is asked for: of sandboxes and turns that ended from `since` until before `until`, and of those that
    have not ended if now lies within."""

    by: tuple[UsageBy, ...] = (UsageBy.PROJECT,)
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class UsageLine:
    """What the sandboxes of one group used. `group`: its project, person or week, in the order that was asked for."""

    group: tuple[str, ...]
    sandboxes: int
    hours: float  # from ready to the end
    queue_hours: float
    queue_median_seconds: float
    machine_hours: float
    cpu_hours: float
    memory_gib_hours: float
    memory_peak_bytes: int  # of one machine, as the next
    disk_peak_bytes: int
    received_bytes: int  # by the guests, from their network
    sent_bytes: int
    visitor_bytes: int  # that people's connections moved
    model_tokens: int


@dataclass(frozen=True)
class AgentUsageLine:
    """What one agent did. `group`: its name, and the week if that was asked for."""

    group: tuple[str, ...]
    turns: int
    hours: float  # that it worked
    model_tokens: int


UsageLines = tuple[UsageLine, ...] | tuple[AgentUsageLine, ...]


class Operations(Protocol):
    """The shell's requests to the running bot. Raises `Refused` with a text for the person who asked."""

    async def command(self, verb: str, words: tuple[str, ...], actor: Actor) -> Outcome | tuple[SandboxLine, ...]:
        """Run a command of the verb table; returns its outcome, or the sandboxes that it lists."""

    async def cleanup(
        self, *, older_than: timedelta | None, everything: bool, force: bool, adopt: bool, actor: Actor
    ) -> CleanupReport:
        """End sandboxes older than that, or all; remove leftovers."""

    async def strangers(self) -> Strangers:
        """What a cleanup with `adopt` would end and remove."""

    async def replace_instance(self, instance_id: str) -> None:
        """Record that this instance replaces that one, so that the other one's status notes are corrected."""

    async def audit(self, asked: AuditQuery) -> AuditReport:
        """The newest of those events; `verify` checks the whole log's hashes."""

    async def export(self, asked: AuditQuery, place: ExportPlace | None) -> ExportPiece:
        """The next piece of an export of those events; the first without a place."""

    async def logs(self, ref: str) -> LogsReport:
        """Where the logs of a merge request's sandbox are, and what set-up and tests printed."""

    async def usage(self, asked: UsageQuery) -> UsageLines:
        """What was used, by group."""
