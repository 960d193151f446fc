"""What `.rave.yml` said when it was read: at a commit, for ever; at a branch, for a while."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from ravebot.clock import from_us, to_us
from ravebot.store.database import Transaction, Value, dump_json

BRANCH = "refs/heads/"


@dataclass(frozen=True)
class FileProblem:
    """What is wrong in the file: line and column (from 1; 0: none), and words that may repeat its keys."""

    line: int
    column: int
    text: str


@dataclass(frozen=True)
class ProjectFileRow:
    """`content`: the file's keys as JSON; empty if there is no file, or it has problems."""

    content: str = ""
    problems: tuple[FileProblem, ...] = ()
    read_at: datetime | None = None


def get(tx: Transaction, project_id: int, at: str) -> ProjectFileRow | None:
    """None if it was not read there."""
    row = tx.one("SELECT * FROM project_files WHERE project_id = ? AND at = ?", (project_id, at))
    if row is None:
        return None
    problems = tuple(FileProblem(*one) for one in json.loads(row["problems"]))
    return ProjectFileRow(row["content"], problems, from_us(row["read_at"]))


def put(tx: Transaction, project_id: int, at: str, file: ProjectFileRow) -> None:
    problems = [[one.line, one.column, one.text] for one in file.problems]
    values: dict[str, Value] = {
        "project_id": project_id,
        "at": at,
        "content": file.content,
        "problems": dump_json(problems),
        "read_at": tx.now_us,
    }
    tx.upsert("project_files", ("project_id", "at"), values)


def forget(tx: Transaction, older_than: timedelta) -> int:
    """Delete what was read so long ago, unless it is of an open merge request's head or of a live sandbox."""
    return tx.changed(
        "DELETE FROM project_files WHERE read_at < ?"
        " AND NOT EXISTS (SELECT 1 FROM merge_requests m WHERE m.project_id = project_files.project_id"
        " AND m.head_sha = project_files.at AND m.state NOT IN ('closed', 'merged'))"
        " AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.project_id = project_files.project_id"
        " AND s.sha = project_files.at AND s.state <> 'ended')",
        (to_us(tx.now - older_than),),
    )
