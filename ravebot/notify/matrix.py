"""Tells the rooms: the card and its edits, its thread, warnings, replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ravebot.config import MatrixConfig
from ravebot.matrix.cards import render_card, render_history, render_said, render_warning
from ravebot.matrix.content import edit_of, in_thread
from ravebot.notify.delivery import Sent
from ravebot.sandboxes.model import SandboxId
from ravebot.sandboxes.view import HistoryLine, SandboxView
from ravebot.sandboxes.views import Views
from ravebot.store import outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.outbox import Kind, Message


class Room(Protocol):
    """Sends to one Matrix account's rooms."""

    async def send(self, room_id: str, content: Mapping[str, object], txn_id: str) -> str: ...


class Directory(Protocol):
    async def ensure(self, name: str) -> str: ...


class MatrixSender:
    """Renders a row as it is true now, and sends it under a transaction id of its own: twice is once."""

    def __init__(self, config: MatrixConfig, database: Database, views: Views, client: Room, rooms: Directory) -> None:
        self._config = config
        self._database = database
        self._views = views
        self._client = client
        self._rooms = rooms
        self._names = {room.room for room in config.rooms}
        self._owners = {username: user_id for user_id, username in config.users.items()}

    async def send(self, message: Message) -> Sent:
        if message.lane not in self._names and not message.lane.startswith("!"):
            return Sent("dropped: the room is not configured any more")
        room_id = await self._rooms.ensure(message.lane) if message.lane in self._names else message.lane
        view, card = await self._database.read(lambda tx: self._look(tx, message))
        content = self._content(message, view, card)
        if content is None:
            return Sent("dropped: nothing to tell any more")
        event_id = await self._client.send(room_id, content, f"rave-{self._database.instance_id}-{message.id}")
        sandbox_id = message.sandbox_id
        if message.kind is Kind.CARD and card is None and sandbox_id is not None:
            return Sent(event_id, lambda tx: outbox.set_card(tx, sandbox_id, message.lane, event_id))
        return Sent(event_id)

    def _look(self, tx: Transaction, message: Message) -> tuple[SandboxView | None, str | None]:
        if message.sandbox_id is None:
            return None, None
        sandbox_id = SandboxId(message.sandbox_id)
        return self._views.one(tx, sandbox_id), outbox.card(tx, sandbox_id, message.lane)

    def _content(self, message: Message, view: SandboxView | None, card: str | None) -> Mapping[str, object] | None:
        if message.kind is Kind.REPLY:
            content = message.body.get("content")
            return content if isinstance(content, dict) else None
        if view is None:
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
                if not view.live:
                    return None
                return render_warning(view, self._owners.get(view.mr.author.username), self._config.command_prefix)
        return None
