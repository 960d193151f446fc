"""What a row about a conversation with an agent is about, read when it is sent; the same for each door."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.agents.model import (
    Approval,
    ApprovalId,
    Conversation,
    ConversationId,
    MessageId,
    ShownTurn,
    Turn,
    TurnId,
)
from ravebot.agents.questions import ApprovalQuestion, question
from ravebot.config.model import MatrixConfig
from ravebot.matrix.agents import Speaker
from ravebot.store import approvals, conversations, merge_requests
from ravebot.store.database import Transaction
from ravebot.store.outbox import Message
from ravebot.store.targets import MATRIX, Kind, RoomLane

TALK_KINDS = frozenset({Kind.ANSWER, Kind.RECEIPT, Kind.QUESTION, Kind.REMARK})


@dataclass(frozen=True)
class TalkFacts:
    """The current state of what a row is about, and what the room shows of it.

    `place`: the room that the conversation or the question is in; `answer_place`: the one that its message is in.
    """

    conversation: Conversation | None = None
    speaker: Speaker | None = None
    turn: Turn | None = None
    shown: ShownTurn | None = None
    answer_place: str = ""
    said_event: str = ""  # the person's message
    newest: bool = True  # whether no later turn of the same message took its place
    others: tuple[ShownTurn, ...] = ()  # receipts of earlier turns of the same message
    approval: Approval | None = None
    question: ApprovalQuestion | None = None


@dataclass(frozen=True)
class TalkLook:
    """Reads what a row is about."""

    config: MatrixConfig

    def look(self, tx: Transaction, message: Message) -> TalkFacts:
        match message.kind:
            case Kind.QUESTION:
                return self._at_question(tx, message)
            case Kind.REMARK:
                conversation = conversations.get(tx, ConversationId(number_in(message, "conversation")))
                return TalkFacts(conversation, self._speaker(tx, message, conversation))
            case _:
                return self._at_turn(tx, message)

    def _at_turn(self, tx: Transaction, message: Message) -> TalkFacts:
        turn = conversations.turn(tx, TurnId(number_in(message, "turn")))
        conversation = conversations.get(tx, turn.conversation_id) if turn else None
        if turn is None or conversation is None:
            return TalkFacts()
        shown = conversations.shown(tx, turn.id)
        siblings = conversations.turns_of(tx, MessageId(turn.message_id))
        before = (conversations.shown(tx, other.id) for other in siblings if other.id != turn.id)
        return TalkFacts(
            conversation,
            self._speaker(tx, message, conversation),
            turn,
            shown,
            answer_place=conversations.place_of_event(tx, shown.answer_event) if shown.answer_event else "",
            said_event=conversations.message(tx, turn.message_id).key,
            newest=turn.id == siblings[-1].id,
            others=tuple(other for other in before if other.receipt),
        )

    def _at_question(self, tx: Transaction, message: Message) -> TalkFacts:
        approval = approvals.get(tx, ApprovalId(number_in(message, "approval")))
        if approval is None:
            return TalkFacts()
        conversation = conversations.get(tx, approval.conversation_id) if approval.conversation_id else None
        turn = conversations.turn(tx, approval.turn_id) if approval.turn_id else None
        asker = conversations.message(tx, turn.message_id).root if turn else None
        mr = merge_requests.get(tx, approval.mr) if approval.mr else None
        view = question(approval, self.config, mr=mr, conversation=conversation, asker=asker)
        return TalkFacts(conversation, self._speaker(tx, message, conversation), approval=approval, question=view)

    def _speaker(self, tx: Transaction, message: Message, conversation: Conversation | None) -> Speaker | None:
        if conversation is None:
            return None
        mr = merge_requests.get(tx, conversation.mr) if conversation.mr else None
        if mr is None:
            return Speaker(conversation.agent)
        short = message.target != MATRIX.name or self.config.short_refs(RoomLane.read(message.lane).room)
        return Speaker(conversation.agent, f"!{mr.ref.iid}" if short else mr.full_ref)


def number_in(message: Message, key: str) -> int:
    """A number of a row's body."""
    value = message.body.get(key)
    assert isinstance(value, int)
    return value
