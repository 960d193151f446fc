"""Looks up, right before a message is given to an agent, whether it still may be.

For a message that is given again, too: between two tries, or two takers, hours may pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from ravebot.agents.model import Conversation, Turn
from ravebot.commands.permissions import Decision
from ravebot.errors import Unavailable
from ravebot.store import conversations, deliveries
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()
_ASK_AGAIN = timedelta(seconds=30)

StillMay = Callable[[Conversation, Turn], Awaitable[Decision]]
"""Whether everybody in the turn's chain may still do that, now. Raises Unavailable while that can't be known."""
GiveUp = Callable[[Transaction, Turn, str], None]
"""Ends a turn that its agent does not get, with why."""


@dataclass(frozen=True)
class StillAllowed:
    """`may_give`: None for whatever was taken from people."""

    database: Database
    give_up: GiveUp
    may_give: StillMay | None = None

    async def ask(self, turn: Turn) -> bool:
        """A refusal gives the turn up; while GitLab can't be asked, it waits, however long that takes."""
        if self.may_give is None:
            return True
        conversation = await self.database.read(lambda tx: conversations.get(tx, turn.conversation_id))
        assert conversation
        try:
            decision = await self.may_give(conversation, turn)
        except Unavailable as error:
            log.warning("agent's turn waits for GitLab", conversation=conversation.id, turn=turn.id, error=str(error))
            await self.database.write(lambda tx: _wait(tx, turn))
            return False
        if not decision.allowed:
            await self.database.write(lambda tx: self._refused(tx, turn, decision.refusal))
        return decision.allowed

    def _refused(self, tx: Transaction, turn: Turn, why: str) -> None:
        stored = conversations.turn(tx, turn.id)
        if stored is not None and not stored.state.is_over:
            self.give_up(tx, stored, why)


def _wait(tx: Transaction, turn: Turn) -> None:
    """What was given already waits by itself, so that its cancellation does not."""
    stored, delivery = conversations.turn(tx, turn.id), deliveries.of_turn(tx, turn.id)
    if delivery is not None and delivery.settled_at is None:
        deliveries.save(tx, replace(delivery, next_try_at=tx.now + _ASK_AGAIN))
    elif stored is not None and not stored.is_given and not stored.state.is_over:
        conversations.save_turn(tx, replace(stored, next_try_at=tx.now + _ASK_AGAIN))
