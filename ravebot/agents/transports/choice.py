"""Which transport drives a conversation: that of its agent's configuration, or the one that has its turn already."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.agents import registry
from ravebot.agents.model import ConversationId
from ravebot.agents.transports.contract import ConversationTransport, Nudge
from ravebot.config.model import Config
from ravebot.store import agent_work, conversations
from ravebot.store.database import Database, Transaction


@dataclass(frozen=True)
class ChosenTransport:
    """The runner's transport; it hands each conversation to the one that can drive it."""

    config: Config
    database: Database
    in_sandbox: ConversationTransport
    elsewhere: ConversationTransport

    async def drive(self, conversation_id: ConversationId, nudge: Nudge) -> None:
        """Work until there is nothing to do for a while, or until nothing can be done now."""
        chosen = await self.database.read(lambda tx: self._chosen(tx, conversation_id))
        await chosen.drive(conversation_id, nudge)

    def _chosen(self, tx: Transaction, conversation_id: ConversationId) -> ConversationTransport:
        turn, conversation = agent_work.first_turn(tx, conversation_id), conversations.get(tx, conversation_id)
        if turn is not None and turn.is_given:
            return self.elsewhere if turn.process_id is None else self.in_sandbox
        agent = registry.find(self.config, conversation.agent) if conversation else None
        return self.elsewhere if agent is not None and agent.works_elsewhere else self.in_sandbox
