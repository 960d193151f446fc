"""A turn's end, and what is recorded of a turn: the row, the event, and what doors show."""

from __future__ import annotations

from dataclasses import replace

from ravebot.agents.model import Conversation, Turn, TurnState
from ravebot.agents.telling import ConversationTelling
from ravebot.sandboxes.model import RAVEBOT, Actor, EventKind
from ravebot.store import agent_work, conversations, events
from ravebot.store.database import Transaction

LONGEST_WHY = 500


def end_turn(
    tx: Transaction, telling: ConversationTelling, turn: Turn, state: TurnState, why: str, by: Actor = RAVEBOT
) -> Turn:
    """End a turn, which must have been read in this transaction and not be over; returns it as it is now."""
    ended = replace(turn, state=state, why=why[:LONGEST_WHY], ended_at=tx.now, status="", next_try_at=None)
    conversations.save_turn(tx, ended)
    record(tx, EventKind.AGENT_TURN_ENDED, by, ended, {"state": state.value})
    for approval in agent_work.settle_questions(tx, turn.id):
        telling.question(tx, approval)
    telling.answer(tx, ended)
    telling.receipt(tx, ended)
    log_turn(tx, "agent's turn ended", ended, state=state.value, by=str(by))
    return ended


def log_turn(tx: Transaction, line: str, turn: Turn, **facts: object) -> None:
    """A line in the log about a turn: names and ids, never what was said."""
    conversation = conversations.get(tx, turn.conversation_id)
    assert conversation
    mr = f"{conversation.mr.project_id}!{conversation.mr.iid}" if conversation.mr else None
    tx.log(line, agent=conversation.agent, conversation=conversation.id, turn=turn.id, mr=mr, **facts)


def record(tx: Transaction, kind: EventKind, by: Actor, turn: Turn, data: dict[str, object] | None = None) -> None:
    """Log what happened to a turn: by its ids, never what was said, which is not kept for good."""
    conversation = conversations.get(tx, turn.conversation_id)
    assert conversation
    about = {"message": turn.message_id, "attempt": turn.attempt, **(data or {})}
    record_conversation(tx, kind, by, conversation, about)


def record_conversation(
    tx: Transaction, kind: EventKind, by: Actor, conversation: Conversation, data: dict[str, object]
) -> None:
    """Log what happened in a conversation."""
    about: dict[str, object] = {"agent": conversation.agent, "conversation": conversation.id, **data}
    events.append(tx, kind, by, mr=conversation.mr, data=about)
