"""Sends what rooms show of conversations with agents: answers and their edits, receipts, questions, remarks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import structlog

from ravebot.agents.model import (
    Approval,
    Receipt,
    Turn,
)
from ravebot.agents.telling import MOST_EDITS
from ravebot.config.model import MatrixConfig
from ravebot.errors import Forbidden, NotFound, Unacceptable, Unavailable
from ravebot.matrix.agents import (
    NO,
    RECEIPTS,
    YES,
    Shown,
    Speaker,
    reaction,
    render_answer,
    render_file,
    render_question,
    render_remark,
    whole_answer,
)
from ravebot.matrix.answers import LoginLost
from ravebot.matrix.cards import digest
from ravebot.matrix.content import Content, edit_of, in_thread
from ravebot.notify.delivery import Sent
from ravebot.notify.talks import TalkFacts, TalkLook
from ravebot.store import approvals, conversations, outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.outbox import Message
from ravebot.store.targets import Kind, RoomLane

log = structlog.get_logger()
T = TypeVar("T")

_LONG = 2000
"""Characters of a text that is rendered beside the event loop."""
_DUPLICATE = "M_DUPLICATE_ANNOTATION"
_NO_FILE = (
    "The homeserver did not take the file with the whole text, so not all of it is shown here: ask its admin whether"
    " uploads are allowed for ravebot's account, and how large they may be."
)
_ASK_AGAIN_SECONDS = 60.0
_UNTRUE = Sent("dropped: nothing to tell any more")


class ConversationClient(Protocol):
    """The requests that conversations need, from one Matrix account."""

    async def send(
        self, room_id: str, content: Mapping[str, object], txn_id: str, event_type: str = "m.room.message"
    ) -> str: ...

    async def redact(self, room_id: str, event_id: str, txn_id: str) -> str: ...

    async def upload(self, data: bytes, name: str, kind: str) -> str: ...

    async def display_name(self, user_id: str) -> str: ...


class ConversationSender:
    """Renders a row about a conversation from the current state, and sends it so that it arrives once.

    Every request has a transaction id of the row's, so that a row that was tried before does not send again. All
    messages go to the thread of the conversation, and are remembered, so that a reply to one is known.
    """

    def __init__(self, config: MatrixConfig, database: Database, client: ConversationClient) -> None:
        self._config = config
        self._looks = TalkLook(config)
        self._database = database
        self._client = client
        # A hostile text takes a tenth of a second to parse.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="render")

    def look(self, tx: Transaction, message: Message) -> TalkFacts:
        return self._looks.look(tx, message)

    async def send(self, message: Message, facts: TalkFacts, room_id: str) -> Sent:
        match message.kind:
            case Kind.ANSWER:
                return await self._answer(message, facts, room_id)
            case Kind.RECEIPT:
                return await self._receipt(message, facts, room_id)
            case Kind.QUESTION:
                return await self._question(message, facts, room_id)
            case _:
                return await self._remark(message, facts, room_id)

    async def _answer(self, message: Message, facts: TalkFacts, room_id: str) -> Sent:
        """Post the answer or edit it to what it is now; at the end, with a file if not all of it can be shown."""
        conversation, speaker, turn, shown = facts.conversation, facts.speaker, facts.turn, facts.shown
        if conversation is None or speaker is None or turn is None or shown is None:
            return _UNTRUE
        is_last = bool(message.body.get("last"))
        event_id = shown.answer_event if facts.answer_place == room_id else ""
        # Unless it may have been posted by this row before a crash: then it is learnt what its event is.
        if turn.state.is_over and not is_last and (event_id or not message.attempted):
            return Sent("dropped: the last edit comes next")
        answer = await self._rendered(
            turn, lambda: render_answer(turn, speaker, last_edit=not is_last and shown.edits + 1 >= MOST_EDITS)
        )
        is_quiet = bool(event_id) and not is_last
        fresh = digest(answer.content | {"quiet": True}) if is_quiet else digest(answer.content)
        edits = bool(event_id) and shown.shown != fresh
        if edits:
            edit = edit_of(event_id, answer.content)
            try:
                await self._put(message, room_id, _quiet(edit) if is_quiet else edit, "-edit")
            except LoginLost:
                raise
            except (Forbidden, NotFound) as error:
                if not message.attempted:
                    raise
                log.warning("edit of an answer given up", room=message.lane, row=message.id, error=str(error))
                return Sent(f"refused: {error}")
        elif not event_id:
            event_id = await self._tell(message, room_id, conversation.thread, answer.content)
        sent = [event_id]
        if is_last and not answer.whole:
            name = f"{conversation.agent}-{turn.id}.md"
            sent.append(await self._file(message, room_id, conversation.thread, name, whole_answer(turn), speaker))
        # An earlier try may have sent an older text under the same transaction id.
        known = "" if message.attempted else fresh

        def keep(tx: Transaction) -> None:
            conversations.show_answer(tx, turn.id, event_id, known, edited=edits)
            for one in sent:
                conversations.add_event(tx, room_id, one, conversation.id)

        return Sent(event_id, keep)

    async def _receipt(self, message: Message, facts: TalkFacts, room_id: str) -> Sent:
        """Exchange the reaction on the person's message.

        A row that was tried before goes on with the same receipt, also if it is not true any more: the room may show it
        already, and the row of the one that took its place comes next.
        """
        conversation, turn, shown = facts.conversation, facts.turn, facts.shown
        receipt = Receipt(str(message.body.get("receipt")))
        if conversation is None or turn is None or shown is None or not facts.said_event.startswith("$"):
            return _UNTRUE
        if not facts.newest or room_id != conversation.place or shown.receipt == receipt:
            return _UNTRUE
        if turn.receipt is not receipt and not message.attempted:
            return _UNTRUE
        cleared = [other for other in (*facts.others, shown) if other.receipt]
        for number, other in enumerate(cleared):
            if other.receipt_event:
                await self._redact(message, room_id, other.receipt_event, f"-redact{number}")
        content = reaction(facts.said_event, RECEIPTS[receipt])
        event_id, result = "", "the message has it from another agent"
        try:
            event_id = result = await self._put(message, room_id, content, "-react", "m.reaction")
        except LoginLost:
            raise
        except (Forbidden, NotFound) as error:
            if _DUPLICATE not in str(error):
                result = _dropped(message, error).result

        def keep(tx: Transaction) -> None:
            for other in cleared:
                conversations.show_receipt(tx, other.turn_id, "", "")
            conversations.show_receipt(tx, turn.id, receipt, event_id)

        return Sent(result, keep)

    async def _redact(self, message: Message, room_id: str, event_id: str, another: str) -> None:
        try:
            await self._client.redact(room_id, event_id, self._transaction(message, another))
        except LoginLost:
            raise
        except (Forbidden, NotFound) as error:  # it is gone already, or will stay
            log.warning("reaction could not be removed", room=message.lane, row=message.id, error=str(error))

    async def _question(self, message: Message, facts: TalkFacts, room_id: str) -> Sent:
        """Ask, once; after the answer, say so in the same message."""
        approval, asked = facts.approval, facts.question
        if approval is None or asked is None:
            return _UNTRUE
        if "tap" in message.body:
            return await self._tap(message, approval, room_id) if asked.is_open else _UNTRUE
        people = [(user_id, await self._client.display_name(user_id)) for user_id in asked.mentions]
        by = await self._client.display_name(asked.by) if asked.by else ""
        shown = await self._beside(
            approval.payload,
            lambda: render_question(asked, self._config.command_prefix, people, facts.speaker, by),
        )
        if approval.event_id and approval.place == room_id:
            if asked.is_open:
                return Sent("dropped: it is asked already")
            edit = _quiet(edit_of(approval.event_id, shown.content))
            return await self._edit(message, room_id, edit)
        if not asked.is_open and not message.attempted:
            return Sent("dropped: it is not asked any more")
        event_id = await self._tell(message, room_id, approval.thread, shown.content)
        sent = [event_id]
        if not shown.whole:
            name = f"question-{asked.number}-{approval.payload_hash}.txt"
            sent.append(await self._file(message, room_id, approval.thread, name, approval.payload))
        lane = RoomLane.read(message.lane)

        def keep(tx: Transaction) -> None:
            now = approvals.get(tx, approval.id)
            if now is not None:
                approvals.shown_by(tx, now, room_id, event_id)
            for number in (1, 2):
                outbox.add(tx, lane, Kind.QUESTION, body={"approval": approval.id, "tap": number})
            if facts.conversation is not None:
                for one in sent:
                    conversations.add_event(tx, room_id, one, facts.conversation.id)

        return Sent(event_id, keep)

    async def _tap(self, message: Message, approval: Approval, room_id: str) -> Sent:
        """A reaction of our own to the question, so that people only tap on it."""
        sign = YES if message.body["tap"] == 1 else NO
        if not approval.event_id or approval.place != room_id:
            return _UNTRUE
        try:
            content = reaction(approval.event_id, sign)
            return Sent(await self._put(message, room_id, content, "-react", "m.reaction"))
        except LoginLost:
            raise
        except (Forbidden, NotFound) as error:
            return _dropped(message, error)

    async def _remark(self, message: Message, facts: TalkFacts, room_id: str) -> Sent:
        conversation = facts.conversation
        if conversation is None:
            return _UNTRUE
        content = render_remark(str(message.body.get("text", "")))
        event_id = await self._tell(message, room_id, conversation.thread, content)
        return Sent(event_id, lambda tx: conversations.add_event(tx, room_id, event_id, conversation.id))

    async def _file(
        self, message: Message, room_id: str, thread: str, name: str, text: str, speaker: Speaker | None = None
    ) -> str:
        """Upload a text and post it in the thread. After a crash between the two it is uploaded again, posted once."""
        data = text.encode("utf-8", "replace")
        try:
            address = await self._client.upload(data, name, "text/plain; charset=utf-8")
        except LoginLost:
            raise
        except (Forbidden, NotFound) as error:
            log.warning("file was not taken", room=room_id, name=name, error=str(error))
            return await self._tell(message, room_id, thread, render_remark(_NO_FILE), "-no-file")
        return await self._tell(message, room_id, thread, render_file(name, address, len(data), speaker), "-file")

    async def _tell(self, message: Message, room_id: str, thread: str, content: Content, another: str = "") -> str:
        """Post in a thread; beside it where the server refuses the thread, which it may not know."""
        if not thread:
            return await self._put(message, room_id, content, another)
        try:
            return await self._put(message, room_id, in_thread(thread, content), another)
        except Unacceptable:
            return await self._put(message, room_id, content, f"{another}-plain")

    async def _edit(self, message: Message, room_id: str, edit: Content) -> Sent:
        try:
            return Sent(await self._put(message, room_id, edit, "-edit"))
        except LoginLost:
            raise
        except (Forbidden, NotFound) as error:
            return _dropped(message, error)

    async def _put(
        self, message: Message, room_id: str, content: Content, another: str = "", kind: str = "m.room.message"
    ) -> str:
        return await self._client.send(room_id, content, self._transaction(message, another), kind)

    def _transaction(self, message: Message, another: str) -> str:
        return f"rave-{self._database.instance_id}-{message.key}{another}"

    async def _rendered(self, turn: Turn, render: Callable[[], Shown]) -> Shown:
        return await self._beside(turn.answer, render)

    async def _beside(self, text: str, render: Callable[[], T]) -> T:
        """Render, in a thread if it may take a while."""
        if len(text) <= _LONG:
            return render()
        return await asyncio.get_running_loop().run_in_executor(self._pool, render)


def _quiet(edit: Content) -> Content:
    """An edit that no client tells its user of: some do not know the rule `.m.rule.suppress_edits`, and tell of all but
    notices. They show what was edited as a notice, too, so the last edit of an answer is a text."""
    return edit | {"msgtype": "m.notice"}


def _dropped(message: Message, error: Forbidden | NotFound) -> Sent:
    """Give up what is refused, because the message that it is about was removed, or the room allows it to nobody. The
    room may also refuse everything for a while, so it is tried once more."""
    if not message.attempted and not isinstance(error, Unacceptable):
        raise Unavailable(str(error), _ASK_AGAIN_SECONDS)
    log.info("not shown in the room", room=message.lane, row=message.id, error=str(error))
    return Sent(f"dropped: {error}")
