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

from ravebot.agents import registry
from ravebot.agents.allowed import StillAllowed
from ravebot.agents.elsewhere import ElsewhereTurns
from ravebot.agents.model import AgentDelivery, Channel, DeliveryKind, Turn, TurnId, TurnState
from ravebot.agents.wording import ended
from ravebot.config.model import AgentConfig, Config
from ravebot.errors import Refused
from ravebot.sandboxes.model import MergeRequest
from ravebot.store import conversations, deliveries
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import inbox_of

LEASE = timedelta(seconds=60)
"""How long a message that was taken is nobody else's; then it is given again, unless it was acknowledged."""
LONGEST_PIECE = 60_000
"""Characters of one answer; longer ones come in pieces."""
_CANDIDATES = 20
_LOOK_SECONDS = 2.0
Reaches = Callable[[MergeRequest], Awaitable[bool]]


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


@dataclass(frozen=True)
class AgentAnswers:
    """What the API carries out for such an agent."""

    config: Config
    database: Database
    turns: ElsewhereTurns
    allowed: StillAllowed

    # Taking messages

    async def next_for(
        self, agent: str, wait: timedelta = timedelta(0), reaches: Reaches | None = None
    ) -> TurnId | None:
        """The oldest message that the agent may take now, once there is one; None when none came in that time.

        `reaches`: whether the caller may know of what is said in a merge request's project; None: of all. Raises
        Refused if the agent has no inbox.
        """
        known = registry.find(self.config, agent)
        if known is None or not known.inbox:
            raise Refused(f"{agent} has no inbox: an admin of ravebot sets agents[].inbox of it to true.")
        if await self.database.read(lambda tx: deliveries.is_visit_due(tx, agent)):
            await self.database.write(lambda tx: deliveries.visit(tx, agent))
        loop = asyncio.get_running_loop()
        until = loop.time() + wait.total_seconds()
        while True:
            for turn in await self._candidates(agent, reaches):
                if await self.allowed.ask(turn):
                    return turn.id
            left = until - loop.time()
            if left <= 0:
                return None
            await self.database.signals.wait(inbox_of(agent), min(left, _LOOK_SECONDS))

    async def _candidates(self, agent: str, reaches: Reaches | None) -> tuple[Turn, ...]:
        """Projects are sorted out first: however many messages of others wait, they do not hide the caller's own."""
        of: list[MergeRequest] | None = None
        if reaches is not None:
            there = await self.database.read(lambda tx: deliveries.projects(tx, agent))
            of = [mr for mr in there if await reaches(mr)]
        return await self.database.read(lambda tx: deliveries.to_take(tx, agent, LEASE, _CANDIDATES, of))

    def take(self, tx: Transaction, agent: str, turn_id: TurnId) -> TakenMessage | None:
        """Take the message that `next_for` found; None if somebody else was faster, or it is not there any more."""
        known = registry.find(self.config, agent)
        free = deliveries.to_take(tx, agent, LEASE, 1, turn_id=turn_id) if known and known.inbox else ()
        turn = next(iter(free), None)
        if known is None or turn is None:
            return None
        delivery = deliveries.of_turn(tx, turn.id) or self.turns.begin(tx, turn, known, Channel.INBOX)
        if delivery is None:
            return None
        until, again = tx.now + LEASE, delivery.tries > 0
        deliveries.save(
            tx, replace(delivery, leased_until=until, tries=delivery.tries + 1, doubtful=True, next_try_at=None)
        )
        if not again:
            self.turns.progress.accepted(tx, turn.id, TurnState.DELIVERED, known.limits.turn)
        return TakenMessage(delivery.id, json.loads(delivery.body)["data"], until, again)

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
                f"There is no message with that id for {agent}: use the id that came with the message, and the token of"
                " the agent that it was for.",
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


def _clean(text: str) -> str:
    """Without what the database can't hold: JSON may have half a character."""
    return text.encode("utf-8", "replace").decode()
