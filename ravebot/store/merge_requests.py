"""Merge requests as GitLab last reported them, with the status note's id and the commit approved for a fork."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace

from ravebot.clock import to_us
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, Person
from ravebot.store.database import Transaction, dump_json
from ravebot.store.rows import dump, load

_MAX_IID = 2**63 - 1  # SQLite's largest integer


def get(tx: Transaction, ref: MergeRequestRef) -> MergeRequest | None:
    row = tx.one("SELECT * FROM merge_requests WHERE project_id = ? AND iid = ?", (ref.project_id, ref.iid))
    return _merge_request(row) if row else None


def find(tx: Transaction, project_path: str, iid: int) -> MergeRequest | None:
    """Find a merge request by the reference that people write: `group/app!42`.

    A path belongs to the project that was last seen there: after a move, another project may take it.
    """
    if iid > _MAX_IID:
        return None
    row = tx.one(
        "SELECT * FROM merge_requests WHERE project_path = ? AND iid = ? AND project_id ="
        " (SELECT project_id FROM merge_requests WHERE project_path = ? ORDER BY updated_at DESC LIMIT 1)",
        (project_path, iid, project_path),
    )
    return _merge_request(row) if row else None


def project_paths(tx: Transaction) -> tuple[str, ...]:
    """Every project with a stored merge request."""
    rows = tx.all("SELECT DISTINCT project_path FROM merge_requests ORDER BY project_path")
    return tuple(row["project_path"] for row in rows)


def opened(tx: Transaction) -> tuple[MergeRequest, ...]:
    """All that were not closed or merged when last reported; `locked` means that it is just being merged."""
    rows = tx.all("SELECT * FROM merge_requests WHERE state NOT IN ('closed', 'merged') ORDER BY project_id, iid")
    return tuple(_merge_request(row) for row in rows)


def observe(tx: Transaction, reported: MergeRequest) -> tuple[MergeRequest | None, MergeRequest]:
    """Store what GitLab reported; returns the stored merge request before (None: there was none) and after.

    A report that is older than the stored one (a late webhook) changes nothing.
    """
    before = get(tx, reported.ref)
    if before and before.updated_at and reported.updated_at and reported.updated_at < before.updated_at:
        return before, before
    after = reported
    if before:
        author = reported.author if reported.author.username else Person(reported.author.id, before.author.username)
        after = replace(
            reported,
            author=author,
            approved_sha=before.approved_sha,
            note_id=before.note_id,
            updated_at=reported.updated_at or before.updated_at,
        )
    if after != before:
        _save(tx, after)
    return before, after


def approve(tx: Transaction, ref: MergeRequestRef, sha: str) -> None:
    """Allow code from a fork to run, at exactly that commit."""
    tx.execute(
        "UPDATE merge_requests SET approved_sha = ? WHERE project_id = ? AND iid = ?", (sha, ref.project_id, ref.iid)
    )


def set_note(tx: Transaction, ref: MergeRequestRef, note_id: int | None) -> None:
    tx.execute(
        "UPDATE merge_requests SET note_id = ? WHERE project_id = ? AND iid = ?", (note_id, ref.project_id, ref.iid)
    )


def last_comment(tx: Transaction, ref: MergeRequestRef) -> int | None:
    """Id of the newest comment that polling has read; None before the first poll."""
    row = tx.one("SELECT last_comment FROM merge_requests WHERE project_id = ? AND iid = ?", (ref.project_id, ref.iid))
    return row["last_comment"] if row else None


def comments_are_read(tx: Transaction, mr: MergeRequest) -> bool:
    """Whether polling has read every comment that there was when GitLab last updated the merge request."""
    row = tx.one(
        "SELECT 1 FROM merge_requests WHERE project_id = ? AND iid = ? AND comments_as_of = ?",
        (mr.ref.project_id, mr.ref.iid, to_us(mr.updated_at) if mr.updated_at else None),
    )
    return row is not None


def set_comments_read(tx: Transaction, mr: MergeRequest) -> None:
    """Record that its comments are read, up to its present `updated_at`."""
    tx.execute(
        "UPDATE merge_requests SET comments_as_of = ? WHERE project_id = ? AND iid = ?",
        (to_us(mr.updated_at) if mr.updated_at else None, mr.ref.project_id, mr.ref.iid),
    )


def set_last_comment(tx: Transaction, ref: MergeRequestRef, note_id: int) -> None:
    tx.execute(
        "UPDATE merge_requests SET last_comment = ? WHERE project_id = ? AND iid = ?",
        (note_id, ref.project_id, ref.iid),
    )


def _save(tx: Transaction, mr: MergeRequest) -> None:
    values = dump(mr, without=("ref", "author", "people")) | {
        "project_id": mr.ref.project_id,
        "iid": mr.ref.iid,
        "author_id": mr.author.id,
        "author_username": mr.author.username,
        "people": dump_json([[person.id, person.username] for person in mr.people]),
    }
    tx.upsert("merge_requests", ("project_id", "iid"), values)


def _merge_request(row: sqlite3.Row) -> MergeRequest:
    return load(
        MergeRequest,
        row,
        ref=MergeRequestRef(row["project_id"], row["iid"]),
        author=Person(row["author_id"], row["author_username"]),
        people=tuple(Person(int(id_), str(name)) for id_, name in json.loads(row["people"])),
    )
