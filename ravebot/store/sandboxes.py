"""Sandboxes, their warnings and the results of their stages."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from functools import lru_cache
from typing import Any

from ravebot.clock import from_us, to_us
from ravebot.sandboxes.model import (
    Actor,
    MergeRequestRef,
    Run,
    Sandbox,
    SandboxId,
    SandboxState,
    StageResult,
)
from ravebot.store import environments
from ravebot.store.database import Transaction, Value
from ravebot.store.rows import dump, load
from ravebot.store.signals import AGENTS_WAIT


def insert(tx: Transaction, ref: MergeRequestRef, sha: str, actor: Actor) -> Sandbox:
    """A new queued sandbox."""
    fresh = Sandbox(SandboxId(0), ref, SandboxState.QUEUED, actor, tx.now, tx.now, sha)
    values = _values(fresh)
    del values["id"]
    row_id = tx.insert("sandboxes", values)
    environments.touch(tx, ref)
    found = get(tx, SandboxId(row_id))
    assert found
    return found


def save(tx: Transaction, sandbox: Sandbox) -> None:
    """Write the whole row; `sandbox` must have been read in this same transaction."""
    tx.upsert("sandboxes", ("id",), _values(sandbox))
    tx.execute("DELETE FROM warnings WHERE sandbox_id = ?", (sandbox.id,))
    for threshold in sandbox.warned:
        tx.execute("INSERT INTO warnings VALUES (?, ?)", (sandbox.id, threshold))
    environments.touch(tx, sandbox.mr)
    tx.wake(AGENTS_WAIT)


def get(tx: Transaction, sandbox_id: SandboxId) -> Sandbox | None:
    found = _select(tx, "WHERE s.id = ?", (sandbox_id,))
    return found[0] if found else None


def live(tx: Transaction) -> tuple[Sandbox, ...]:
    """All that have not ended, oldest first, which is also the order of the queue."""
    return _select(tx, "WHERE s.state <> 'ended' ORDER BY s.id")


def with_machine(tx: Transaction) -> tuple[Sandbox, ...]:
    """Those that are starting, ready or stopping, oldest first."""
    return _select(tx, "WHERE s.state <> 'ended' AND s.state <> 'queued' ORDER BY s.id")


def queue_position(tx: Transaction, sandbox_id: SandboxId) -> int:
    """The place of a queued sandbox in the queue; 1 is next."""
    row = tx.one(
        "SELECT COUNT(*) AS n FROM sandboxes WHERE state <> 'ended' AND state = 'queued' AND id <= ?", (sandbox_id,)
    )
    return int(row["n"]) if row else 0


def current(tx: Transaction, ref: MergeRequestRef) -> Sandbox | None:
    """The merge request's sandbox that is queued, starting or ready; there is at most one."""
    found = _select(
        tx,
        "WHERE s.project_id = ? AND s.iid = ? AND s.state IN ('queued', 'starting', 'ready')",
        (ref.project_id, ref.iid),
    )
    return found[0] if found else None


def latest(tx: Transaction, ref: MergeRequestRef) -> Sandbox | None:
    """The merge request's newest sandbox, in any state."""
    found = _select(tx, "WHERE s.project_id = ? AND s.iid = ? ORDER BY s.id DESC LIMIT 1", (ref.project_id, ref.iid))
    return found[0] if found else None


def newest_id(tx: Transaction) -> int:
    """The highest id of all: a sandbox with a higher one came later."""
    row = tx.one("SELECT MAX(id) AS id FROM sandboxes")
    return row["id"] if row and row["id"] is not None else 0


def last_use_of_ports(tx: Transaction) -> dict[int, int]:
    """For every port that was ever assigned, the id of the last sandbox that had it."""
    rows = tx.all(
        "SELECT ssh_port AS port, MAX(id) AS last FROM sandboxes WHERE ssh_port IS NOT NULL GROUP BY ssh_port"
        " UNION ALL"
        " SELECT web_port, MAX(id) FROM sandboxes WHERE web_port IS NOT NULL GROUP BY web_port"
    )
    return {row["port"]: row["last"] for row in rows}


def add_result(tx: Transaction, sandbox: Sandbox, result: StageResult) -> None:
    """Store the result of a stage."""
    values = {"sandbox_id": sandbox.id, "attempt": sandbox.stage_attempt, "at": tx.now_us}
    tx.insert("stage_results", dump(result) | values)


def forget_output(tx: Transaction, older_than: timedelta) -> int:
    """Delete output of set-up and tests that is older than that; the results stay."""
    return tx.changed("UPDATE stage_results SET tail = '' WHERE at < ? AND tail <> ''", (to_us(tx.now - older_than),))


def results(tx: Transaction, sandbox: Sandbox) -> tuple[StageResult, ...]:
    """The results of the latest run of the chain, in order."""
    rows = tx.all(
        "SELECT stage, ok, seconds, tail, at FROM stage_results WHERE sandbox_id = ? AND attempt ="
        " (SELECT MAX(attempt) FROM stage_results WHERE sandbox_id = ?) ORDER BY id",
        (sandbox.id, sandbox.id),
    )
    return tuple(load(StageResult, row) for row in rows)


def printed(tx: Transaction, mr: MergeRequestRef) -> tuple[Run, ...]:
    """The newest run of a merge request's set-up and tests that printed something, and before it the newest that failed
    if that is an earlier one, also of an earlier sandbox."""
    rows = tx.all(
        "SELECT r.sandbox_id, r.attempt, MAX(r.id) AS last, MIN(r.ok) AS ok FROM stage_results r"
        " JOIN sandboxes s ON s.id = r.sandbox_id WHERE s.project_id = ? AND s.iid = ? AND r.tail <> ''"
        " GROUP BY r.sandbox_id, r.attempt ORDER BY last DESC LIMIT 50",
        (mr.project_id, mr.iid),
    )
    wanted = [*rows[:1], *[row for row in rows if not row["ok"]][:1]]
    return tuple(_run(tx, row) for row in dict.fromkeys(wanted))


def _run(tx: Transaction, of: sqlite3.Row) -> Run:
    rows = tx.all(
        "SELECT stage, ok, seconds, tail, at FROM stage_results WHERE sandbox_id = ? AND attempt = ? AND tail <> ''"
        " ORDER BY id",
        (of["sandbox_id"], of["attempt"]),
    )
    return Run(from_us(rows[-1]["at"]), tuple(load(StageResult, row) for row in rows))


def _select(tx: Transaction, where: str, parameters: tuple[Value, ...] = ()) -> tuple[Sandbox, ...]:
    rows = tx.all(
        "SELECT s.*, (SELECT group_concat(threshold) FROM warnings w WHERE w.sandbox_id = s.id) AS warned"  # noqa: S608 - `where` is one of the constants above
        " FROM sandboxes s " + where,
        parameters,
    )
    names = tuple(rows[0].keys()) if rows else ()
    return tuple(_sandbox(names, tuple(row)) for row in rows)


@lru_cache(maxsize=4096)  # every pass reads all live rows, and most have not changed
def _sandbox(names: tuple[str, ...], values: tuple[Any, ...]) -> Sandbox:
    row = dict(zip(names, values, strict=True))
    return load(
        Sandbox,
        row,
        mr=MergeRequestRef(row["project_id"], row["iid"]),
        requested_by=Actor(row["requested_kind"], row["requested_by"]),
        warned=frozenset(int(text) for text in (row["warned"] or "").split(",") if text),
    )


def _values(sandbox: Sandbox) -> dict[str, Value]:
    return dump(sandbox, without=("mr", "requested_by", "warned")) | {
        "project_id": sandbox.mr.project_id,
        "iid": sandbox.mr.iid,
        "requested_kind": sandbox.requested_by.kind,
        "requested_by": sandbox.requested_by.name,
    }
