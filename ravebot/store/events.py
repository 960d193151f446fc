"""The append-only log: what happened, when, to what, who caused it; each row carries the hash of the row before."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ravebot.clock import from_us, to_us
from ravebot.sandboxes.model import Actor, Event, EventKind, MachineId, MergeRequestRef, SandboxId
from ravebot.store.database import Transaction, dump_json

_GENESIS = "0" * 64
_RAW = (
    "id, at, CAST(kind AS BLOB) AS kind, CAST(actor_kind AS BLOB) AS actor_kind, CAST(actor AS BLOB) AS actor,"
    " project_id, iid, sandbox_id, machine_id, CAST(data AS BLOB) AS data, CAST(hash AS BLOB) AS hash"
)


@dataclass(frozen=True)
class Verification:
    """What a check of the whole log found. `broken_at`: the first row whose hash is wrong or that is missing."""

    rows: int
    head: str
    broken_at: int | None = None


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
    number, before = (last["id"] + 1, last["hash"]) if last else (1, _GENESIS)
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


def verify(tx: Transaction) -> Verification:
    """Recompute every hash; finds rows that were changed, removed or inserted. A cut end shows only in `head`."""
    before, count, expected = _GENESIS, 0, 1
    early = tx.one("SELECT id FROM events WHERE id < 1 ORDER BY id LIMIT 1")
    if early:
        return Verification(0, before, early["id"])
    while rows := tx.all(f"SELECT {_RAW} FROM events WHERE id >= ? ORDER BY id LIMIT 1000", (expected,)):  # noqa: S608 - a constant
        for row in rows:
            content = _decoded(row)
            found = content.pop("hash")
            if row["id"] != expected or found != _hash(before, content):
                return Verification(count, before, expected)
            before, count, expected = found, count + 1, expected + 1
    return Verification(count, before)


def head(tx: Transaction) -> str:
    """The hash of the newest row."""
    row = tx.one("SELECT CAST(hash AS BLOB) AS hash FROM events ORDER BY id DESC LIMIT 1")
    return str(_decoded(row)["hash"]) if row else _GENESIS


def lines(tx: Transaction, limit: int, ref: MergeRequestRef | None = None) -> tuple[Line, ...]:
    """The newest rows of one merge request or of all, oldest first, for the audit."""
    which, parameters = ("WHERE project_id = ? AND iid = ?", (ref.project_id, ref.iid)) if ref else ("", ())
    rows = tx.all(
        f"SELECT {_RAW},"  # noqa: S608 - constants
        " (SELECT CAST(project_path AS BLOB) FROM merge_requests AS mr"
        "  WHERE mr.project_id = events.project_id AND mr.iid = events.iid) AS path,"
        " (SELECT CAST(name AS BLOB) FROM machines WHERE machines.id = events.machine_id) AS machine"
        f" FROM events {which} ORDER BY id DESC LIMIT ?",
        (*parameters, limit),
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
