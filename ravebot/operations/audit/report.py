"""Which events the shell shows, and whether the log is intact, whether the bot runs or not."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path

from ravebot.clock import SystemClock
from ravebot.commands import refs
from ravebot.errors import Refused, StoreError
from ravebot.operations.offline import opened
from ravebot.operations.reports import AuditLine, AuditQuery, AuditReport
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import events, merge_requests
from ravebot.store.database import Database, Transaction
from ravebot.store.events import NOTHING, Verification, Which

_AT_ONCE = 1000


def report(tx: Transaction, asked: AuditQuery, checked: Verification = NOTHING) -> AuditReport:
    """The newest of those events. Raises Refused for an unknown merge request or project.

    `checked` is what is known of the log so far, if it was asked whether it is intact.
    """
    found = events.lines(tx, asked.limit, which(tx, asked))
    lines = tuple([AuditLine(**vars(line)) for line in found])
    if not asked.verify:
        return AuditReport(lines, events.head(tx))
    if checked.broken_at is None:
        checked = events.verify(tx, checked)
    return AuditReport(lines, events.head(tx), checked.rows, checked.broken_at)


async def read(database: Database, asked: AuditQuery) -> AuditReport:
    """The report. Raises StoreError, also if the database was altered so much that it can't be read."""
    try:
        checked = await _checked(database) if asked.verify else NOTHING
        return await database.read(lambda tx: report(tx, asked, checked))
    except sqlite3.DatabaseError as error:
        raise unreadable(database, error) from error


async def _checked(database: Database) -> Verification:
    """The log up to now, in many readings: during one, SQLite can't begin its write-ahead log anew."""
    found = NOTHING
    while True:
        before = found
        found = await database.read(partial(events.verify, so_far=before, most=_AT_ONCE))
        if found.broken_at is not None or found.rows < before.rows + _AT_ONCE:
            return found


async def read_offline(state_dir: Path, asked: AuditQuery) -> AuditReport:
    """`report`, while no bot runs. Raises StoreError if there is no database, or if a bot uses it after all."""
    async with opened(state_dir, SystemClock()) as database:
        return await read(database, asked)


def unreadable(database: Database, error: Exception) -> StoreError:
    """What to say if the log can't be read."""
    return StoreError(
        f"the event log in {database.path} can't be read: {error}; it was tampered with or damaged: "
        "compare with a backup of the database"
    )


def which(tx: Transaction, asked: AuditQuery) -> Which:
    """The rows that are asked for. Raises Refused for an unknown merge request or project."""
    found = Which(people=people(asked), kinds=asked.kinds, since=asked.since, until=asked.until)
    if asked.project is not None:
        projects = events.projects_named(tx, asked.project)
        if not projects:
            raise Refused(
                f"no merge request of a project {asked.project} was ever seen: write its path, like group/app"
            )
        found = replace(found, projects=projects)
    if asked.ref is not None:
        mr = _find(tx, asked.ref)
        if found.projects is not None and mr.project_id not in found.projects:
            raise Refused(f"{asked.ref} is not in the project {asked.project}: give one of them")
        found = replace(found, projects=(mr.project_id,), iid=mr.iid)
    return found


def people(asked: AuditQuery) -> tuple[str, ...]:
    """The names as the log has them: of GitLab's without the `@` that people write."""
    return tuple(name if ":" in name else name.removeprefix("@") for name in asked.people)


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
