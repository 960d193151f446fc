"""What the shell shows of an agent: its newest turns, and its conversations that are paused."""

from __future__ import annotations

from ravebot.agents.model import Conversation, ConversationId, Turn, TurnId
from ravebot.store import conversations
from ravebot.store.database import Transaction


def newest_turns(tx: Transaction, agent: str, limit: int) -> tuple[Turn, ...]:
    """An agent's newest turns, the newest first."""
    rows = tx.all(
        "SELECT t.id FROM agent_turns t JOIN conversations c ON c.id = t.conversation_id WHERE c.agent = ?"
        " ORDER BY t.id DESC LIMIT ?",
        (agent, limit),
    )
    return tuple(turn for row in rows if (turn := conversations.turn(tx, TurnId(row["id"]))))


def paused_conversations(tx: Transaction, agent: str) -> tuple[Conversation, ...]:
    """An agent's conversations that are paused, the newest first; at most a hundred."""
    rows = tx.all("SELECT id FROM conversations WHERE agent = ? AND paused <> '' ORDER BY id DESC LIMIT 100", (agent,))
    return tuple(one for row in rows if (one := conversations.get(tx, ConversationId(row["id"]))))
