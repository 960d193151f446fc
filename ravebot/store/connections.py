"""The access audit: who connected to which sandbox, when, how often, how much."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ravebot.clock import from_us, to_us
from ravebot.sandboxes.model import SandboxId
from ravebot.store.database import Transaction
from ravebot.store.events import Which
from ravebot.store.rows import dump


@dataclass(frozen=True)
class Visit:
    """The connections of one source to one service of one sandbox."""

    sandbox_id: SandboxId
    service: str
    source: str
    first_at: datetime
    last_at: datetime
    count: int
    dropped: int  # over the rate limit
    bytes: int


VisitKey = tuple[int, str, str]  # the sandbox's id, service and source


@dataclass(frozen=True)
class NamedVisit:
    """The same with the merge request of the sandbox, for people."""

    visit: Visit
    project_id: int
    iid: int
    ref: str

    @property
    def key(self) -> VisitKey:
        return self.visit.sandbox_id, self.visit.service, self.visit.source


def add(tx: Transaction, seen: Visit) -> bool:
    """Add these counts; returns True for the first connection of that source to that service."""
    known = tx.changed(
        "UPDATE connections SET last_at = MAX(last_at, ?), count = count + ?, dropped = dropped + ?, bytes = bytes + ?"
        " WHERE sandbox_id = ? AND service = ? AND source = ?",
        (to_us(seen.last_at), seen.count, seen.dropped, seen.bytes, seen.sandbox_id, seen.service, seen.source),
    )
    if known:
        return False
    tx.insert("connections", dump(seen))
    return True


def page(tx: Transaction, after: VisitKey | None, which: Which, most: int) -> tuple[NamedVisit, ...]:
    """Those of the projects, merge request and time that are asked for, in the order of their keys."""
    rows = tx.all(
        "SELECT c.*, s.project_id, s.iid,"
        " (SELECT project_path FROM merge_requests mr WHERE mr.project_id = s.project_id AND mr.iid = s.iid) AS path"
        " FROM connections c JOIN sandboxes s ON s.id = c.sandbox_id"
        " WHERE (c.sandbox_id, c.service, c.source) > (?7, ?8, ?9)"
        " AND (?1 IS NULL OR s.project_id IN (SELECT value FROM json_each(?1))) AND (?2 IS NULL OR s.iid = ?2)"
        " AND (?5 IS NULL OR c.last_at >= ?5) AND (?6 IS NULL OR c.first_at < ?6)"
        " ORDER BY c.sandbox_id, c.service, c.source LIMIT ?10",
        (*which.parameters(), *(after or (0, "", "")), most),
    )
    return tuple(
        NamedVisit(
            Visit(
                SandboxId(row["sandbox_id"]), row["service"], row["source"], from_us(row["first_at"]),
                from_us(row["last_at"]), row["count"], row["dropped"], row["bytes"],
            ),
            row["project_id"], row["iid"], f"{row['path']}!{row['iid']}" if row["path"] else "",
        )
        for row in rows
    )  # fmt: skip


def visited_since(tx: Transaction, sandbox_id: SandboxId, service: str, moment: datetime) -> bool:
    """Whether anybody was connected to that service of a sandbox then or later."""
    row = tx.one(
        "SELECT 1 FROM connections WHERE sandbox_id = ? AND service = ? AND last_at >= ? LIMIT 1",
        (sandbox_id, service, to_us(moment)),
    )
    return row is not None
