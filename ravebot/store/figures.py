"""What is measured every few seconds: running machines, the queue, ports in use, requests, and agents' turns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ravebot.clock import from_us
from ravebot.store.database import Transaction
from ravebot.store.inbox import EARLY
from ravebot.store.rows import load


@dataclass(frozen=True)
class RunningMachine:
    """A sandbox's machine, and what it used so far or uses now."""

    project: str
    iid: int
    name: str
    vcpus: int
    memory_bytes: int  # that it was given
    cpu_seconds: float
    memory_used_bytes: int
    disk_used_bytes: int
    open_files: int  # descriptors of its QEMU; 0: not known
    received_bytes: int
    sent_bytes: int
    ready_at: datetime | None
    expires_at: datetime | None
    measured_at: datetime | None
    busy_since: datetime | None  # since when it uses all its processors, as measured then
    visited_at: datetime | None  # when the last packet of anybody's connection to it was seen

    @property
    def spun_for(self) -> timedelta:
        """How long it has used all its processors with nobody connected: what people do there is theirs."""
        if self.busy_since is None or self.measured_at is None:
            return timedelta()
        since = max(self.busy_since, self.visited_at) if self.visited_at else self.busy_since
        return max(timedelta(), self.measured_at - since)


@dataclass(frozen=True)
class Backlog:
    """How many wait, and since when the oldest."""

    count: int
    since: datetime | None


def running(tx: Transaction) -> tuple[RunningMachine, ...]:
    """Of every sandbox that has a machine, the oldest first."""
    rows = tx.all(
        "SELECT mr.project_path AS project, s.iid, m.*, s.ready_at, s.expires_at,"
        " (SELECT MAX(last_at) FROM connections WHERE sandbox_id = s.id) AS visited_at"
        " FROM sandboxes s JOIN machines m ON m.id = s.machine_id AND m.state <> 'gone'"
        " JOIN merge_requests mr ON mr.project_id = s.project_id AND mr.iid = s.iid"
        " WHERE s.state <> 'ended' ORDER BY s.id"
    )
    return tuple(load(RunningMachine, row) for row in rows)


def queue(tx: Transaction) -> Backlog:
    """The sandboxes that wait for their turn."""
    which = "FROM sandboxes WHERE state <> 'ended' AND state = 'queued'"  # as its index has it
    return _waiting(tx, f"SELECT COUNT(*) AS n, MIN(created_at) AS since {which}")


def requests(tx: Transaction, source: str) -> Backlog:
    """The requests of GitLab or Matrix that are not handled, but for early reactions: they wait for ourselves."""
    which = "FROM inbox WHERE handled_at IS NULL AND source = ? AND kind <> ?"
    return _waiting(tx, f"SELECT COUNT(*) AS n, MIN(received_at) AS since {which}", source, EARLY)


def ports_used(tx: Transaction) -> tuple[int, int]:
    """How many ports for SSH and for web pages sandboxes have."""
    row = tx.one("SELECT COUNT(ssh_port) AS ssh, COUNT(web_port) AS web FROM sandboxes WHERE state <> 'ended'")
    assert row
    return row["ssh"], row["web"]


def turns_ended(tx: Transaction) -> dict[str, int]:
    """How many turns of agents ever ended in which state."""
    rows = tx.all("SELECT state, COUNT(*) AS n FROM agent_turns WHERE ended_at IS NOT NULL GROUP BY state")
    return {row["state"]: row["n"] for row in rows}


def _waiting(tx: Transaction, sql: str, *parameters: str) -> Backlog:
    row = tx.one(sql, parameters)
    assert row
    return Backlog(row["n"], from_us(row["since"]) if row["since"] is not None else None)
