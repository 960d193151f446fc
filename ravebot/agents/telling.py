"""Queues what doors show of conversations: answers, receipts, questions, lines of ours. Rendered when it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ravebot.agents.model import AgentDoor, Approval, Conversation, ConversationId, Turn
from ravebot.config.model import Config
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import conversations, outbox
from ravebot.store.database import Transaction
from ravebot.store.targets import Kind, Lane, NoteLane, RoomLane

MOST_EDITS = 30
"""Edits of one answer; about 1,000 of one message made a room unloadable (FACTS, Agents). The last one always comes."""
_PAUSES = (timedelta(seconds=1), timedelta(seconds=2), timedelta(seconds=3), timedelta(seconds=5))
QUICK = timedelta(seconds=2)
"""A turn that is over within this time gets no 👀."""


@dataclass(frozen=True)
class ConversationTelling:
    """Each method runs inside the caller's transaction. For the shell nothing is queued: it asks for what is new."""

    config: Config

    def answer(self, tx: Transaction, turn: Turn) -> None:
        """The answer's text, the status or the state changed: an edit follows, in a while if there were some lately."""
        lane = self._lane_of(tx, turn.conversation_id)
        if lane is None:
            return
        shown = conversations.shown(tx, turn.id)
        if turn.state.is_over or lane.target.name == "gitlab":
            if turn.state.is_over:
                outbox.add(tx, lane, Kind.ANSWER, body={"turn": turn.id})
            return
        if shown.edits >= MOST_EDITS:
            return
        delay = _PAUSES[min(shown.edits // 5, len(_PAUSES) - 1)] if shown.answer_event else timedelta(0)
        outbox.add(tx, lane, Kind.ANSWER, body={"turn": turn.id}, merge_key=f"answer:{turn.id}", delay=delay)

    def receipt(self, tx: Transaction, turn: Turn) -> None:
        """The turn's state changed: the reaction on the person's message follows."""
        lane = self._lane_of(tx, turn.conversation_id)
        if lane is not None:
            delay = timedelta(0) if turn.state.is_over else QUICK
            outbox.add(tx, lane, Kind.RECEIPT, body={"turn": turn.id}, merge_key=f"receipt:{turn.id}", delay=delay)

    def question(self, tx: Transaction, approval: Approval) -> None:
        """An approval is asked, or was answered."""
        lane = self.lane(tx, approval.door, approval.place, approval.conversation_id)
        if lane is not None:
            outbox.add(tx, lane, Kind.QUESTION, body={"approval": approval.id})

    def remark(self, tx: Transaction, conversation: Conversation, text: str) -> None:
        """A line of ours in the conversation."""
        lane = self.lane(tx, conversation.door, conversation.place, conversation.id)
        if lane is not None:
            outbox.add(tx, lane, Kind.REMARK, body={"conversation": conversation.id, "text": text})

    def lane(self, tx: Transaction, door: AgentDoor, place: str, conversation: ConversationId | None) -> Lane | None:
        """The outbox's lane of a conversation; of a question without one, its room's or merge request's."""
        match door:
            case AgentDoor.MATRIX:
                ids = outbox.rooms(tx)
                named = (name for name in self.config.matrix.room_names if place in (name, ids.get(name)))
                return RoomLane(next(named, place), conversation)
            case AgentDoor.GITLAB:
                project_id, _, iid = place.partition("!")
                return NoteLane(MergeRequestRef(int(project_id), int(iid)))
            case AgentDoor.SHELL:
                return None

    def _lane_of(self, tx: Transaction, conversation_id: ConversationId) -> Lane | None:
        conversation = conversations.get(tx, conversation_id)
        return self.lane(tx, conversation.door, conversation.place, conversation.id) if conversation else None
