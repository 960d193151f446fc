"""Queues what doors show of conversations: answers, receipts, questions, lines of ours. Rendered when it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ravebot.agents.model import (
    AGENT,
    AgentDoor,
    Approval,
    Conversation,
    ConversationId,
    Receipt,
    Turn,
    TurnState,
)
from ravebot.config.model import Config
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import conversations, outbox
from ravebot.store.database import Transaction
from ravebot.store.targets import GITLAB, Kind, Lane, NoteLane, RoomLane

MOST_EDITS = 30
"""Edits of one answer; about 1,000 of one message made a room unloadable (FACTS, Agents). The last one always comes."""
_PAUSES = (timedelta(seconds=1), timedelta(seconds=2), timedelta(seconds=3), timedelta(seconds=5))
_EDITS_A_PAUSE = 5
QUICK = timedelta(seconds=2)
"""A turn that is over within this time gets no 👀."""


@dataclass(frozen=True)
class ConversationTelling:
    """Each method runs inside the caller's transaction. For the shell and the API nothing is queued: they ask for what
    is new."""

    config: Config

    def answer(self, tx: Transaction, turn: Turn) -> None:
        """The answer's text, the status or the state changed: an edit follows, in a while if there were some lately."""
        lane = self._lane_of(tx, turn.conversation_id)
        if lane is None:
            return
        if turn.state.is_over:
            outbox.add(tx, lane, Kind.ANSWER, body={"turn": turn.id, "last": True})
            outbox.hasten(tx, lane)
            return
        shown = conversations.shown(tx, turn.id)
        says_something = turn.answer or turn.status or turn.state is TurnState.WAITING
        if lane.target is GITLAB or not says_something or shown.edits >= MOST_EDITS:
            return
        key = f"answer:{turn.id}"
        delay = timedelta(0)
        pause = _PAUSES[min(shown.edits // _EDITS_A_PAUSE, len(_PAUSES) - 1)]
        if outbox.in_flight(tx, key):
            delay = pause
        elif shown.edited_at is not None:
            delay = max(timedelta(0), min(pause, shown.edited_at + pause - tx.now))
        outbox.add(tx, lane, Kind.ANSWER, body={"turn": turn.id}, merge_key=key, delay=delay)

    def receipt(self, tx: Transaction, turn: Turn) -> None:
        """The turn's state changed: the reaction on the person's message follows.

        A row says one receipt for good, so that after a crash the same one is sent; when it is sent for the first time
        and is no longer true, it is dropped.
        """
        receipt = turn.receipt
        shown = conversations.shown(tx, turn.id)
        if receipt is None or (shown.receipt == receipt and not self._receipt_in_flight(tx, turn)):
            return
        lane = self._lane_of(tx, turn.conversation_id, receipts=True)
        if lane is None or conversations.message(tx, turn.message_id).author.kind == AGENT:
            return
        waits = receipt is Receipt.SEEN and not shown.receipt
        body: dict[str, object] = {"turn": turn.id, "receipt": receipt}
        delay = QUICK if waits else timedelta(0)
        outbox.add(tx, lane, Kind.RECEIPT, body=body, merge_key=_receipt_key(turn, receipt), delay=delay)
        if not waits:
            outbox.hasten(tx, lane)

    def question(self, tx: Transaction, approval: Approval) -> None:
        """An approval is asked, or was answered."""
        lane = self.lane(tx, approval.door, approval.place, approval.conversation_id)
        if lane is not None:
            outbox.add(tx, lane, Kind.QUESTION, body={"approval": approval.id})
            self._hasten(tx, lane)

    def remark(self, tx: Transaction, conversation: Conversation, text: str) -> None:
        """A line of ours in the conversation."""
        lane = self.lane(tx, conversation.door, conversation.place, conversation.id)
        if lane is not None:
            outbox.add(tx, lane, Kind.REMARK, body={"conversation": conversation.id, "text": text})
            self._hasten(tx, lane)

    def lane(
        self,
        tx: Transaction,
        door: AgentDoor,
        place: str,
        conversation: ConversationId | None,
        *,
        receipts: bool = False,
    ) -> Lane | None:
        """The outbox's lane of a conversation; of a question without one, its room's or merge request's."""
        match door:
            case AgentDoor.MATRIX:
                ids = outbox.rooms(tx)
                named = (name for name in self.config.matrix.room_names if place in (name, ids.get(name)))
                return RoomLane(next(named, place), conversation, receipts)
            case AgentDoor.GITLAB:
                project_id, _, iid = place.partition("!")
                ref = MergeRequestRef(int(project_id), int(iid))
                return NoteLane(ref, conversation=conversation, receipts=receipts)
            case AgentDoor.SHELL | AgentDoor.API:
                return None

    def _lane_of(self, tx: Transaction, conversation_id: ConversationId, *, receipts: bool = False) -> Lane | None:
        conversation = conversations.get(tx, conversation_id)
        if conversation is None:
            return None
        return self.lane(tx, conversation.door, conversation.place, conversation.id, receipts=receipts)

    def _hasten(self, tx: Transaction, lane: Lane) -> None:
        """What an agent said before is not to delay what people are asked; a whole room's lane has no such delays."""
        if isinstance(lane, RoomLane | NoteLane) and lane.conversation is not None:
            outbox.hasten(tx, lane)

    def _receipt_in_flight(self, tx: Transaction, turn: Turn) -> bool:
        return any(outbox.in_flight(tx, _receipt_key(turn, receipt)) for receipt in Receipt)


def _receipt_key(turn: Turn, receipt: Receipt) -> str:
    return f"receipt:{turn.id}:{receipt}"
