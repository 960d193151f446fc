"""The event log as the shell shows it, whether the bot runs or not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ravebot.clock import SystemClock
from ravebot.commands import refs
from ravebot.errors import Refused, StoreError
from ravebot.operations.offline import opened
from ravebot.operations.reports import AuditLine, AuditReport
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import events, merge_requests
from ravebot.store.database import Database, Transaction


def report(tx: Transaction, ref: str | None, verify: bool, limit: int) -> AuditReport:
    """The last events of a merge request (`group/app!42`) or of all. Raises Refused for an unknown reference."""
    checked = events.verify(tx) if verify else None
    found = events.lines(tx, limit, _find(tx, ref) if ref is not None else None)
    lines = tuple([AuditLine(**vars(line)) for line in found])
    if checked is None:
        return AuditReport(lines, events.head(tx))
    return AuditReport(lines, events.head(tx), checked.rows, checked.broken_at)


async def read(database: Database, ref: str | None, verify: bool, limit: int) -> AuditReport:
    """The report. Raises StoreError, also if the database was altered so much that it can't be read."""
    try:
        return await database.read(lambda tx: report(tx, ref, verify, limit))
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"the event log in {database.path} can't be read: {error}; it was tampered with or damaged: "
            "compare with a backup of the database"
        ) from error


async def read_offline(state_dir: Path, ref: str | None, verify: bool, limit: int) -> AuditReport:
    """`report`, while no bot runs. Raises StoreError if there is no database, or if a bot uses it after all."""
    async with opened(state_dir, SystemClock()) as database:
        return await read(database, ref, verify, limit)


def _find(tx: Transaction, ref: str) -> MergeRequestRef:
    try:
        named = refs.read_full(ref)
    except ValueError as error:
        raise Refused(str(error)) from error
    known = merge_requests.find(tx, named.project_path, named.iid)
    # The row may have been altered, which no hash shows: the log has the name as well.
    found = known.ref if known else events.named(tx, str(named))
    if found is None:
        raise Refused(refs.unknown(named))
    return found
