"""What there is to do for agents: the first unfinished turn of each conversation, and what was decided for it.

Read at every wake-up: a look-up costs a few steps in an index for each conversation, however many messages it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ravebot.agents.model import (
    Approval,
    ApprovalKind,
    ApprovalState,
    ConversationId,
    Turn,
    TurnId,
    TurnState,
)
from ravebot.clock import from_us
from ravebot.sandboxes.model import RAVEBOT, Actor, SandboxId
from ravebot.store import approvals
from ravebot.store.conversations import OPEN
from ravebot.store.database import Transaction
from ravebot.store.rows import load

HEADS = f"""
WITH RECURSIVE
    walk (conversation_id) AS (
        SELECT MIN(conversation_id) FROM agent_turns WHERE {OPEN}
        UNION ALL
        SELECT (SELECT MIN(t.conversation_id) FROM agent_turns t WHERE t.conversation_id > walk.conversation_id AND t.{OPEN})
        FROM walk WHERE walk.conversation_id IS NOT NULL
    )
SELECT t.id, t.conversation_id, t.state, t.created_at, t.given_at, t.cancelled_by, t.next_try_at, t.tries,
       c.paused <> '' OR EXISTS (SELECT 1 FROM paused_agents p WHERE p.agent = c.agent) AS paused,
       c.agent,
       (SELECT COUNT(*) FROM approvals a
         WHERE a.turn_id = t.id AND a.kind = 'tool' AND a.state <> 'open' AND a.done_at IS NULL) AS decided
  FROM walk
  JOIN agent_turns t
    ON t.id = (SELECT MIN(f.id) FROM agent_turns f WHERE f.conversation_id = walk.conversation_id AND f.{OPEN})
  JOIN conversations c ON c.id = t.conversation_id
"""  # noqa: S608, E501 - constants


@dataclass(frozen=True)
class AgentWork:
    """A conversation's first unfinished turn, as far as it matters for whether something can be done now.

    `given`: the agent may have it. `paused`: nothing new is given to the agent. `decided`: answers of people that the
    agent does not have yet.
    """

    conversation_id: ConversationId
    agent: str
    turn_id: TurnId
    state: TurnState
    given: bool
    cancelled: bool
    paused: bool
    decided: int
    tries: int
    next_try_at: datetime | None


def heads(tx: Transaction) -> tuple[AgentWork, ...]:
    """The first unfinished turn of every conversation that has one."""
    return tuple(
        AgentWork(
            row["conversation_id"],
            row["agent"],
            row["id"],
            TurnState(row["state"]),
            row["given_at"] is not None,
            bool(row["cancelled_by"]),
            bool(row["paused"]),
            row["decided"],
            row["tries"],
            from_us(row["next_try_at"]) if row["next_try_at"] is not None else None,
        )
        for row in tx.all(HEADS)
    )


def undelivered_since(tx: Transaction) -> datetime | None:
    """When the oldest turn was made that nobody but ravebot holds back: it is the next of its conversation, its agent
    is not paused, and neither a sandbox nor a person's yes is waited for."""
    waiting = [
        from_us(row["created_at"])
        for row in tx.all(HEADS)
        if row["state"] == TurnState.QUEUED and row["given_at"] is None and not row["paused"]
    ]
    return min(waiting, default=None)


@dataclass(frozen=True)
class TurnUnderWay:
    """A turn that an agent's live process in a sandbox has; `root`: the first person in its chain."""

    turn_id: TurnId
    conversation_id: ConversationId
    agent: str
    root: Actor
    given_at: datetime | None
    deadline: datetime | None


def running_in(tx: Transaction, sandbox_id: SandboxId) -> tuple[TurnUnderWay, ...]:
    """The turns that run in that sandbox, the one that was given last first.

    A turn counts from the moment at which its prompt may have been written, because the agent may be faster than its
    acknowledgement; it ends with its process.
    """
    rows = tx.all(
        f"""
        SELECT t.id, t.conversation_id, c.agent, m.root_kind, m.root, t.given_at, t.deadline
          FROM agent_processes p
          JOIN agent_turns t ON t.conversation_id = p.conversation_id AND t.process_id = p.id AND t.{OPEN}
          JOIN conversations c ON c.id = t.conversation_id JOIN agent_messages m ON m.id = t.message_id
         WHERE p.sandbox_id = ? AND p.ended_at IS NULL ORDER BY t.given_at DESC, t.id DESC
        """,  # noqa: S608 - a constant
        (sandbox_id,),
    )
    return tuple(
        TurnUnderWay(
            row["id"],
            row["conversation_id"],
            row["agent"],
            Actor(row["root_kind"], row["root"]),
            from_us(row["given_at"]) if row["given_at"] is not None else None,
            from_us(row["deadline"]) if row["deadline"] is not None else None,
        )
        for row in rows
    )


def first_turn(tx: Transaction, conversation_id: ConversationId) -> Turn | None:
    """The first unfinished turn of one conversation."""
    row = tx.one(
        f"SELECT * FROM agent_turns WHERE conversation_id = ? AND {OPEN} ORDER BY id LIMIT 1",  # noqa: S608 - a constant
        (conversation_id,),
    )
    return load(Turn, row) if row else None


def had_session(tx: Transaction, conversation_id: ConversationId) -> bool:
    """Whether an agent ever had a session for that conversation."""
    sql = "SELECT 1 FROM agent_processes WHERE conversation_id = ? AND session <> '' LIMIT 1"
    return tx.one(sql, (conversation_id,)) is not None


def to_answer(tx: Transaction, turn_id: TurnId) -> tuple[Approval, ...]:
    """The agent's questions in a turn that were decided, and whose answer it does not have yet."""
    return tuple(
        approval
        for approval in approvals.of_turn(tx, turn_id)
        if approval.kind is ApprovalKind.TOOL and approval.state is not ApprovalState.OPEN and approval.done_at is None
    )


def count_asked(tx: Transaction, turn_id: TurnId) -> int:
    """How many questions of the agent's in that turn are open."""
    row = tx.one("SELECT COUNT(*) AS n FROM approvals WHERE turn_id = ? AND state = 'open'", (turn_id,))
    assert row
    return int(row["n"])


def is_asked(tx: Transaction, turn_id: TurnId) -> bool:
    """Whether a question of the agent's in that turn is open."""
    return count_asked(tx, turn_id) > 0


def withdraw(tx: Transaction, turn_id: TurnId) -> tuple[Approval, ...]:
    """Ask nothing more for a turn; returns the questions that were open."""
    still_open = [
        approval for approval in approvals.of_turn(tx, turn_id)
        if approval.kind is ApprovalKind.TOOL and approval.state is ApprovalState.OPEN
    ]  # fmt: skip
    for approval in still_open:
        approvals.decide(tx, approval, ApprovalState.WITHDRAWN, RAVEBOT, "the agent's turn has ended")
    return tuple(still_open)


def settle_questions(tx: Transaction, turn_id: TurnId) -> tuple[Approval, ...]:
    """A turn has ended: ask nothing more for it, and tell its agent nothing; returns the questions that were open."""
    withdrawn = withdraw(tx, turn_id)
    for approval in to_answer(tx, turn_id):
        approvals.done(tx, approval, approval.outcome or "its turn had ended")
    return withdrawn
