"""Decides which of the things heard in rooms concern us, and keeps those in the inbox: no other is stored.

What concerns us: commands, messages for an agent, answers to our open questions, and two reactions to our cards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from enum import StrEnum

import structlog

from ravebot.agents import routing
from ravebot.agents.model import AgentDoor, Approval, ApprovalState, Conversation
from ravebot.clock import to_us
from ravebot.commands.refs import Ref
from ravebot.commands.verbs import VERBS, Show, Verb
from ravebot.intake.poll import MAX_COMMAND_AGE
from ravebot.matrix import commands
from ravebot.matrix.incoming import IncomingMessage, Reaction
from ravebot.store import approvals, conversations, inbox, merge_requests, outbox, restored, sandboxes
from ravebot.store.database import Transaction

log = structlog.get_logger()

SOURCE = "matrix"
YES, NO = "✅", "❌"
LONGER, STOP = "⏳", "🛑"
"""Reactions to questions, and to cards."""


class RowKind(StrEnum):
    """The kinds of rows in the inbox of rooms."""

    MESSAGE = "message"  # a command
    TO_AGENT = "to agent"  # also if it is a command that says something to an agent
    REACTION = "reaction"
    EARLY = inbox.EARLY


MOST_EARLY, MOST_EARLY_EACH = 500, 20
"""Early reactions that are kept, of all and of one person: while a question is on its way, anybody may react to all
else in the room."""


@dataclass(frozen=True)
class Concern:
    """What concerns us in rooms. `names`: the agents that can be spoken to."""

    prefix: str
    names: frozenset[str] = frozenset()
    verbs: Sequence[Verb] = VERBS

    def keep(self, tx: Transaction, heard: IncomingMessage | Reaction) -> None:
        """Store it in the inbox if it concerns us and is not too old."""
        found = self._reaction(tx, heard) if isinstance(heard, Reaction) else self._message(tx, heard)
        if found is None or _is_too_old(heard, tx):
            return
        kind, lane, kept = found
        if _is_before_restore(heard, tx):
            inbox.record(tx, SOURCE, heard.event_id, lane, kind, restored.TOO_OLD)
            return
        inbox.add(tx, source=SOURCE, key=heard.event_id, lane=lane, kind=kind, body=json.dumps(asdict(kept)))

    def _message(self, tx: Transaction, message: IncomingMessage) -> tuple[RowKind, str, IncomingMessage] | None:
        text, about = message.text, about_conversation(tx, message)
        root = message.thread_root or ""
        if commands.is_command(text, self.prefix):
            said = commands.takes_text(text, self.prefix, self.verbs)
            kept = replace(message, text=commands.kept(text, self.prefix, self.verbs))
            thread = about or (root or message.event_id if said else None)
            return RowKind.TO_AGENT if said else RowKind.MESSAGE, self._lane(tx, message, thread), kept
        # The message that begins the thread may not have been handled yet.
        began = bool(root) and inbox.kind_of(tx, SOURCE, root) == RowKind.TO_AGENT
        named = routing.names_one(text, self.names) and _is_ours(tx, message)
        if began or named or (about and about.agent in self.names):
            return RowKind.TO_AGENT, self._lane(tx, message, about or root or message.event_id), message
        return None

    def _lane(self, tx: Transaction, message: IncomingMessage, thread: Conversation | str | None) -> str:
        """Whatever is about one merge request or one conversation stays in order, and does not delay others.

        A merge request's lane is keyed by the number, because `!42`, `group/app!42` and a card may be the same.
        What looks into a sandbox takes a while, and changes nothing: it has a lane beside all others of its room.
        """
        is_command = commands.is_command(message.text, self.prefix)
        if is_command and commands.verb_in(message.text, self.prefix) in self._slow:
            return f"{message.room_id} diff"
        number = commands.number_in(message.text, self.prefix) if is_command else None
        thread = thread.thread if isinstance(thread, Conversation) else thread
        if number is None:
            card = card_of(tx, message) or (card_at(tx, message.room_id, thread) if thread else None)
            number = card.iid if card else None
        if number is not None:
            return f"{message.room_id} {number}"
        return f"{message.room_id} {thread}" if thread else message.room_id

    @property
    def _slow(self) -> frozenset[str]:
        return frozenset(verb.name for verb in self.verbs if verb.does is Show.DIFF)

    def _reaction(self, tx: Transaction, reaction: Reaction) -> tuple[RowKind, str, Reaction] | None:
        if reaction.key in (YES, NO):
            question = question_of(tx, reaction)
            if question and question.state is ApprovalState.OPEN:
                return RowKind.REACTION, f"{reaction.room_id} question {question.id}", reaction
            if question is None and is_being_asked(tx, reaction.room_id):
                return self._early(tx, reaction)
        elif reaction.key in (LONGER, STOP) and (card := card_at(tx, reaction.room_id, reaction.to)):
            return RowKind.REACTION, f"{reaction.room_id} {card.iid}", reaction
        return None

    def _early(self, tx: Transaction, reaction: Reaction) -> tuple[RowKind, str, Reaction] | None:
        of_all, of_one = inbox.count_early(tx, SOURCE), inbox.count_early(tx, SOURCE, reaction.sender)
        if of_all >= MOST_EARLY or of_one >= MOST_EARLY_EACH:
            log.warning("reaction is not kept: too many wait for a question", room=reaction.room_id)
            return None
        return RowKind.EARLY, f"{reaction.room_id} {reaction.to}", reaction


def about_conversation(tx: Transaction, message: IncomingMessage) -> Conversation | None:
    """The conversation in whose own thread a message is, or one of whose messages it answers."""
    if message.reply_to and (answered := conversations.of_event(tx, message.room_id, message.reply_to)):
        return answered
    if not message.thread_root:
        return None
    there = conversations.in_thread(tx, AgentDoor.MATRIX, message.room_id, message.thread_root)
    return next((one for one in there if one.own_thread), None)


def _is_ours(tx: Transaction, message: IncomingMessage) -> bool:
    """Whether it was said in a configured room or a direct chat: elsewhere, an agent's name is somebody else's."""
    return message.direct or message.room_id in outbox.rooms(tx).values()


def question_of(tx: Transaction, reaction: Reaction) -> Approval | None:
    """The question to which somebody reacted."""
    found = (approvals.of_event(tx, place, reaction.to) for place in _names_of(tx, reaction.room_id))
    return next(filter(None, found), None)


def is_being_asked(tx: Transaction, room_id: str) -> bool:
    """Whether a question goes to the room of which it is not recorded yet which event shows it.

    After a crash between the two, a person may have answered an event of ours that is not known.
    """
    places = _names_of(tx, room_id)
    return any(not one.event_id and one.place in places for one in approvals.are_open(tx))


def _names_of(tx: Transaction, room_id: str) -> tuple[str, ...]:
    return (room_id, *(name for name, known in outbox.rooms(tx).items() if known == room_id))


def card_of(tx: Transaction, message: IncomingMessage) -> Ref | None:
    """The merge request of the card that a message answers, or in whose thread it is."""
    for event_id in (message.reply_to, message.thread_root):
        if event_id and (ref := card_at(tx, message.room_id, event_id)):
            return ref
    return None


def meant_by_place(tx: Transaction, message: IncomingMessage) -> Ref | None:
    """What a message is about that names no merge request: that of its card, or of its conversation with an agent."""
    if card := card_of(tx, message):
        return card
    about = about_conversation(tx, message)
    mr = merge_requests.get(tx, about.mr) if about and about.mr else None
    return Ref(mr.project_path, mr.ref.iid) if mr else None


def card_at(tx: Transaction, room_id: str, event_id: str) -> Ref | None:
    """The merge request whose card, or other message of ours about its sandbox, an event is."""
    sandbox_id = outbox.sandbox_of_card(tx, room_id, event_id)
    sandbox = sandboxes.get(tx, sandbox_id) if sandbox_id else None
    mr = merge_requests.get(tx, sandbox.mr) if sandbox else None
    return Ref(mr.project_path, mr.ref.iid) if mr else None


def _is_too_old(heard: IncomingMessage | Reaction, tx: Transaction) -> bool:
    """Whether it is too old: a restored backup has an old sync token, so that old commands arrive again."""
    return heard.at_ms > 0 and tx.now_us - 1000 * heard.at_ms > MAX_COMMAND_AGE // timedelta(microseconds=1)


def _is_before_restore(heard: IncomingMessage | Reaction, tx: Transaction) -> bool:
    """Whether it was said before the state was restored: it may have been carried out, and the backup not know it."""
    moment = restored.since(tx)
    return moment is not None and 1000 * heard.at_ms < to_us(moment)
