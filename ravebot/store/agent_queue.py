"""Turns that wait, the processes and questions they depend on, and the turns that were given up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ravebot.agents.model import (
    Approval,
    ApprovalId,
    ApprovalKind,
    ConversationId,
    Process,
    Turn,
    TurnState,
)
from ravebot.store import approvals, conversations
from ravebot.store.conversations import OPEN
from ravebot.store.database import Transaction
from ravebot.store.rows import load

DEAD = (
    "FROM agent_turns t WHERE t.state IN ('dead', 'failed', 'uncertain') AND NOT EXISTS"
    " (SELECT 1 FROM agent_turns later WHERE later.message_id = t.message_id AND later.attempt > t.attempt)"
)
"""The dead letters; the states are those of the index `agent_turns_given_up`, so that SQLite uses it."""


def live_processes(tx: Transaction) -> tuple[Process, ...]:
    """Every process that is not known to have ended."""
    return tuple(load(Process, row) for row in tx.all("SELECT * FROM agent_processes WHERE ended_at IS NULL"))


def given_elsewhere(tx: Transaction) -> tuple[Turn, ...]:
    """The turns that agents have which work elsewhere."""
    rows = tx.all(f"SELECT * FROM agent_turns WHERE given_at IS NOT NULL AND process_id IS NULL AND {OPEN}")  # noqa: S608 - a constant
    return tuple(load(Turn, row) for row in rows)


@dataclass(frozen=True)
class Waiters:
    """The turns of a conversation that no agent was given: how many are in which state, and since when the oldest."""

    conversation_id: ConversationId
    accepted: int
    queued: int
    since: datetime


def waiters(tx: Transaction) -> tuple[Waiters, ...]:
    """Of every conversation in which turns wait; reads no row of theirs."""
    rows = tx.all(
        f"""
        SELECT conversation_id, SUM(state = 'accepted') AS accepted, SUM(state = 'queued') AS queued,
               MIN(created_at) AS since
          FROM agent_turns WHERE given_at IS NULL AND {OPEN} GROUP BY conversation_id ORDER BY MIN(id)
        """  # noqa: S608 - a constant
    )
    return tuple(load(Waiters, row) for row in rows)


def count_open(tx: Transaction, conversation_id: ConversationId) -> int:
    """How many turns of a conversation are not over."""
    row = tx.one(
        f"SELECT COUNT(*) AS n FROM agent_turns WHERE conversation_id = ? AND {OPEN}",  # noqa: S608 - a constant
        (conversation_id,),
    )
    assert row
    return int(row["n"])


def start_asked(tx: Transaction, conversation_id: ConversationId) -> Approval | None:
    """The last question in a conversation whether its sandbox is to be started."""
    row = tx.one(
        "SELECT id FROM approvals WHERE conversation_id = ? AND kind = ? ORDER BY id DESC LIMIT 1",
        (conversation_id, ApprovalKind.START),
    )
    return approvals.get(tx, ApprovalId(row["id"])) if row else None


def put_behind(tx: Transaction, first: Turn) -> None:
    """Number the turns again that wait in a conversation, so that they come after `first`, in their order.

    Nothing outside knows the number of a turn that no agent was given and that is not over.
    """
    for waiting in conversations.open_turns(tx, first.conversation_id):
        if waiting.id >= first.id or waiting.is_given:
            continue
        row = tx.one("SELECT MAX(id) + 1 AS next FROM agent_turns")
        assert row
        tx.execute("DELETE FROM shown_turns WHERE turn_id = ?", (waiting.id,))  # a copy of what is not shown
        tx.execute("UPDATE agent_turns SET id = ? WHERE id = ?", (row["next"], waiting.id))
        tx.execute("UPDATE approvals SET turn_id = ? WHERE turn_id = ?", (row["next"], waiting.id))


def last_turn(tx: Transaction, conversation_id: ConversationId) -> Turn | None:
    """The conversation's newest turn."""
    row = tx.one("SELECT * FROM agent_turns WHERE conversation_id = ? ORDER BY id DESC LIMIT 1", (conversation_id,))
    return load(Turn, row) if row else None


def dead_letters(tx: Transaction, limit: int) -> tuple[Turn, ...]:
    """Turns whose message was not worked through, and that nobody had sent again or dropped; the newest first."""
    rows = tx.all(f"SELECT t.* {DEAD} ORDER BY t.id DESC LIMIT ?", (limit,))
    return tuple(load(Turn, row) for row in rows)


def count_states(tx: Transaction) -> dict[TurnState, int]:
    """How many turns are in each state, of those that are not over and of the dead letters."""
    unfinished = tx.all(f"SELECT state, COUNT(*) AS n FROM agent_turns WHERE {OPEN} GROUP BY state")  # noqa: S608 - a constant
    given_up = tx.all(f"SELECT t.state, COUNT(*) AS n {DEAD} GROUP BY t.state")
    return {TurnState(row["state"]): row["n"] for row in (*unfinished, *given_up)}


def has_message(tx: Transaction, conversation_id: ConversationId, key: str) -> bool:
    """Whether a message with that key was taken."""
    sql = "SELECT 1 FROM agent_messages WHERE conversation_id = ? AND key = ?"
    return tx.one(sql, (conversation_id, key)) is not None
