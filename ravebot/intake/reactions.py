"""Takes reactions: answers to our questions, and 🛑 on a card, which is asked back before anything is stopped."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.agents.approvals import Approvals
from ravebot.agents.model import Approval
from ravebot.agents.reception import refuse
from ravebot.commands.permissions import Right
from ravebot.commands.refs import Ref
from ravebot.config.patterns import matches_project
from ravebot.intake.concern import YES, is_being_asked, question_of
from ravebot.intake.loop import NotYet, Step, only
from ravebot.intake.rooms import Rooms
from ravebot.matrix.incoming import IncomingMessage, Reaction
from ravebot.matrix.replies import render_reply
from ravebot.sandboxes.model import Actor
from ravebot.store import outbox, sandboxes
from ravebot.store.database import Transaction

_MOST_LOOKS = 90
"""Tries, which take an hour or more, until a reaction is none to a question of ours; time in which ravebot is down does
not count."""


@dataclass(frozen=True)
class RoomReactions:
    """The handler of reactions. A person is answered in the thread of what they reacted to, and only if need be."""

    rooms: Rooms
    approvals: Approvals

    async def answered(self, reaction: Reaction, attempts: int) -> Step:
        """✅ or ❌ on a question of ours. Raises NotYet while it may be one whose event is not recorded yet."""
        found, may_be = await self._question(reaction)
        if found is None and may_be and attempts < _MOST_LOOKS:
            raise NotYet("no question is known that this event shows")
        if found is None:
            return only("not for us")
        question, actor = found
        about, _ = await self.rooms.placed(as_message(reaction, question.thread))
        take = await self.approvals.answer(
            question.id,
            reaction.key == YES,
            actor,
            place=reaction.room_id,
            direct=about.direct,
            spoken=False,
        )

        def step(tx: Transaction) -> str:
            taken = take(tx)
            if taken.text:
                self.rooms.reply(tx, about, render_reply(taken.text), aside=True)
            return f"approval {question.id}: {taken.ruling.value if taken.ruling else 'gone'}"

        return step

    async def _question(self, reaction: Reaction) -> tuple[tuple[Approval, Actor] | None, bool]:
        """What is asked, and otherwise whether that may just not be recorded yet."""

        def asked(tx: Transaction) -> tuple[tuple[Approval, Actor] | None, bool]:
            found = question_of(tx, reaction)
            if found is None:
                return None, is_being_asked(tx, reaction.room_id)
            return (found, self._actor(tx, reaction, found.thread)), False

        return await self.rooms.database.read(asked)

    async def stop(self, reaction: Reaction, ref: Ref) -> Step:
        """🛑 on a card: whoever has the right is asked whether they mean it."""
        about, patterns = await self.rooms.placed(await self.on_card(reaction))
        mapped = matches_project(patterns, ref.project_path)
        project_id = await self.rooms.people.project_id(reaction.sender, ref)
        decision = await self.rooms.may(about, Right.COMMAND, project_id, mapped, ref.project_path)
        known = await self.rooms.people.known(ref)

        def step(tx: Transaction) -> str:
            if not decision.allowed:
                refuse(tx, self._actor(tx, reaction), "stop", str(ref), decision)
                self.rooms.reply(tx, about, render_reply(decision.refusal), aside=True)
                return decision.refusal
            sandbox = sandboxes.current(tx, known.ref) if known else None
            if sandbox is None:
                self.rooms.reply(tx, about, render_reply(f"{ref} has no sandbox."), aside=True)
                return "no sandbox"
            asked = self.approvals.ask_stop(
                tx, sandbox, reaction.sender, place=reaction.room_id, thread=about.thread_root or about.event_id
            )
            return f"asks back: approval {asked.id}"

        return step

    async def on_card(self, reaction: Reaction) -> IncomingMessage:
        """As if it had been said about the message reacted to, in the thread of the card that this belongs to."""

        def root(tx: Transaction) -> str:
            sandbox_id = outbox.sandbox_of_card(tx, reaction.room_id, reaction.to)
            names = self.rooms.names_of(reaction.room_id, outbox.rooms(tx))
            cards = (outbox.card(tx, sandbox_id, name) for name in names) if sandbox_id else ()
            return next((card.event_id for card in cards if card and card.event_id), reaction.to)

        return as_message(reaction, await self.rooms.database.read(root))

    def _actor(self, tx: Transaction, reaction: Reaction, thread: str = "") -> Actor:
        name = self.rooms.name_of(tx, as_message(reaction, thread))
        return Actor("matrix", reaction.sender, name, thread)


def as_message(reaction: Reaction, thread: str) -> IncomingMessage:
    """What a reply to a reaction answers: the message to which it is, in that thread."""
    return IncomingMessage(
        event_id=reaction.to,
        room_id=reaction.room_id,
        sender=reaction.sender,
        text="",
        thread_root=thread or None,
        direct=reaction.direct,
        at_ms=reaction.at_ms,
    )
