"""The append-only log: what happened, when, to what, who caused it; each row carries the hash of the row before."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ravebot.clock import from_us, to_us
from ravebot.sandboxes.model import Actor, Event, EventKind, MachineId, MergeRequestRef, SandboxId
from ravebot.store.database import Transaction, dump_json

GENESIS = "0" * 64
"""What stands for the hash before the first row."""
_RAW = (
    "id, at, CAST(kind AS BLOB) AS kind, CAST(actor_kind AS BLOB) AS actor_kind, CAST(actor AS BLOB) AS actor,"
    " project_id, iid, sandbox_id, machine_id, CAST(data AS BLOB) AS data, CAST(hash AS BLOB) AS hash"
)
_NAMES = (
    " (SELECT CAST(project_path AS BLOB) FROM merge_requests AS mr"
    "  WHERE mr.project_id = events.project_id AND mr.iid = events.iid) AS path,"
    " (SELECT CAST(name AS BLOB) FROM machines WHERE machines.id = events.machine_id) AS machine"
)
_WANTED = (
    "(?1 IS NULL OR project_id IN (SELECT value FROM json_each(?1))) AND (?2 IS NULL OR iid = ?2)"
    " AND (?3 IS NULL OR actor COLLATE NOCASE IN (SELECT value FROM json_each(?3))"
    "  OR (actor || ' (' || actor_kind || ')') COLLATE NOCASE IN (SELECT value FROM json_each(?3)))"
    " AND (?4 IS NULL OR EXISTS (SELECT 1 FROM json_each(?4) WHERE kind = value"
    "  OR (substr(value, -1) = '.' AND substr(kind, 1, length(value)) = value)))"
    " AND (?5 IS NULL OR at >= ?5) AND (?6 IS NULL OR at < ?6)"
)
"""Whether a row is one of those that `Which` asks for; with its parameters."""


@dataclass(frozen=True)
class Verification:
    """What a check of the whole log found. `broken_at`: the first row whose hash is wrong or that is missing."""

    rows: int
    head: str
    broken_at: int | None = None


NOTHING = Verification(0, GENESIS)
"""Where a check begins."""


@dataclass(frozen=True)
class Line:
    """One row as it is stored, even if somebody changed it; nothing in it is trusted."""

    id: int
    at: datetime | None  # None: the stored number is no valid time
    kind: str
    actor: str
    ref: str
    machine: str
    detail: str  # JSON, as it was written


@dataclass(frozen=True)
class Which:
    """Which rows are asked for; what is not said leaves none out.

    `people`: names, or names with where they are known, as `str(Actor)` writes them. `kinds`: whole, or their beginning
    up to a dot, like `sandbox.`.
    """

    projects: tuple[int, ...] | None = None
    iid: int | None = None
    people: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def parameters(self) -> tuple[str | int | None, ...]:
        """Those of `_WANTED`."""
        return (
            dump_json(self.projects) if self.projects is not None else None,
            self.iid,
            dump_json(self.people) if self.people else None,
            dump_json(self.kinds) if self.kinds else None,
            to_us(self.since) if self.since else None,
            to_us(self.until) if self.until else None,
        )


@dataclass(frozen=True)
class Intact:
    """A row whose hash is right: that of `before`, the hash of the row before, and of `content` as canonical JSON."""

    content: dict[str, Any]
    before: str
    hash: str
    is_wanted: bool
    ref: str
    machine: str

    @property
    def id(self) -> int:
        return int(self.content["id"])


def append(
    tx: Transaction,
    kind: EventKind,
    actor: Actor,
    *,
    mr: MergeRequestRef | None = None,
    sandbox_id: SandboxId | None = None,
    machine_id: MachineId | None = None,
    data: dict[str, object] | None = None,
) -> Event:
    """Add one row; it commits with the change that it records."""
    last = tx.one("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1")
    number, before = (last["id"] + 1, last["hash"]) if last else (1, GENESIS)
    row = {
        "id": number,
        "at": tx.now_us,
        "kind": kind,
        "actor_kind": actor.kind,
        "actor": actor.name,
        "project_id": mr.project_id if mr else None,
        "iid": mr.iid if mr else None,
        "sandbox_id": sandbox_id,
        "machine_id": machine_id,
        "data": dump_json(data or {}),
    }
    tx.insert("events", {**row, "hash": _hash(before, row)})
    return Event(number, tx.now, kind, actor, mr, sandbox_id, machine_id, data or {})


def verify(tx: Transaction, so_far: Verification = NOTHING, most: int | None = None) -> Verification:
    """Recompute every hash; finds rows that were changed, removed or inserted. A cut end shows only in `head`.

    Goes on after what was found `so_far`, for at most so many rows.
    """
    before, count = so_far.head, so_far.rows
    early = tx.one("SELECT id FROM events WHERE id < 1 ORDER BY id LIMIT 1") if not count else None
    if early:
        return Verification(0, before, early["id"])
    end = math.inf if most is None else count + most
    while count < end:
        rows = tx.all(
            f"SELECT {_RAW} FROM events WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608 - a constant
            (count, int(min(1000, end - count))),
        )
        if not rows:
            break
        for row in rows:
            content = _decoded(row)
            found = content.pop("hash")
            if row["id"] != count + 1 or found != _hash(before, content):
                return Verification(count, before, count + 1)
            before, count = found, count + 1
    return Verification(count, before)


def head(tx: Transaction) -> str:
    """The hash of the newest row."""
    row = tx.one("SELECT CAST(hash AS BLOB) AS hash FROM events ORDER BY id DESC LIMIT 1")
    return str(_decoded(row)["hash"]) if row else GENESIS


def newest_id(tx: Transaction) -> int:
    """The number of the newest row; 0 if there is none."""
    row = tx.one("SELECT MAX(id) AS id FROM events")
    return (row["id"] if row else None) or 0


def intact(
    tx: Transaction, after: int, before: str, last: int, which: Which, most: int
) -> tuple[tuple[Intact, ...], int | None]:
    """The rows that follow the one with that number and hash, up to the row `last` and at most so many, and the number
    of the first that is missing or altered. Begin with 0 and `GENESIS`."""
    early = tx.one("SELECT id FROM events WHERE id < 1 ORDER BY id LIMIT 1") if after < 1 else None
    if early:
        return (), early["id"]
    rows = tx.all(
        f"SELECT {_RAW}, {_NAMES}, ({_WANTED}) AS wanted FROM events"  # noqa: S608 - constants
        " WHERE id > ?7 AND id <= ?8 ORDER BY id LIMIT ?9",
        (*which.parameters(), after, last, most),
    )
    found: list[Intact] = []
    for row in rows:
        content = _decoded(row)
        path, machine, wanted = content.pop("path"), content.pop("machine"), content.pop("wanted")
        told = content.pop("hash")
        after += 1
        if content["id"] != after or told != _hash(before, content):
            return tuple(found), after
        ref = f"{path}!{content['iid']}" if path else ""
        found.append(Intact(content, before, told, bool(wanted), ref, machine or ""))
        before = told
    return tuple(found), None if after == last or len(rows) == most else after + 1


def lines(tx: Transaction, limit: int, which: Which) -> tuple[Line, ...]:
    """The newest rows of those, oldest first, for the audit."""
    rows = tx.all(
        f"SELECT {_RAW}, {_NAMES} FROM events WHERE {_WANTED} ORDER BY id DESC LIMIT ?7",  # noqa: S608 - constants
        (*which.parameters(), limit),
    )
    return tuple(_line(_decoded(row)) for row in reversed(rows))


def named(tx: Transaction, full_ref: str) -> MergeRequestRef | None:
    """The merge request that had this name (`group/app!42`) when a sandbox was last queued for it, by the log alone."""
    row = tx.one(
        "SELECT project_id, iid FROM events WHERE kind = ? AND project_id IS NOT NULL"
        " AND CASE WHEN json_valid(data) THEN json_extract(data, '$.ref') END = ? ORDER BY id DESC LIMIT 1",
        (EventKind.SANDBOX_QUEUED, full_ref),
    )
    return MergeRequestRef(row["project_id"], row["iid"]) if row else None


def projects_named(tx: Transaction, path: str) -> tuple[int, ...]:
    """The projects that have or had this path, by the merge requests and by the log."""
    rows = tx.all(
        "SELECT project_id FROM merge_requests WHERE project_path = ?1"
        " UNION SELECT project_id FROM events WHERE kind = ?2 AND project_id IS NOT NULL"
        " AND CASE WHEN json_valid(data) THEN substr(json_extract(data, '$.ref'), 1, length(?1) + 1) END = ?1 || '!'",
        (path, EventKind.SANDBOX_QUEUED),
    )
    return tuple(row["project_id"] for row in rows)


def of_sandbox(tx: Transaction, sandbox_id: SandboxId, limit: int = 200) -> tuple[Event, ...]:
    """A sandbox's newest events, oldest first."""
    rows = tx.all("SELECT * FROM events WHERE sandbox_id = ? ORDER BY id DESC LIMIT ?", (sandbox_id, limit))
    return tuple(_event(row) for row in reversed(rows))


def newest(tx: Transaction, limit: int, since: datetime | None = None) -> tuple[Event, ...]:
    rows = tx.all("SELECT * FROM events WHERE at >= ? ORDER BY id DESC LIMIT ?", (to_us(since) if since else 0, limit))
    return tuple(_event(row) for row in reversed(rows))


def _decoded(row: sqlite3.Row) -> dict[str, Any]:
    """The row with text decoded; `_RAW` selects bytes, because SQLite's driver raises for text that is not UTF-8."""
    values = {key: row[key] for key in row.keys()}  # noqa: SIM118 - a Row iterates values
    return {key: value.decode(errors="replace") if isinstance(value, bytes) else value for key, value in values.items()}


def _line(row: dict[str, Any]) -> Line:
    try:
        at = from_us(row["at"])
    except OverflowError:
        at = None
    return Line(
        id=row["id"],
        at=at,
        kind=row["kind"],
        actor=str(Actor(row["actor_kind"], row["actor"])),
        ref=f"{row['path']}!{row['iid']}" if row["path"] else "",
        machine=row["machine"] or "",
        detail=row["data"],
    )


def _hash(before: str, row: dict[str, object]) -> str:
    return hashlib.sha256((before + dump_json(row)).encode()).hexdigest()


def _event(row: sqlite3.Row) -> Event:
    return Event(
        id=row["id"],
        at=from_us(row["at"]),
        kind=EventKind.read(row["kind"]),
        actor=Actor(row["actor_kind"], row["actor"]),
        mr=MergeRequestRef(row["project_id"], row["iid"]) if row["iid"] is not None else None,
        sandbox_id=row["sandbox_id"],
        machine_id=row["machine_id"],
        data=json.loads(row["data"]),
    )
