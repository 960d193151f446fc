"""What people ask of conversations: that a message is given to an agent, that a turn is cancelled or sent again.

Each method runs inside the caller's transaction; the caller has checked the asker's right on the merge request.
"""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.agents.model import LONGEST_MESSAGE, AgentDoor, Turn, TurnState
from ravebot.agents.telling import ConversationTelling
from ravebot.config.model import Config
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor, MergeRequestRef
from ravebot.store import conversations
from ravebot.store.database import Transaction


@dataclass(frozen=True)
class Addressed:
    """What was said to an agent, and where. `key`: its id at the door, so that the same is taken once."""

    agent: str
    door: AgentDoor
    place: str
    thread: str
    own_thread: bool
    mr: MergeRequestRef | None
    key: str
    author: Actor
    text: str
    root: Actor | None = None  # the first person, where the author is an agent
    hops: int = 0


@dataclass(frozen=True)
class Desk:
    """Takes messages to agents, and what people want of their turns."""

    config: Config
    telling: ConversationTelling

    def accept(self, tx: Transaction, said: Addressed) -> Outcome:
        """Take a message: a turn is queued for it, in its conversation, which is begun if there is none."""
        if len(said.text) > LONGEST_MESSAGE:
            return Outcome(False, f"That is too long for a message: an agent takes {LONGEST_MESSAGE} characters.")
        conversation = conversations.find(tx, said.agent, said.door, said.place, said.thread) or conversations.begin(
            tx, said.agent, said.door, said.place, said.thread, own_thread=said.own_thread, mr=said.mr
        )
        root = said.root or said.author
        message = conversations.add_message(tx, conversation.id, said.key, said.author, root, said.text, said.hops)
        if message is None:
            return Outcome(True, "It was taken before.")
        turn: Turn = conversations.add_turn(tx, message, TurnState.QUEUED)
        self.telling.receipt(tx, turn)
        return Outcome(True, f"{said.agent} gets it.")
