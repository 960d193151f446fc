"""Approvals: the questions to people, their answers, and what came of them. Each of these steps has its event."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import datetime, timedelta

from ravebot.agents.model import AgentDoor, Approval, ApprovalId, ApprovalKind, ApprovalState, ConversationId, TurnId
from ravebot.clock import to_us
from ravebot.sandboxes.model import RAVEBOT, Actor, EventKind, MergeRequestRef, SandboxId
from ravebot.store import events, inbox
from ravebot.store.database import Transaction
from ravebot.store.rows import dump, load
from ravebot.store.signals import AGENTS, AGENTS_WAIT, APPROVALS

_APART = ("mr", "asked_by", "decided_by")


def add(
    tx: Transaction,
    kind: ApprovalKind,
    *,
    title: str,
    payload: str,
    payload_hash: str,
    asked_by: Actor,
    door: AgentDoor,
    place: str,
    thread: str,
    within: timedelta,
    mr: MergeRequestRef | None = None,
    sandbox_id: SandboxId | None = None,
    turn_id: TurnId | None = None,
    conversation_id: ConversationId | None = None,
    head_sha: str = "",
    only_by: str = "",
) -> Approval:
    """A new open question."""
    row_id = tx.execute(
        "INSERT INTO approvals (kind, state, title, payload, payload_hash, asked_kind, asked_by, door, place, thread,"
        " created_at, expires_at, salt, project_id, iid, sandbox_id, turn_id, conversation_id, head_sha, only_by,"
        " event_id, outcome, tries) VALUES (?, 'open', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, lower(hex(randomblob(8))), ?, ?,"
        " ?, ?, ?, ?, ?, '', '', 0)",
        (
            *(kind, title, payload, payload_hash, asked_by.kind, asked_by.name, door, place, thread),
            *(tx.now_us, to_us(tx.now + within), mr.project_id if mr else None, mr.iid if mr else None),
            *(sandbox_id, turn_id, conversation_id, head_sha, only_by),
        ),
    )
    found = get(tx, ApprovalId(row_id))
    assert found
    _log(tx, EventKind.APPROVAL_ASKED, found, asked_by, {})
    _wake(tx)
    return found


def get(tx: Transaction, approval_id: ApprovalId) -> Approval | None:
    if not -(2**63) <= approval_id < 2**63:  # of a number that a person wrote, SQLite takes only these
        return None
    return _approval(tx.one("SELECT * FROM approvals WHERE id = ?", (approval_id,)))


def of_event(tx: Transaction, place: str, event_id: str) -> Approval | None:
    """The question that a message of ours shows."""
    return _approval(tx.one("SELECT * FROM approvals WHERE place = ? AND event_id = ?", (place, event_id)))


def save(tx: Transaction, changed: Approval) -> None:
    """Write the whole row; `changed` must have been read in this same transaction."""
    mr, decided = changed.mr, changed.decided_by
    values = dump(changed, without=_APART) | {
        "project_id": mr.project_id if mr else None,
        "iid": mr.iid if mr else None,
        "asked_kind": changed.asked_by.kind,
        "asked_by": changed.asked_by.name,
        "decided_kind": decided.kind if decided else None,
        "decided_by": decided.name if decided else None,
    }
    tx.upsert("approvals", ("id",), values)
    _wake(tx)


def shown_by(tx: Transaction, approval: Approval, place: str, event_id: str) -> None:
    """Record which event shows it; `approval` must have been read in this same transaction. Who reacted before is
    heard now."""
    save(tx, replace(approval, place=place, event_id=event_id))
    inbox.hasten_early(tx, event_id)


def are_open(tx: Transaction) -> tuple[Approval, ...]:
    """The open questions, the oldest first."""
    return _all(tx.all("SELECT * FROM approvals WHERE state = 'open' ORDER BY id"))


def undone(tx: Transaction) -> tuple[Approval, ...]:
    """Those that were decided, and whose consequence is not recorded yet, the oldest first."""
    return _all(tx.all("SELECT * FROM approvals WHERE state <> 'open' AND done_at IS NULL ORDER BY id"))


def of_turn(tx: Transaction, turn_id: TurnId) -> tuple[Approval, ...]:
    return _all(tx.all("SELECT * FROM approvals WHERE turn_id = ? ORDER BY id", (turn_id,)))


def of_merge_request(tx: Transaction, ref: MergeRequestRef, kind: ApprovalKind) -> tuple[Approval, ...]:
    """Every question of that kind about a merge request, the oldest first."""
    rows = tx.all(
        "SELECT * FROM approvals WHERE project_id = ? AND iid = ? AND kind = ? ORDER BY id",
        (ref.project_id, ref.iid, kind),
    )
    return _all(rows)


def asked_since(tx: Transaction, moment: datetime, kind: ApprovalKind, project_id: int, iid: int | None = None) -> int:
    """How many questions of that kind about a project, or about one merge request, were asked since that moment."""
    row = tx.one(
        "SELECT COUNT(*) AS n FROM approvals WHERE project_id = ? AND kind = ? AND created_at >= ?"
        " AND (? IS NULL OR iid = ?)",
        (project_id, kind, to_us(moment), iid, iid),
    )
    assert row
    return int(row["n"])


def newest(tx: Transaction, limit: int) -> tuple[Approval, ...]:
    """The newest of all, the newest first."""
    return _all(tx.all("SELECT * FROM approvals ORDER BY id DESC LIMIT ?", (limit,)))


def decide(tx: Transaction, approval: Approval, state: ApprovalState, by: Actor, why: str = "") -> bool:
    """Record the first valid answer, or that it is not asked any more (`why`); False when there was one before.

    The caller has checked the right. After a no, an agent has to be told and a kept diff dropped: all else is done.
    """
    decided = bool(
        tx.changed(
            "UPDATE approvals SET state = ?, decided_at = ?, decided_kind = ?, decided_by = ?, outcome = ?,"
            " done_at = CASE WHEN ? = 'granted' OR kind IN ('tool', 'commit') THEN NULL ELSE ? END"
            " WHERE id = ? AND state = 'open'",
            (state, tx.now_us, by.kind, by.name, why, state, tx.now_us, approval.id),
        )
    )
    if decided:
        _log(tx, EventKind.APPROVAL_DECIDED, approval, by, {"state": state.value, "why": why})
        tx.log("approval decided", approval=approval.id, kind=approval.kind.value, state=state.value, by=str(by))
        _wake(tx)
    return decided


def done(tx: Transaction, approval: Approval, outcome: str) -> bool:
    """Record what came of a decided one; False when that was recorded before."""
    did = bool(
        tx.changed(
            "UPDATE approvals SET done_at = ?, outcome = ? WHERE id = ? AND state <> 'open' AND done_at IS NULL",
            (tx.now_us, outcome, approval.id),
        )
    )
    if did:
        _log(tx, EventKind.APPROVAL_DONE, approval, RAVEBOT, {"outcome": outcome})
        _wake(tx)
    return did


def _wake(tx: Transaction) -> None:
    """Who runs the agents tells them what was answered; `carryout` does the rest."""
    tx.wake(AGENTS)
    tx.wake(APPROVALS)
    tx.wake(AGENTS_WAIT)


def _log(tx: Transaction, kind: EventKind, approval: Approval, by: Actor, data: dict[str, object]) -> None:
    """The event; what is asked is in it by its hash only."""
    about = {"approval": approval.id, "kind": approval.kind.value, "hash": approval.payload_hash}
    if approval.head_sha:
        about["sha"] = approval.head_sha
    events.append(tx, kind, by, mr=approval.mr, sandbox_id=approval.sandbox_id, data={**about, **data})


def _all(rows: list[sqlite3.Row]) -> tuple[Approval, ...]:
    return tuple(filter(None, map(_approval, rows)))


def _approval(row: sqlite3.Row | None) -> Approval | None:
    if row is None:
        return None
    mr = MergeRequestRef(row["project_id"], row["iid"]) if row["project_id"] is not None else None
    asked = Actor(row["asked_kind"], row["asked_by"])
    decided = Actor(row["decided_kind"], row["decided_by"]) if row["decided_by"] is not None else None
    return load(Approval, row, mr=mr, asked_by=asked, decided_by=decided)
