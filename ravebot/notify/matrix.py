"""Sends to rooms: the card and its edits, messages in its thread, warnings, replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ravebot.config.model import MatrixConfig
from ravebot.errors import Forbidden, NotFound, RavebotError, Unacceptable
from ravebot.matrix.answers import LoginLost
from ravebot.matrix.cards import render_card, render_history, render_news, render_said, render_warning
from ravebot.matrix.content import edit_of, in_thread
from ravebot.notify.delivery import Sent
from ravebot.notify.warnings import is_due
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.model import SandboxId
from ravebot.sandboxes.view import HistoryLine, SandboxView
from ravebot.store import outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.outbox import Card, Message
from ravebot.store.targets import Kind


class RoomClient(Protocol):
    """Sends events to rooms, from one Matrix account."""

    async def send(self, room_id: str, content: Mapping[str, object], txn_id: str) -> str: ...


class Directory(Protocol):
    """The configured rooms; `refused` is called when one of them rejects a message."""

    async def ensure(self, name: str) -> str: ...

    def refused(self, name: str, error: RavebotError) -> None: ...


@dataclass(frozen=True)
class _RoomFacts:
    """The current state of what a row is about."""

    view: SandboxView | None = None
    card: Card | None = None  # in the room that the row goes to
    due: bool = True  # whether a warning is still true


class MatrixSender:
    """Renders a row from the current state, and sends it under its own transaction id, so that it arrives once."""

    def __init__(
        self, config: MatrixConfig, database: Database, views: Views, client: RoomClient, rooms: Directory
    ) -> None:
        self._config = config
        self._database = database
        self._views = views
        self._client = client
        self._rooms = rooms
        self._names = config.room_names
        self._owners = {username: user_id for user_id, username in config.users.items()}

    def look(self, tx: Transaction, message: Message) -> _RoomFacts:
        if message.sandbox_id is None:
            return _RoomFacts()
        sandbox_id = SandboxId(message.sandbox_id)
        view = self._views.one(tx, sandbox_id)
        due = message.kind is not Kind.WARNING or (view is not None and is_due(tx, message, view.sandbox))
        return _RoomFacts(view, outbox.card(tx, sandbox_id, message.lane), due)

    async def send(self, message: Message, facts: _RoomFacts) -> Sent:
        configured = message.lane in self._names
        if not configured and (message.kind is not Kind.REPLY or not message.lane.startswith("!")):
            return Sent("dropped: the room is not configured any more")
        room_id = await self._rooms.ensure(message.lane) if configured else message.lane
        # The name may mean another room since the card was posted.
        card = facts.card.event_id if facts.card and facts.card.room_id == room_id else None
        content = self._content(message, facts, card)
        if content is None:
            return Sent("dropped: nothing to tell any more")
        try:
            event_id = await self._put(message, room_id, content)
        except (LoginLost, Unacceptable):
            raise
        except (Forbidden, NotFound) as error:
            if not configured:  # the person who asked removed us from their room: nobody waits for the answer
                return Sent(f"dropped: {error}")
            self._rooms.refused(message.lane, error)
            raise
        sandbox_id = message.sandbox_id
        if message.kind is Kind.CARD and card is None and sandbox_id is not None:
            return Sent(event_id, lambda tx: outbox.set_card(tx, sandbox_id, message.lane, room_id, event_id))
        return Sent(event_id)

    async def _put(self, message: Message, room_id: str, content: Mapping[str, object]) -> str:
        transaction = f"rave-{self._database.instance_id}-{message.key}"
        try:
            return await self._client.send(room_id, content, transaction)
        except Unacceptable:
            if message.kind is not Kind.REPLY or "m.relates_to" not in content:
                raise
        # A reply names the thread that the person's message named, and a server refuses a thread that it does not know.
        # Then it is sent outside of the thread, under another transaction id, because its content is different.
        plain = {key: value for key, value in content.items() if key != "m.relates_to"}
        return await self._client.send(room_id, plain, f"{transaction}-plain")

    def _content(self, message: Message, facts: _RoomFacts, card: str | None) -> Mapping[str, object] | None:
        if message.kind is Kind.REPLY:
            content = message.body.get("content")
            return content if isinstance(content, dict) else None
        if message.kind is Kind.NEWS:
            return render_news(str(message.body.get("text", "")))
        view = facts.view
        if view is None or not facts.due:
            return None
        line = HistoryLine(message.created_at, str(message.body.get("text", "")))
        match message.kind:
            case Kind.CARD:
                rendered = render_card(view, self._config.command_prefix)
                return edit_of(card, rendered) if card else rendered
            case Kind.HISTORY:
                return in_thread(card, render_history(line)) if card else render_history(line)
            case Kind.SAY:
                return render_said(view, line)
            case Kind.WARNING:
                return render_warning(view, self._owners.get(view.mr.author.username), self._config.command_prefix)
        return None
