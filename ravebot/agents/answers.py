"""What agents that work elsewhere do by the API: take a message from the inbox, acknowledge it, answer it.

Whoever calls has checked that the token is that agent's. What an agent says is untrusted, as everywhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import structlog

from ravebot.agents import registry
from ravebot.agents.elsewhere import ElsewhereTurns
from ravebot.agents.model import AgentDelivery, Channel, Conversation, DeliveryKind, Turn, TurnState
from ravebot.agents.wording import ended
from ravebot.commands.permissions import Decision
from ravebot.config.model import AgentConfig, Config
from ravebot.errors import Refused, Unavailable
from ravebot.store import conversations, deliveries
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import inbox_of

log = structlog.get_logger()

LEASE = timedelta(seconds=60)
"""How long a message that was taken is nobody else's; then it is given again, unless it was acknowledged."""
LONGEST_WAIT = timedelta(seconds=25)
LONGEST_PIECE = 60_000
"""Characters of one answer; longer ones come in pieces."""
_ASK_AGAIN = timedelta(seconds=30)
_CANDIDATES = 20
_LOOK_SECONDS = 2.0

MayGive = Callable[[Conversation, Turn], Awaitable[Decision]]
"""Whether a turn may still be given, looked up now. Raises Unavailable while that can't be known: it waits."""


class AnswerEnd(StrEnum):
    """How an agent says that a message is answered."""

    DONE = "done"
    FAILED = "failed"


class AnswerRefusal(StrEnum):
    """Why an agent's answer is not taken."""

    UNKNOWN = "unknown"  # no such message, or another agent's
    OVER = "over"  # it was answered, or its time is over, or it was given up
    CANCELLED = "cancelled"
    TOO_LONG = "too long"


@dataclass(frozen=True)
class TakenMessage:
    """A message that an agent took. `body`: what it is given, as JSON; `again`: it was taken before, by somebody who
    did not acknowledge it within the lease."""

    id: str
    body: dict[str, Any]
    leased_until: datetime
    again: bool


@dataclass(frozen=True)
class AnswerTaken:
    """What came of an acknowledgement or an answer. `message`: for the agent; `said`: how many characters of its
    answer ravebot has; `state`: the turn's."""

    message: str
    state: str = ""
    said: int = 0
    refused: AnswerRefusal | None = None

    @property
    def accepted(self) -> bool:
        return self.refused is None


def _nothing(tx: Transaction, taken: TakenMessage) -> None:
    del tx, taken


@dataclass(frozen=True)
class AgentAnswers:
    """`may_give`: None for whatever was taken from people."""

    config: Config
    database: Database
    turns: ElsewhereTurns
    may_give: MayGive | None = None

    # Taking messages

    async def take(
        self,
        agent: str,
        wait: timedelta = timedelta(0),
        also: Callable[[Transaction, TakenMessage], None] = _nothing,
    ) -> TakenMessage | None:
        """The oldest message that waits for that agent; None when none came in that time.

        `also` runs in the transaction that takes it. Raises Refused if the agent has no inbox.
        """
        known = registry.find(self.config, agent)
        if known is None or not known.inbox:
            raise Refused(f"{agent} has no inbox: an admin of ravebot sets agents[].inbox of it to true.")
        if await self.database.read(lambda tx: deliveries.is_visit_due(tx, agent)):
            await self.database.write(lambda tx: deliveries.visit(tx, agent))
        loop = asyncio.get_running_loop()
        until = loop.time() + min(wait, LONGEST_WAIT).total_seconds()
        while True:
            taken = await self._take_one(known, also)
            left = until - loop.time()
            if taken is not None or left <= 0:
                return taken
            await self.database.signals.wait(inbox_of(agent), min(left, _LOOK_SECONDS))

    async def _take_one(
        self, agent: AgentConfig, also: Callable[[Transaction, TakenMessage], None]
    ) -> TakenMessage | None:
        for turn in await self.database.read(lambda tx: deliveries.to_take(tx, agent.name, LEASE, _CANDIDATES)):
            if not await self._may(turn):
                continue
            taken = await self.database.write(lambda tx, turn=turn: self._lease(tx, agent, turn, also), urgent=True)  # type: ignore[misc]
            if taken is not None:
                return taken
        return None

    async def _may(self, turn: Turn) -> bool:
        """Whether everybody in the turn's chain may still do that; a refusal gives it up."""
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
            await self.database.write(lambda tx: self._give_up(tx, turn, decision.refusal))
        return decision.allowed

    def _give_up(self, tx: Transaction, turn: Turn, why: str) -> None:
        stored = conversations.turn(tx, turn.id)
        if stored is not None and not stored.state.is_over:
            self.turns.give_up(tx, stored, why)

    def _lease(
        self, tx: Transaction, agent: AgentConfig, turn: Turn, also: Callable[[Transaction, TakenMessage], None]
    ) -> TakenMessage | None:
        """Take one, unless that changed meanwhile."""
        if turn.id not in (one.id for one in deliveries.to_take(tx, agent.name, LEASE, 10 * _CANDIDATES)):
            return None
        delivery = deliveries.of_turn(tx, turn.id) or self.turns.begin(tx, turn, agent, Channel.INBOX)
        if delivery is None:
            return None
        leased = replace(
            delivery, leased_until=tx.now + LEASE, tries=delivery.tries + 1, doubtful=True, next_try_at=None
        )
        deliveries.save(tx, leased)
        if delivery.tries == 0:
            self.turns.progress.accepted(tx, turn.id, TurnState.DELIVERED, agent.limits.turn)
        taken = TakenMessage(delivery.id, json.loads(delivery.body)["data"], tx.now + LEASE, delivery.tries > 0)
        also(tx, taken)
        return taken

    # Answers

    def ack(self, tx: Transaction, agent: str, delivery_id: str) -> AnswerTaken:
        """The agent has the message, and keeps it: it is not given again. Again, it changes nothing."""
        found = self._open(tx, agent, delivery_id)
        if isinstance(found, AnswerTaken):
            return found
        known, delivery, turn = found
        if delivery.settled_at is None:
            self.turns.accepted(tx, delivery, known.limits.turn)
        return self._taken(tx, turn, "It is yours: answer it until its time is over.")

    def answer(
        self,
        tx: Transaction,
        agent: str,
        delivery_id: str,
        text: str = "",
        status: str = "",
        end: AnswerEnd | None = None,
        why: str = "",
    ) -> AnswerTaken:
        """The agent says something more, or what it is doing, or that it is done; `why`: why it failed.

        A message from the inbox that was not acknowledged stays the agent's for another lease.
        """
        if len(text) > LONGEST_PIECE:
            return AnswerTaken(
                f"That is too long for one answer: send at most {LONGEST_PIECE:,} characters at a time.",
                refused=AnswerRefusal.TOO_LONG,
            )
        found = self._open(tx, agent, delivery_id)
        if isinstance(found, AnswerTaken):
            return found
        known, delivery, turn = found
        if delivery.settled_at is None:
            if delivery.channel is Channel.WEBHOOK:  # whoever answers has got it, whatever the webhook's answer was
                self.turns.accepted(tx, delivery, known.limits.turn)
            else:
                deliveries.save(tx, replace(delivery, leased_until=tx.now + LEASE))
        progress = self.turns.progress
        if text:
            stored = conversations.turn(tx, turn.id)
            if stored is not None and stored.status:
                conversations.save_turn(tx, replace(stored, status=""))
            progress.words(tx, turn.id, _clean(text))
        if status:
            progress.status(tx, turn.id, _clean(status))
        if end is AnswerEnd.DONE:
            self.turns.end(tx, turn, TurnState.DONE)
        elif end is AnswerEnd.FAILED:
            reason = " ".join(_clean(why).split()) or "it did not say why"
            self.turns.end(tx, turn, TurnState.FAILED, f"{agent} reports that it failed: {reason}")
        return self._taken(tx, turn, "It is taken." if end is None else "It is taken, and over.")

    def _open(
        self, tx: Transaction, agent: str, delivery_id: str
    ) -> tuple[AgentConfig, AgentDelivery, Turn] | AnswerTaken:
        """The delivery and its turn, if the agent may still answer it."""
        known = registry.find(self.config, agent)
        delivery = deliveries.get(tx, delivery_id[:100])
        mine = delivery is not None and delivery.agent == agent and delivery.kind is DeliveryKind.MESSAGE
        turn = conversations.turn(tx, delivery.turn_id) if delivery and mine else None
        if known is None or delivery is None or turn is None:
            return AnswerTaken(
                f"There is no message with that id for {agent}: use the id that came with the message, as it is.",
                refused=AnswerRefusal.UNKNOWN,
            )
        if not turn.state.is_over and turn.cancelled_by:
            self.turns.cancel(tx, turn)
        elif not turn.state.is_over:
            self.turns.end_if_late(tx, turn, known)
        now = conversations.turn(tx, turn.id)
        assert now
        return (known, delivery, now) if not now.state.is_over else _too_late(now)

    def _taken(self, tx: Transaction, turn: Turn, message: str) -> AnswerTaken:
        now = conversations.turn(tx, turn.id)
        assert now
        return AnswerTaken(message, now.state.value, len(now.answer) + now.cut)


def _too_late(turn: Turn) -> AnswerTaken:
    said = len(turn.answer) + turn.cut
    if turn.state is TurnState.CANCELLED:
        why = f"{ended(turn)} Stop working on it: nothing more of it is taken."
        return AnswerTaken(why, turn.state.value, said, AnswerRefusal.CANCELLED)
    if turn.state is TurnState.DONE:
        why = "It was answered to its end already: a second answer is not taken."
    else:
        why = f"It is over, so nothing more of it is taken. {ended(turn)}"
    return AnswerTaken(why, turn.state.value, said, AnswerRefusal.OVER)


def _wait(tx: Transaction, turn: Turn) -> None:
    stored, delivery = conversations.turn(tx, turn.id), deliveries.of_turn(tx, turn.id)
    if delivery is not None:
        deliveries.save(tx, replace(delivery, next_try_at=tx.now + _ASK_AGAIN))
    elif stored is not None and not stored.is_given and not stored.state.is_over:
        conversations.save_turn(tx, replace(stored, next_try_at=tx.now + _ASK_AGAIN))


def _clean(text: str) -> str:
    """Without what the database can't hold: JSON may have half a character."""
    return text.encode("utf-8", "replace").decode()
