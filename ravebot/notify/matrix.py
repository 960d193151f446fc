"""Sends to rooms: the card and its edits, lines in its thread, warnings, replies; what agents say is sent by
`ConversationSender`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import structlog

from ravebot.agents.registry import default_of, serving
from ravebot.config.model import MatrixConfig
from ravebot.errors import Forbidden, NotFound, RavebotError, Unacceptable
from ravebot.matrix.agents import render_file
from ravebot.matrix.answers import LoginLost
from ravebot.matrix.cards import (
    Owner,
    Style,
    as_text,
    digest,
    news,
    render_card,
    render_line,
    render_news,
    render_over,
    render_warning,
)
from ravebot.matrix.content import Content, calling_edit, edit_of, in_thread
from ravebot.matrix.text import one_line
from ravebot.notify.alerts import alert_of, send_alert
from ravebot.notify.conversations import ConversationClient, ConversationSender
from ravebot.notify.delivery import Sent
from ravebot.notify.talks import TALK_KINDS, TalkFacts
from ravebot.notify.warnings import is_due
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.model import MergeRequest, SandboxId
from ravebot.sandboxes.view import SandboxView
from ravebot.sandboxes.wording import calls_owner
from ravebot.store import outbox, sandboxes
from ravebot.store.alerts import KnownAlert
from ravebot.store.database import Database, Transaction
from ravebot.store.outbox import Card, Message
from ravebot.store.targets import Kind, RoomLane

log = structlog.get_logger()

_UNTRUE = Sent("dropped: nothing to tell any more")


class RoomClient(Protocol):
    """Sends messages to rooms, from one Matrix account."""

    async def send(self, room_id: str, content: Mapping[str, object], txn_id: str) -> str: ...


class Directory(Protocol):
    """The configured rooms; `refused` is called when one of them rejects a message."""

    async def ensure(self, name: str) -> str: ...

    def refused(self, name: str, error: RavebotError) -> None: ...


@dataclass(frozen=True)
class _RoomFacts:
    """The current state of what a row is about, and what the room shows of it."""

    view: SandboxView | None = None
    card: Card | None = None
    warning: Card | None = None  # the event of the warning that the row is about
    due: bool = False  # whether the warning that the row is about is still true
    superseded: bool = False  # whether a newer sandbox took its place
    calls: bool = False  # whether the owner is to be notified of the state
    alert: KnownAlert | None = None


class MatrixSender:
    """Renders a row from the current state, and sends it under its own transaction id, so that it arrives once."""

    def __init__(
        self, config: MatrixConfig, database: Database, views: Views, client: ConversationClient, rooms: Directory
    ) -> None:
        self._config = config
        self._database = database
        self._views = views
        self._client = client
        self._rooms = rooms
        self._names = config.room_names
        self._talk = ConversationSender(config, database, client)
        self._owners = {username: user_id for user_id, username in config.users.items()}

    def look(self, tx: Transaction, message: Message) -> _RoomFacts | TalkFacts:
        if message.kind in TALK_KINDS:
            return self._talk.look(tx, message)
        if message.kind is Kind.ALERT:
            return _RoomFacts(alert=alert_of(tx, message))
        if message.sandbox_id is None:
            return _RoomFacts()
        sandbox_id, room = SandboxId(message.sandbox_id), message.lane
        view = self._views.one(tx, sandbox_id)
        if view is None:
            return _RoomFacts()
        threshold = message.body.get("threshold")
        latest = sandboxes.latest(tx, view.sandbox.mr)
        superseded = latest is not None and latest.id != sandbox_id
        card = outbox.card(tx, sandbox_id, room)
        if card is None and latest and message.kind is Kind.HISTORY:
            card = outbox.card(tx, latest.id, room)  # it went on in the card
        return _RoomFacts(
            view,
            card,
            outbox.given_warning(tx, sandbox_id, room, threshold) if isinstance(threshold, int) else None,
            due=is_due(tx, message, view.sandbox),
            superseded=superseded,
            calls=message.kind is Kind.CALL and calls_owner(view) and not outbox.superseded(tx, message),
        )

    async def send(self, message: Message, facts: _RoomFacts | TalkFacts) -> Sent:
        lane = RoomLane.read(message.lane)
        configured = lane.room in self._names
        # Answers and conversations are also in direct chats, which have no name.
        by_id = lane.room.startswith("!") and (message.kind is Kind.REPLY or message.kind in TALK_KINDS)
        if not configured and not by_id:
            return Sent("dropped: the room is not configured any more")
        room_id = await self._rooms.ensure(lane.room) if configured else lane.room
        try:
            if isinstance(facts, TalkFacts):
                return await self._talk.send(message, facts, room_id)
            return await self._tell(message, facts, room_id)
        except (LoginLost, Unacceptable):
            raise
        except (Forbidden, NotFound) as error:
            if not configured:  # the person who asked removed us from their room: nobody waits for the answer
                return Sent(f"dropped: {error}")
            self._rooms.refused(lane.room, error)
            raise

    async def _tell(self, message: Message, facts: _RoomFacts, room_id: str) -> Sent:
        if message.kind is Kind.REPLY:
            return await self._reply(message, room_id)
        if message.kind is Kind.NEWS:
            return Sent(await self._put(message, room_id, render_news(str(message.body.get("text", "")))))
        if facts.alert is not None:
            return await send_alert(
                message,
                facts.alert,
                room_id,
                partial(self._put, message, room_id),
                partial(self._put_edit, message, room_id),
            )
        view = facts.view
        if view is None:
            return _UNTRUE
        # The name may mean another room since the card was posted.
        card = facts.card if facts.card and facts.card.room_id == room_id else None
        warning = facts.warning if facts.warning and facts.warning.room_id == room_id else None
        match message.kind:
            case Kind.CALL if "threshold" in message.body:
                return await self._call_to_warning(message, view, warning if facts.due else None)
            case Kind.CARD | Kind.CALL:
                if card is None and facts.superseded:
                    return _UNTRUE  # the newer one's card is this one's, or comes next
                return await self._card(message, facts, view, card, room_id)
            case Kind.WARNING:
                return await self._warn(message, view, room_id) if facts.due else _UNTRUE
            case Kind.OVER:
                return await self._over(message, view, warning)
            case _:
                return await self._line(message, view, card, room_id)

    async def _reply(self, message: Message, room_id: str) -> Sent:
        content = message.body.get("content")
        if not isinstance(content, dict):
            return _UNTRUE
        try:
            event_id = await self._put(message, room_id, content)
        except Unacceptable:
            if "m.relates_to" not in content:
                raise
            # A reply names the thread that the person's message named, and a server refuses a thread that it does not
            # know. Then it is sent outside of the thread, under another transaction id, as its content is different.
            content = {key: value for key, value in content.items() if key != "m.relates_to"}
            event_id = await self._put(message, room_id, content, "-plain")
        await self._attach(message, room_id, content)
        return Sent(event_id)

    async def _attach(self, message: Message, room_id: str, content: Content) -> None:
        """Send the file that belongs to a reply. After a crash it may be uploaded again; it is posted once."""
        file = message.body.get("file")
        if not isinstance(file, dict):
            return
        data, name = str(file["text"]).encode("utf-8", "replace"), str(file["name"])
        try:
            address = await self._client.upload(data, name, "text/plain; charset=utf-8")
        except Unacceptable as error:  # the server's limit; the reply has the beginning
            log.warning("file was not taken", room=room_id, name=name, error=str(error))
            return
        relation = {"m.relates_to": content["m.relates_to"]} if "m.relates_to" in content else {}
        await self._put(message, room_id, render_file(name, address, len(data)) | relation, "-file")

    async def _card(
        self, message: Message, facts: _RoomFacts, view: SandboxView, card: Card | None, room_id: str
    ) -> Sent:
        """Post the card or edit it; with `CALL`, so that its owner is notified."""
        calls = await self._owner(view) if facts.calls and self._config.mentions == "edit" else None
        day = card.posted_at if card else None
        content = render_card(view, self._style(message, view), day=day, replaced=card is not None and card.replaced)
        if card is None:
            posted = await self._put(message, room_id, content)
            return self._posted(message, Card(room_id, posted), content, calls)
        if not card.event_id:
            return await self._card_anew(message, view, card, calls)
        if card.shown == digest(content) and calls is None:
            return Sent("dropped: the card shows this already")
        try:
            sent = await self._put(message, room_id, _edit(card.event_id, content, calls, view))
        except LoginLost:
            raise
        except (Unacceptable, Forbidden, NotFound) as error:
            if card.replaced:
                return _given_up(message, error)
            log.warning("card could not be edited, posting another", room=message.lane, error=str(error))
            return await self._card_anew(message, view, card, calls)
        sandbox_id, shown = view.sandbox.id, _shown(message, content)
        return Sent(sent, lambda tx: outbox.card_shows(tx, sandbox_id, message.lane, card, shown))

    async def _card_anew(self, message: Message, view: SandboxView, card: Card, calls: Owner | None) -> Sent:
        """Post another card, that says so, once: who removes that one as well wants none."""
        if card.replaced:
            return Sent("dropped: the card was removed twice")
        content = render_card(view, self._style(message, view), replaced=True)
        posted = await self._put(message, card.room_id, content, "-anew")
        return self._posted(message, Card(card.room_id, posted, replaced=True), content, calls)

    def _posted(self, message: Message, card: Card, content: Content, calls: Owner | None) -> Sent:
        sandbox_id, room = SandboxId(message.sandbox_id or 0), message.lane

        def keep(tx: Transaction) -> None:
            outbox.set_card(tx, sandbox_id, room, replace(card, shown=_shown(message, content)))
            if calls:  # a notice was posted, which notifies nobody
                outbox.add(tx, RoomLane(room), Kind.CALL, sandbox_id=sandbox_id)

        return Sent(card.event_id, keep)

    async def _line(self, message: Message, view: SandboxView, card: Card | None, room_id: str) -> Sent:
        owner = await self._owner(view) if message.body.get("calls") and self._config.mentions == "message" else None
        content = render_line(view, str(message.body.get("text", "")), self._style(message), owner)
        if message.kind is Kind.HISTORY and card and card.event_id:
            content = in_thread(card.event_id, content)
        return Sent(await self._put(message, room_id, content))

    async def _warn(self, message: Message, view: SandboxView, room_id: str) -> Sent:
        owner = await self._owner(view) if self._config.mentions != "none" else None
        content = render_warning(view, self._style(message), owner)
        if owner is not None and self._config.mentions == "message":
            content = as_text(content, owner)
        event_id = await self._put(message, room_id, content)
        sandbox_id, room, body = view.sandbox.id, message.lane, message.body
        threshold = body.get("threshold")

        def keep(tx: Transaction) -> None:
            if isinstance(threshold, int):
                outbox.set_warning(tx, sandbox_id, room, threshold, room_id, event_id)
            if owner is not None and self._config.mentions == "edit":
                outbox.add(tx, RoomLane(room), Kind.CALL, sandbox_id=sandbox_id, body=body)

        return Sent(event_id, keep)

    async def _call_to_warning(self, message: Message, view: SandboxView, warning: Card | None) -> Sent:
        owner = await self._owner(view) if self._config.mentions == "edit" else None
        if owner is None or warning is None:
            return _UNTRUE
        content = render_warning(view, self._style(message), owner)
        edit = calling_edit(warning.event_id, content, owner.user_id, content["body"])
        return await self._put_edit(message, warning.room_id, edit)

    async def _over(self, message: Message, view: SandboxView, warning: Card | None) -> Sent:
        threshold = message.body.get("threshold")
        if warning is None or not isinstance(threshold, int):
            return Sent("dropped: the room was not warned")
        edit = edit_of(warning.event_id, render_over(view, self._style(message)))
        sent = await self._put_edit(message, warning.room_id, edit)
        return replace(sent, keep=lambda tx: outbox.warning_is_over(tx, view.sandbox.id, message.lane, threshold))

    async def _put_edit(self, message: Message, room_id: str, edit: Content) -> Sent:
        try:
            return Sent(await self._put(message, room_id, edit))
        except LoginLost:
            raise
        except (Forbidden, NotFound) as error:
            return _given_up(message, error)

    async def _put(self, message: Message, room_id: str, content: Mapping[str, object], another: str = "") -> str:
        transaction = f"rave-{self._database.instance_id}-{message.key}{another}"
        return await self._client.send(room_id, content, transaction)

    def _style(self, message: Message, view: SandboxView | None = None) -> Style:
        agent = self._agent(message.lane, view.mr) if view else ""
        return Style(self._config.command_prefix, self._config.short_refs(message.lane), agent)

    def _agent(self, room: str, mr: MergeRequest) -> str:
        """The agent to name in a card: the room's own one, else the first that serves the merge request."""
        config = self._views.config
        names = [one.name for one in serving(config, mr.project_path) if one.forks or not mr.from_fork]
        own = default_of(config, [room])
        return own if own in names else names[0] if names else ""

    async def _owner(self, view: SandboxView) -> Owner | None:
        user_id = self._owners.get(view.mr.author.username)
        if user_id is None:
            return None
        name = await self._client.display_name(user_id)
        return Owner(user_id, name if one_line(name) else user_id)


def _shown(message: Message, content: Content) -> str:
    """What the card shows then; not known for a row that was tried before, which may have sent an older text under the
    same transaction id."""
    return "" if message.attempted else digest(content)


def _given_up(message: Message, error: RavebotError) -> Sent:
    """Give up an edit that is refused, though the room takes messages: that was checked since the first refusal."""
    if not message.attempted or isinstance(error, Unacceptable):
        raise error
    log.warning("edit given up", room=message.lane, row=message.id, error=str(error))
    return Sent(f"refused: {error}")


def _edit(event_id: str, content: Content, calls: Owner | None, view: SandboxView) -> Content:
    return calling_edit(event_id, content, calls.user_id, news(view, calls)) if calls else edit_of(event_id, content)
