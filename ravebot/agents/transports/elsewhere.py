"""Drives a conversation with an agent that works elsewhere: a look at the rows, and the steps that are due.

The messages themselves are sent by the loop over webhooks, or taken by the agent; answers come by the API.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ravebot.agents import registry
from ravebot.agents.allowed import StillAllowed
from ravebot.agents.elsewhere import LONGEST_UNTAKEN, ElsewhereTurns
from ravebot.agents.model import Channel, ConversationId, Turn, TurnState
from ravebot.agents.transports.contract import Nudge
from ravebot.clock import age
from ravebot.config.model import AgentConfig
from ravebot.store import agent_work, conversations
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import inbox_of


@dataclass(frozen=True)
class Standing:
    """How a conversation stands: its first unfinished turn, and whether new ones are held back."""

    now: datetime
    agent: AgentConfig | None
    turn: Turn
    paused: bool

    @property
    def may_begin(self) -> bool:
        """Whether the agent may be given the turn now."""
        turn = self.turn
        return turn.state is TurnState.QUEUED and not (turn.is_given or turn.cancelled_by or self.paused)


@dataclass(frozen=True)
class ElsewhereDriver:
    """Drives conversations of agents with `webhook` or `inbox`."""

    database: Database
    turns: ElsewhereTurns
    allowed: StillAllowed

    async def drive(self, conversation_id: ConversationId, nudge: Nudge) -> None:
        """Take every step that is due now; the runner looks again when something changed, and in a while."""
        while True:
            nudge.take()
            now = await self.database.read(lambda tx: self._standing(tx, conversation_id))
            if now is None or not await self._step(now):
                return

    def _standing(self, tx: Transaction, conversation_id: ConversationId) -> Standing | None:
        conversation, turn = conversations.get(tx, conversation_id), agent_work.first_turn(tx, conversation_id)
        if conversation is None or turn is None:
            return None
        agent = registry.find(self.turns.config, conversation.agent)
        paused = bool(conversation.paused) or conversation.agent in conversations.paused_agents(tx)
        return Standing(tx.now, agent if agent and agent.works_elsewhere else None, turn, paused)

    async def _step(self, now: Standing) -> bool:
        """Do what comes next; False when there is nothing to do."""
        turn, agent = now.turn, now.agent
        if turn.is_given or turn.cancelled_by or agent is None:
            if _is_due(now):
                await self.database.write(lambda tx: self._end(tx, turn, agent))
                return True
            return False
        if not now.may_begin:
            return False
        if agent.inbox:
            if age(turn.created_at, now.now) > LONGEST_UNTAKEN:
                await self.database.write(lambda tx: self._untaken(tx, turn, agent))
                return True
            self.database.signals.wake(inbox_of(agent.name))
            return False
        if not await self.allowed.ask(turn):
            return False
        await self.database.write(lambda tx: self._begin(tx, turn, agent), urgent=True)
        return True

    def _end(self, tx: Transaction, turn: Turn, agent: AgentConfig | None) -> None:
        stored = conversations.turn(tx, turn.id)
        if stored is None or stored.state.is_over:
            return
        if stored.cancelled_by:
            self.turns.cancel(tx, stored)
        elif agent is None:
            self.turns.give_up(tx, stored, "The agent is not configured with `webhook` or `inbox` any more.")
        else:
            self.turns.end_if_late(tx, stored, agent)

    def _untaken(self, tx: Transaction, turn: Turn, agent: AgentConfig) -> None:
        stored = conversations.turn(tx, turn.id)
        if stored is not None and not stored.state.is_over and not stored.is_given:
            why = f"{agent.name} did not take it from its inbox within a day: see whether it runs, and send it again."
            self.turns.give_up(tx, stored, why)

    def _begin(self, tx: Transaction, turn: Turn, agent: AgentConfig) -> None:
        """Store a message's delivery before it is first sent, unless something changed meanwhile."""
        now = self._standing(tx, turn.conversation_id)
        if now is not None and now.turn.id == turn.id and now.may_begin:
            self.turns.begin(tx, now.turn, agent, Channel.WEBHOOK)


def _is_due(now: Standing) -> bool:
    """Whether a turn is to be ended that the agent has."""
    late = now.turn.deadline is not None and now.now >= now.turn.deadline
    return bool(now.turn.cancelled_by) or now.agent is None or late
