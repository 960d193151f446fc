"""Pauses of agents and conversations: by people, and where agents talk to each other without end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ravebot.agents import registry
from ravebot.agents.ending import record_conversation
from ravebot.agents.limits import GUARDS, TalkGuard
from ravebot.agents.model import Conversation, ConversationId
from ravebot.agents.telling import ConversationTelling
from ravebot.config.model import Config
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import RAVEBOT, Actor, EventKind
from ravebot.store import conversations, events
from ravebot.store.database import Transaction


@dataclass(frozen=True)
class Pausing:
    """Each method runs inside the caller's transaction."""

    config: Config
    telling: ConversationTelling

    def pause_agent(self, tx: Transaction, name: str, by: Actor) -> Outcome:
        """Give nothing to an agent anywhere; the turns that run go on."""
        if registry.find(self.config, name) is None:
            return Outcome(False, f"No agent called {name} is configured. See `agents` in the configuration.")
        if name in (paused := conversations.paused_agents(tx)):
            return Outcome(True, f"{name} is paused already, by {paused[name]}.")
        conversations.pause_agent(tx, name, str(by))
        self._record_agent(tx, EventKind.AGENT_PAUSED, by, name)
        return Outcome(True, f"{name} is paused: what runs goes on, and nothing new is given to it until `resume`.")

    def resume_agent(self, tx: Transaction, name: str, by: Actor) -> Outcome:
        if name not in conversations.paused_agents(tx):
            return Outcome(True, f"{name} is not paused.")
        conversations.resume_agent(tx, name)
        self._record_agent(tx, EventKind.AGENT_RESUMED, by, name)
        return Outcome(True, f"{name} goes on.")

    def pause(self, tx: Transaction, conversation_id: ConversationId, by: Actor) -> Outcome:
        """Give nothing to the agent in one conversation until somebody resumes it."""
        conversation = conversations.get(tx, conversation_id)
        if conversation is None:
            return Outcome(False, "There is no such conversation: write to an agent to begin one.")
        if conversation.paused and conversation.paused not in GUARDS:
            return Outcome(True, f"This conversation is paused already: {conversation.paused}.")
        self._pause(tx, conversation, f"paused by {by}", by)
        return Outcome(True, f"{conversation.agent} gets nothing more here until `resume`; what runs goes on.")

    def resume(self, tx: Transaction, conversation_id: ConversationId, by: Actor) -> Outcome:
        conversation = conversations.get(tx, conversation_id)
        if conversation is None:
            return Outcome(False, "There is no such conversation: write to an agent to begin one.")
        if not conversation.paused:
            return Outcome(True, "This conversation is not paused.")
        self._resume(tx, conversation, by)
        return Outcome(True, f"{conversation.agent} goes on here.")

    def pause_thread(self, tx: Transaction, thread: Iterable[Conversation], guard: TalkGuard) -> None:
        """Pause a thread in which agents talk to each other too much, until a person speaks."""
        for conversation in thread:
            if not conversation.paused:
                self._pause(tx, conversation, guard.value, RAVEBOT)

    def resume_thread(self, tx: Transaction, thread: Iterable[Conversation], by: Actor) -> None:
        """A person speaks: go on where agents talked too much. What a person paused stays paused."""
        for conversation in thread:
            if conversation.paused in GUARDS:
                self._resume(tx, conversation, by)

    def _pause(self, tx: Transaction, conversation: Conversation, why: str, by: Actor) -> None:
        conversations.pause(tx, conversation.id, why)
        record_conversation(tx, EventKind.AGENT_PAUSED, by, conversation, {"why": why})

    def _resume(self, tx: Transaction, conversation: Conversation, by: Actor) -> None:
        conversations.pause(tx, conversation.id, "")
        record_conversation(tx, EventKind.AGENT_RESUMED, by, conversation, {"was": conversation.paused})

    def _record_agent(self, tx: Transaction, kind: EventKind, by: Actor, name: str) -> None:
        events.append(tx, kind, by, data={"agent": name})
