"""What sandboxes and agents used, for the account at a sandbox's end and for `ravebot usage`.

Rows of sandboxes, machines, connections and turns are never removed, so what was used up to a moment never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ravebot.agents.model import AGENT
from ravebot.clock import to_us
from ravebot.sandboxes.model import SandboxId
from ravebot.store.database import Transaction
from ravebot.store.rows import load

_EVER_US = 2**62
# Columns hold microseconds.
_LIVED = "MAX(0, CASE m.state WHEN 'gone' THEN m.state_since ELSE ?1 END - m.created_at) / 1e6"
_USES = f"""
SELECT mr.project_path AS project, mr.author_username AS person, s.project_id, mr.author_id, s.ended_at,
 MAX(0, COALESCE(s.ended_at, ?1) - COALESCE(
  s.ready_at, (SELECT MIN(at) FROM events WHERE sandbox_id = s.id AND kind = 'sandbox.kept'), s.ended_at, ?1
 )) / 1e6 AS up_seconds,
 MAX(0, COALESCE(MIN(m.created_at), s.ended_at, ?1) - s.created_at) / 1e6 AS queued_seconds,
 TOTAL({_LIVED}) AS machine_seconds, TOTAL(m.cpu_seconds) AS cpu_seconds,
 TOTAL({_LIVED} * m.memory_bytes) AS memory_byte_seconds, COALESCE(MAX(m.memory_peak_bytes), 0) AS memory_peak_bytes,
 COALESCE(MAX(m.disk_peak_bytes), 0) AS disk_peak_bytes, COALESCE(SUM(m.received_bytes), 0) AS received_bytes,
 COALESCE(SUM(m.sent_bytes), 0) AS sent_bytes,
 COALESCE((SELECT SUM(bytes) FROM connections WHERE sandbox_id = s.id), 0) AS visitor_bytes,
 COALESCE((SELECT tokens FROM sandbox_tokens WHERE sandbox_id = s.id), 0) AS model_tokens
FROM sandboxes s JOIN merge_requests mr ON mr.project_id = s.project_id AND mr.iid = s.iid
LEFT JOIN machines m ON m.sandbox_id = s.id
"""  # noqa: S608 - constants
_TURNS = """
SELECT c.agent, t.ended_at,
 MAX(0, COALESCE(t.ended_at, ?1) - COALESCE(t.given_at, t.ended_at, ?1)) / 1e6 AS worked_seconds
FROM agent_turns t JOIN conversations c ON c.id = t.conversation_id
"""
_ENDED = "({0}.ended_at >= ?2 AND {0}.ended_at < ?3 OR ?4 AND {0}.ended_at IS NULL)"


@dataclass(frozen=True)
class UsageSpan:
    """A time from `since` until before `until`; None: without that end."""

    since: datetime | None = None
    until: datetime | None = None

    def bounds(self, tx: Transaction) -> tuple[int, int, bool]:
        """As `_ENDED` takes them; the last says whether now lies within."""
        since = to_us(self.since) if self.since else -_EVER_US
        until = to_us(self.until) if self.until else _EVER_US
        return since, until, since <= tx.now_us < until


@dataclass(frozen=True)
class SandboxUse:
    """What one sandbox used, over its life or so far; times in seconds."""

    project: str
    person: str  # the merge request's author
    ended_at: datetime | None
    up_seconds: float  # from ready, or from when its machine was kept after a failure, to the end
    queued_seconds: float  # until it had its first machine
    machine_seconds: float
    cpu_seconds: float
    memory_byte_seconds: float  # what its machines were given, times their time
    memory_peak_bytes: int
    disk_peak_bytes: int
    received_bytes: int  # by the guest from its network
    sent_bytes: int
    visitor_bytes: int  # that people's SSH and web connections moved
    model_tokens: int

    def account(self) -> dict[str, object]:
        """The figures that do not change any more once it has ended; tokens do, when a request of before is settled."""
        others = ("project", "person", "ended_at", "model_tokens")
        return {name: value for name, value in vars(self).items() if name not in others}


@dataclass(frozen=True)
class TurnUse:
    """One turn of an agent. `worked_seconds`: until it ended, or so far; 0 if the agent never was given it."""

    agent: str
    ended_at: datetime | None
    worked_seconds: float


@dataclass(frozen=True)
class AgentDay:
    """The models' tokens that an agent used on a UTC day."""

    agent: str
    day: datetime  # its begin
    model_tokens: int


def of_sandbox(tx: Transaction, sandbox_id: SandboxId) -> SandboxUse:
    """What that sandbox used so far."""
    row = tx.one(f"{_USES} WHERE s.id = ?2 GROUP BY s.id", (tx.now_us, sandbox_id))
    assert row
    return load(SandboxUse, row)


def of_sandboxes(tx: Transaction, span: UsageSpan) -> tuple[SandboxUse, ...]:
    """Those that ended in that time, and those that have not ended if now lies within."""
    rows = tx.all(f"{_USES} WHERE {_ENDED.format('s')} GROUP BY s.id", (tx.now_us, *span.bounds(tx)))
    projects, people = _newest(tx, "project_id", "project_path"), _newest(tx, "author_id", "author_username")
    return tuple(
        load(
            SandboxUse,
            row,
            project=projects.get(row["project_id"], row["project"]),
            person=people.get(row["author_id"], row["person"]),
        )
        for row in rows
    )


def _newest(tx: Transaction, number: str, name: str) -> dict[int, str]:
    """Names by GitLab's numbers: what was renamed or moved is counted under the name that was seen last."""
    rows = tx.all(
        f"SELECT {number} AS number, {name} AS name, MAX(COALESCE(updated_at, 0)) FROM merge_requests"  # noqa: S608 - constants
        f" WHERE {number} > 0 AND {name} <> '' GROUP BY {number}"
    )
    return {row["number"]: row["name"] for row in rows}


def of_turns(tx: Transaction, span: UsageSpan) -> tuple[TurnUse, ...]:
    """Agents' turns that ended in that time, and those that have not ended if now lies within."""
    rows = tx.all(f"{_TURNS} WHERE {_ENDED.format('t')}", (tx.now_us, *span.bounds(tx)))
    return tuple(load(TurnUse, row) for row in rows)


def of_days(tx: Transaction, span: UsageSpan) -> tuple[AgentDay, ...]:
    """Agents' tokens on the UTC days that have a part in that time."""
    first = span.since.date().isoformat() if span.since else ""
    last = (span.until - timedelta(microseconds=1)).date().isoformat() if span.until else "9999"
    rows = tx.all(
        "SELECT day, name, tokens FROM agent_budgets WHERE kind = ? AND tokens > 0 AND day >= ? AND day <= ?",
        (AGENT, first, last),
    )
    return tuple(
        AgentDay(row["name"], datetime.fromisoformat(row["day"]).replace(tzinfo=UTC), row["tokens"]) for row in rows
    )
