"""Forgets what people and agents said, and what only describes how it was shown. Ids, states and events stay.

What is not delivered yet stays as well: a message is made from it when it is sent.
"""

from __future__ import annotations

from datetime import timedelta

from ravebot.clock import to_us
from ravebot.store.conversations import OPEN
from ravebot.store.database import Transaction

_UNSENT = "SELECT json_extract(body, '$.{0}') FROM outbox WHERE delivered_at IS NULL"
_SENT = "id NOT IN (" + _UNSENT + " AND json_extract(body, '$.{0}') IS NOT NULL)"
_TURN_SENT, _APPROVAL_SENT = _SENT.format("turn"), _SENT.format("approval")
_STEPS = (
    f"""
    UPDATE agent_messages SET text = '' WHERE id IN
    (SELECT m.id FROM agent_messages m WHERE m.said_at < ? AND m.text <> '' AND NOT EXISTS
     (SELECT 1 FROM agent_turns t WHERE t.message_id = m.id AND t.{OPEN}) LIMIT ?)
    """,  # noqa: S608 - a constant
    "UPDATE agent_turns SET answer = '', status = '' WHERE id IN (SELECT id FROM agent_turns WHERE ended_at < ?"  # noqa: S608 - constants
    f" AND (answer <> '' OR status <> '') AND {_TURN_SENT} LIMIT ?)",
    "UPDATE approvals SET payload = '' WHERE id IN"  # noqa: S608 - constants; its hash stays
    f" (SELECT id FROM approvals WHERE done_at < ? AND payload <> '' AND {_APPROVAL_SENT} LIMIT ?)",
    "DELETE FROM shown_turns WHERE turn_id IN (SELECT s.turn_id FROM shown_turns s JOIN agent_turns t"  # noqa: S608 - constants
    f" ON t.id = s.turn_id WHERE t.ended_at < ? AND t.{_TURN_SENT} LIMIT ?)",
    "DELETE FROM deliveries WHERE id IN (SELECT d.id FROM deliveries d JOIN agent_turns t ON t.id = d.turn_id"
    " WHERE t.ended_at < ? AND d.settled_at IS NOT NULL LIMIT ?)",
    "DELETE FROM agent_processes WHERE id IN (SELECT id FROM agent_processes WHERE ended_at < ? LIMIT ?)",
    "DELETE FROM model_uses WHERE id IN (SELECT id FROM model_uses WHERE began_at < ? LIMIT ?)",  # their sums stay
    "DELETE FROM model_remarks WHERE turn_id IN (SELECT turn_id FROM model_remarks WHERE said_at < ? LIMIT ?)",
)


def forget(tx: Transaction, older_than: timedelta, most: int) -> bool:
    """Forget up to `most` rows of each kind that are older than that; whether there may be more."""
    before = to_us(tx.now - older_than)
    return max(tx.changed(step, (before, most)) for step in _STEPS) >= most
