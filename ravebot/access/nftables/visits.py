"""The access audit: what was counted, what of that was reported, and what to save when the table is rewritten.

All of it is stored in the kernel, beside the counters, so that a restart of ravebot neither repeats nor loses a visit.
The last reading is also kept here, in case someone flushes the tables.
"""

from __future__ import annotations

from datetime import datetime

from ravebot.access.nftables.counts import Totals, Visitor, from_text, grown, merged, to_text, totals
from ravebot.access.nftables.nft import JsonObject
from ravebot.access.nftables.ruleset import AUDIT_TIMEOUT_SECONDS
from ravebot.access.nftables.snapshot import Snapshot
from ravebot.access.rules import Connections


class Visits:
    """The audit of one table."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._counted: dict[Visitor, Totals] = {}
        self._told: dict[Visitor, Totals] = {}
        self._saved: tuple[Connections, ...] = ()
        self._reported_at: datetime | None = None

    def update(self, found: Snapshot, now: datetime) -> None:
        """Replace the last reading."""
        self._counted = totals(found.seen, found.dropped, found.traffic, now, AUDIT_TIMEOUT_SECONDS)
        self._told = {visitor: Totals.parse(text) for visitor, text in found.told.items()}
        saved = (from_text(visitor, text) for visitor, text in found.saved.items())
        self._saved = tuple(visit for visit in saved if visit is not None)

    def unread(self) -> tuple[Connections, ...]:
        """What was not reported yet, one entry for each visitor."""
        return merged([*self._saved, *grown(self._counted, self._told, self._reported_at)])

    def save_unread(self) -> list[JsonObject]:
        """nft commands that save what is unread, for a transaction that rewrites the table."""
        return self._add("saved", {Visitor(visit.source, visit.port): to_text(visit) for visit in self.unread()})

    def mark_reported(self, found: Snapshot) -> list[JsonObject]:
        """nft commands that mark `found` as reported. A crash right after them may lose visits, never repeat them."""
        told = {visitor: str(total) for visitor, total in self._counted.items()}
        outdated = [visitor for visitor, text in found.told.items() if told.get(visitor) != text]
        fresh = {visitor: text for visitor, text in told.items() if found.told.get(visitor) != text}
        return [
            *self._delete("saved", list(found.saved)),
            *self._delete("told", outdated),
            *self._add("told", fresh),
            *(self._reset(name) for name, count in found.uncounted.items() if count.packets),
        ]

    def take_unread(self, now: datetime) -> tuple[Connections, ...]:
        """What is unread; it counts as reported from here on."""
        unread = self.unread()
        self._saved = ()
        self._told = dict(self._counted)
        self._reported_at = now
        return unread

    def _delete(self, name: str, visitors: list[Visitor]) -> list[JsonObject]:
        return self._change("delete", name, [_key(visitor) for visitor in visitors])

    def _add(self, name: str, texts: dict[Visitor, str]) -> list[JsonObject]:
        return self._change(
            "add", name, [{"elem": {"val": _key(visitor), "comment": text}} for visitor, text in texts.items()]
        )

    def _reset(self, counter: str) -> JsonObject:
        return {"reset": {"counter": {"family": "inet", "table": self._table, "name": counter}}}

    def _change(self, verb: str, name: str, elements: list[JsonObject]) -> list[JsonObject]:
        target: JsonObject = {"family": "inet", "table": self._table, "name": name, "elem": elements}
        return [{verb: {"element": target}}] if elements else []


def _key(visitor: Visitor) -> JsonObject:
    return {"concat": list(visitor)}
