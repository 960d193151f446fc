"""Takes alerts: what the operators' room has to be told of each is committed with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ravebot.clock import from_us, is_due
from ravebot.store import alerts, outbox
from ravebot.store.alerts import Alert, Heard, KnownAlert
from ravebot.store.database import Database, Transaction, get_meta, set_meta
from ravebot.store.targets import Kind, RoomLane

_DELIVERED = "alerts_delivered_at"
_LEFT_OUT_TOLD = "alerts_left_out_told_at"
_TELL_AGAIN = timedelta(days=1)
_MORE = (
    "Alertmanager tells of more alerts than ravebot shows here: look at Alertmanager itself. ravebot takes at most"
    f" 100 of one delivery, and shows at most {alerts.MOST_FIRING} that fire at the same time."
)


@dataclass(frozen=True)
class AlertIntake:
    """`room`: the operators' room, as configured."""

    database: Database
    room: str

    async def take(self, found: Sequence[Alert], left_out: int) -> Counter[Heard]:
        """Store alerts and queue their messages; returns how many meant what. `left_out`: how many more there are that
        are not given. Raises StoreError."""
        return await self.database.write(lambda tx: self._take(tx, found, left_out), urgent=True)

    def _take(self, tx: Transaction, found: Sequence[Alert], left_out: int) -> Counter[Heard]:
        meant = Counter[Heard]()
        for alert in found:
            heard, known = alerts.hear(tx, alert, self.room)
            meant[heard] += 1
            for one in known:
                _tell(tx, one)
        meant[Heard.LEFT_OUT] += left_out
        if meant[Heard.LEFT_OUT] and is_due(_moment(tx, _LEFT_OUT_TOLD), _TELL_AGAIN, tx.now):
            set_meta(tx, _LEFT_OUT_TOLD, str(tx.now_us))
            outbox.add(tx, RoomLane(self.room), Kind.NEWS, body={"text": _MORE})
        set_meta(tx, _DELIVERED, str(tx.now_us))
        return +meant


def delivered_at(tx: Transaction) -> datetime | None:
    """When Alertmanager sent something last."""
    return _moment(tx, _DELIVERED)


def _tell(tx: Transaction, alert: KnownAlert) -> None:
    lane, key = RoomLane(alert.room, alerts=True), f"alert:{alert.id}"
    outbox.add(tx, lane, Kind.ALERT, body={"alert": alert.id}, merge_key=key)


def _moment(tx: Transaction, key: str) -> datetime | None:
    found = get_meta(tx, key)
    return from_us(int(found)) if found else None
