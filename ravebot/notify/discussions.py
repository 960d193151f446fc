"""Sends what merge requests show of conversations with agents: answers, receipts, questions and remarks, as replies in
their discussion."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ravebot.agents.model import Receipt
from ravebot.config.model import MatrixConfig
from ravebot.errors import Forbidden, NotFound
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.notes import marker
from ravebot.gitlab.talk import AWARDS, render_note_answer, render_note_question, render_note_remark
from ravebot.notify.delivery import Sent
from ravebot.notify.requests import NoteRequests
from ravebot.notify.talks import TalkFacts, TalkLook
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import approvals, conversations
from ravebot.store.database import Database, Transaction
from ravebot.store.outbox import Message
from ravebot.store.targets import Kind

_UNTRUE = Sent("dropped: nothing to tell any more")


class DiscussionSender:
    """Posts a reply once: a row that may have been sent is looked for by its author and hidden marker before."""

    def __init__(self, config: MatrixConfig, database: Database, gitlab: GitLab, requests: NoteRequests) -> None:
        self._looks = TalkLook(config)
        self._database = database
        self._gitlab = gitlab
        self._requests = requests
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="render-note")

    def look(self, tx: Transaction, message: Message) -> TalkFacts:
        return self._looks.look(tx, message)

    async def send(self, ref: MergeRequestRef, message: Message, facts: TalkFacts) -> Sent:
        """Raises NotFound when the merge request or the discussion is gone."""
        match message.kind:
            case Kind.ANSWER:
                return await self._answer(ref, message, facts)
            case Kind.RECEIPT:
                return await self._receipt(ref, message, facts)
            case Kind.QUESTION:
                return await self._question(ref, message, facts)
            case _:
                return await self._remark(ref, message, facts)

    async def _answer(self, ref: MergeRequestRef, message: Message, facts: TalkFacts) -> Sent:
        """The whole answer, at the end of its turn: a note that is edited all the time would be mailed half."""
        conversation, turn, shown = facts.conversation, facts.turn, facts.shown
        if conversation is None or turn is None or shown is None or not turn.state.is_over or shown.answer_event:
            return _UNTRUE
        mark = self._marker(ref, message)
        body = await asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: render_note_answer(turn, conversation.agent, mark)
        )
        note_id = await self._reply(ref, conversation.thread, message, mark, body)

        def keep(tx: Transaction) -> None:
            conversations.show_answer(tx, turn.id, str(note_id))
            conversations.add_event(tx, conversation.place, str(note_id), conversation.id)

        return Sent(str(note_id), keep)

    async def _receipt(self, ref: MergeRequestRef, message: Message, facts: TalkFacts) -> Sent:
        """Exchange the emoji on the person's comment; see `ConversationSender` for a row that was tried before."""
        turn, shown = facts.turn, facts.shown
        receipt = Receipt(str(message.body.get("receipt")))
        if turn is None or shown is None or not facts.said_event.isdecimal():
            return _UNTRUE
        if not facts.newest or shown.receipt == receipt or (turn.receipt is not receipt and not message.attempted):
            return _UNTRUE
        note_id = int(facts.said_event)
        cleared = [other for other in (*facts.others, shown) if other.receipt]
        for other in cleared:
            if other.receipt_event.isdecimal():
                await self._gitlab.discussions.remove_award(ref, note_id, int(other.receipt_event))
        award, result = "", "awarded"
        try:
            award = str(await self._gitlab.discussions.award(ref, note_id, AWARDS[receipt]))
        except (Forbidden, NotFound) as error:  # the comment was deleted
            result = f"dropped: {error}"

        def keep(tx: Transaction) -> None:
            for other in cleared:
                conversations.show_receipt(tx, other.turn_id, "", "")
            conversations.show_receipt(tx, turn.id, receipt, award)

        return Sent(result, keep)

    async def _question(self, ref: MergeRequestRef, message: Message, facts: TalkFacts) -> Sent:
        """Ask, once; after the answer, say so in the same note."""
        approval, asked = facts.approval, facts.question
        if approval is None or asked is None or "tap" in message.body:
            return _UNTRUE
        mark = marker(ref, self._database.instance_id, f"question:{approval.id}.{approval.salt}")
        body = render_note_question(asked, mark)
        if approval.event_id.isdecimal():
            if asked.is_open:
                return Sent("dropped: it is asked already")
            note_id = int(approval.event_id)
            await self._requests.make(message, lambda: self._gitlab.edit_note(ref, note_id, body))
            return Sent(str(note_id))
        if not asked.is_open and not message.attempted:
            return Sent("dropped: it is not asked any more")
        posted = await self._reply(ref, approval.thread, message, mark, body)

        def keep(tx: Transaction) -> None:
            if now := approvals.get(tx, approval.id):
                approvals.save(tx, replace(now, event_id=str(posted)))
            if facts.conversation is not None:
                conversations.add_event(tx, facts.conversation.place, str(posted), facts.conversation.id)

        return Sent(str(posted), keep)

    async def _remark(self, ref: MergeRequestRef, message: Message, facts: TalkFacts) -> Sent:
        conversation = facts.conversation
        if conversation is None:
            return _UNTRUE
        mark = self._marker(ref, message)
        body = render_note_remark(str(message.body.get("text", "")), mark)
        note_id = await self._reply(ref, conversation.thread, message, mark, body)
        keep = str(note_id)
        return Sent(keep, lambda tx: conversations.add_event(tx, conversation.place, keep, conversation.id))

    async def _reply(self, ref: MergeRequestRef, thread: str, message: Message, mark: str, body: str) -> int:
        """Post in a discussion, or as a comment of its own where there is none."""
        # A restored backup has rows as unsent that were sent after the backup was made.
        may_be_there = message.attempted or message.created_at < self._database.opened_at
        gitlab, me = self._gitlab, await self._requests.own_id() if may_be_there else 0
        if not thread:
            if may_be_there and (found := await gitlab.find_note(ref, me, mark)) is not None:
                return found
            return await self._requests.post(message, lambda: gitlab.create_note(ref, body))
        if may_be_there and (found := await gitlab.discussions.find_reply(ref, thread, me, mark)) is not None:
            return found
        return await self._requests.post(message, lambda: gitlab.discussions.reply(ref, thread, body))

    def _marker(self, ref: MergeRequestRef, message: Message) -> str:
        return marker(ref, self._database.instance_id, f"{message.kind.value}:{message.key}")
