"""Sends alerts to the operators' room: one message for each, which is edited when its alert is resolved."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ravebot.matrix.alerts import render_alert
from ravebot.matrix.cards import digest
from ravebot.matrix.content import Content, edit_of
from ravebot.notify.delivery import Sent
from ravebot.store import alerts
from ravebot.store.alerts import KnownAlert
from ravebot.store.database import Transaction
from ravebot.store.outbox import Message

Put = Callable[[Content], Awaitable[str]]
PutEdit = Callable[[Content], Awaitable[Sent]]


def alert_of(tx: Transaction, message: Message) -> KnownAlert | None:
    """The alert that a row is about, as it is now."""
    number = message.body.get("alert")
    return alerts.get(tx, number) if isinstance(number, int) else None


async def send_alert(message: Message, alert: KnownAlert, room_id: str, put: Put, put_edit: PutEdit) -> Sent:
    """Post the alert's message, or edit it to what is so now. `put` and `put_edit` send under the row's own transaction
    id."""
    content = render_alert(alert)
    # A row that was tried before may have sent an older text under the same transaction id.
    shown = "" if message.attempted else digest(content)
    if not alert.event_id or alert.room_id != room_id:
        posted = await put(content)
        return Sent(posted, lambda tx: alerts.posted(tx, alert.id, room_id, posted, shown))
    if alert.shown == digest(content):
        return Sent("dropped: the message shows this already")
    sent = await put_edit(edit_of(alert.event_id, content))
    return Sent(sent.result, lambda tx: alerts.posted(tx, alert.id, room_id, alert.event_id, shown))
