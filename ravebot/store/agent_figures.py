"""What the limits of agents are counted by: messages by day, the talk of a thread, how long agents worked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ravebot.agents.model import AGENT, AgentDoor, AgentMessage
from ravebot.clock import from_us, to_us
from ravebot.sandboxes.model import Actor
from ravebot.store import conversations
from ravebot.store.database import Transaction


def count_message(tx: Transaction, day: str, *spenders: Actor) -> None:
    """One more message on that day, for each of them."""
    for who in spenders:
        tx.execute(
            "INSERT INTO agent_budgets (day, kind, name, messages) VALUES (?, ?, ?, 1)"
            " ON CONFLICT (day, kind, name) DO UPDATE SET messages = messages + 1",
            (day, who.kind, who.name),
        )


def messages_on(tx: Transaction, day: str, who: Actor) -> int:
    """How many messages an agent was given that day, or a person had given to agents."""
    row = tx.one(
        "SELECT messages FROM agent_budgets WHERE day = ? AND kind = ? AND name = ?", (day, who.kind, who.name)
    )
    return int(row["messages"]) if row else 0


@dataclass(frozen=True)
class WorkedTurn:
    """When an agent worked on a message that goes back to `root`; `ended_at`: None while it does."""

    agent: str
    root: Actor
    given_at: datetime
    ended_at: datetime | None


def worked_turns(tx: Transaction, begins: datetime, ends: datetime) -> tuple[WorkedTurn, ...]:
    """The turns that ran in that time, or run."""
    rows = tx.all(
        "SELECT c.agent, m.root_kind, m.root, t.given_at, t.ended_at FROM agent_turns t"
        " JOIN conversations c ON c.id = t.conversation_id JOIN agent_messages m ON m.id = t.message_id"
        " WHERE t.given_at < ? AND (t.ended_at IS NULL OR t.ended_at > ?)",
        (to_us(ends), to_us(begins)),
    )
    return tuple(
        WorkedTurn(
            row["agent"],
            Actor(row["root_kind"], row["root"]),
            from_us(row["given_at"]),
            from_us(row["ended_at"]) if row["ended_at"] is not None else None,
        )
        for row in rows
    )


def newest_in_thread(tx: Transaction, door: AgentDoor, place: str, thread: str, limit: int) -> tuple[AgentMessage, ...]:
    """The newest messages of a thread to whichever agents, the newest first."""
    rows = tx.all(
        "SELECT m.id FROM agent_messages m JOIN conversations c ON c.id = m.conversation_id"
        " WHERE c.door = ? AND c.place = ? AND c.thread = ? ORDER BY m.id DESC LIMIT ?",
        (door, place, thread, limit),
    )
    return tuple(conversations.message(tx, row["id"]) for row in rows)


def passed_on(tx: Transaction, by: str, to: str, within: timedelta) -> int:
    """How many messages one agent wrote to another in that time before now."""
    row = tx.one(
        "SELECT COUNT(*) AS n FROM agent_messages m JOIN conversations c ON c.id = m.conversation_id"
        " WHERE m.said_at > ? AND m.said_at <= ? AND m.author_kind = ? AND m.author = ? AND c.agent = ?",
        (to_us(tx.now - within), tx.now_us, AGENT, by, to),
    )
    assert row
    return int(row["n"])


def forget_days(tx: Transaction, before: str) -> None:
    """Drop the figures of persons on the days before that one; those of agents stay, for the account of their use."""
    tx.execute("DELETE FROM agent_budgets WHERE day < ? AND kind <> ?", (before, AGENT))
