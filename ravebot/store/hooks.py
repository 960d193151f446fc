"""How the webhook of each project was at the last look, so that a change is told once, also after a restart."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ravebot.store.database import Transaction
from ravebot.store.rows import dump, load


@dataclass(frozen=True)
class HookRecord:
    """`condition` is one of `gitlab.hooks.HookCondition`, or of a later version."""

    project: str
    condition: str
    told_at: datetime | None = None


def get(tx: Transaction, project: str) -> HookRecord | None:
    row = tx.one("SELECT * FROM hooks WHERE project = ?", (project,))
    return load(HookRecord, row) if row else None


def save(tx: Transaction, record: HookRecord) -> None:
    tx.upsert("hooks", ("project",), dump(record))
