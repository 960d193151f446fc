"""What GitLab is shown of sandboxes: environments, deployments and commit statuses, one row a merge request."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from datetime import datetime

from ravebot.clock import to_us
from ravebot.sandboxes.environments.model import EnvironmentRecord
from ravebot.sandboxes.model import MergeRequestRef, ProjectId
from ravebot.store.database import Transaction
from ravebot.store.rows import dump, load
from ravebot.store.signals import ENVIRONMENTS


def touch(tx: Transaction, ref: MergeRequestRef) -> None:
    """Its sandbox changed: look what GitLab should show now."""
    tx.execute(
        "INSERT INTO environments (project_id, iid) VALUES (?, ?)"
        " ON CONFLICT (project_id, iid) DO UPDATE SET changes = changes + 1, next_at = NULL",
        (ref.project_id, ref.iid),
    )
    tx.wake(ENVIRONMENTS)


def get(tx: Transaction, ref: MergeRequestRef) -> EnvironmentRecord | None:
    row = tx.one("SELECT * FROM environments WHERE project_id = ? AND iid = ?", (ref.project_id, ref.iid))
    return _record(row) if row else None


def save(tx: Transaction, record: EnvironmentRecord) -> None:
    """Write the whole row; `record` must have been read in this same transaction."""
    key = {"project_id": record.ref.project_id, "iid": record.ref.iid}
    tx.upsert("environments", ("project_id", "iid"), dump(record, without=("ref",)) | key)


def due(tx: Transaction, without: Collection[MergeRequestRef], limit: int) -> tuple[MergeRequestRef, ...]:
    """Where there is something to do now: in turns by project, of each the least recently looked at first."""
    rows = tx.all(
        "SELECT project_id, iid FROM (SELECT project_id, iid, looked_at,"
        " ROW_NUMBER() OVER (PARTITION BY project_id ORDER BY looked_at) AS place FROM environments"
        " WHERE changes <> settled AND (next_at IS NULL OR next_at <= ?1 OR looked_at > ?1))"
        " ORDER BY place, looked_at LIMIT ?2",
        (tx.now_us, limit + len(without)),
    )
    found = (MergeRequestRef(row["project_id"], row["iid"]) for row in rows)
    return tuple(ref for ref in found if ref not in without)[:limit]


def seconds_to_next(tx: Transaction) -> float | None:
    """The time until something that waits is due; None if nothing waits."""
    row = tx.one("SELECT MIN(COALESCE(next_at, 0)) AS at FROM environments WHERE changes <> settled")
    return None if row is None or row["at"] is None else max(0.0, (row["at"] - tx.now_us) / 1_000_000)


def available(tx: Transaction, project_id: ProjectId | None = None) -> tuple[EnvironmentRecord, ...]:
    """Those that should be available at GitLab, of all projects or of one."""
    rows = tx.all(
        "SELECT * FROM environments WHERE state = 'available' AND (? IS NULL OR project_id = ?)"
        " ORDER BY project_id, iid",
        (project_id, project_id),
    )
    return tuple(map(_record, rows))


def there(tx: Transaction) -> tuple[tuple[EnvironmentRecord, str], ...]:
    """Those that are at GitLab, in any state, each with the path of its project."""
    rows = tx.all(
        "SELECT e.*, m.project_path AS path FROM environments e JOIN merge_requests m"
        " ON m.project_id = e.project_id AND m.iid = e.iid WHERE e.environment_id IS NOT NULL ORDER BY path, e.iid"
    )
    return tuple((_record(row), row["path"]) for row in rows)


def refused(tx: Transaction) -> tuple[tuple[str, str], ...]:
    """By project: what GitLab refuses there, as far as a sandbox lives or something of ours is left."""
    rows = tx.all(
        "SELECT DISTINCT m.project_path AS path,"
        " COALESCE(NULLIF(e.environment_refused, ''), NULLIF(e.deployment_refused, ''), e.status_refused) AS why"
        " FROM environments e JOIN merge_requests m ON m.project_id = e.project_id AND m.iid = e.iid"
        " WHERE (e.environment_refused <> '' OR e.deployment_refused <> '' OR e.status_refused <> '')"
        " AND (e.environment_id IS NOT NULL OR EXISTS (SELECT 1 FROM sandboxes s WHERE s.project_id = e.project_id"
        " AND s.iid = e.iid AND s.state <> 'ended'))"
        " ORDER BY m.project_path, why"
    )
    return tuple((row["path"], row["why"]) for row in rows)


def seen(tx: Transaction, refs: Collection[MergeRequestRef], at: datetime, sandbox: int) -> None:
    """GitLab said that these are available, when it was asked at that moment; `sandbox` was the newest of all then."""
    for ref in refs:
        tx.execute(
            "UPDATE environments SET seen_at = ?, seen_with = MAX(seen_with, ?)"
            " WHERE project_id = ? AND iid = ? AND state = 'available'",
            (to_us(at), sandbox, ref.project_id, ref.iid),
        )


def _record(row: sqlite3.Row) -> EnvironmentRecord:
    return load(EnvironmentRecord, row, ref=MergeRequestRef(row["project_id"], row["iid"]))
