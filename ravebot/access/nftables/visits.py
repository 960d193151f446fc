"""Keeps the access audit's books: what was counted, what was handed out, what a rewrite of the table would have lost.

The books are in the kernel, beside the counters, so that a restart of ours neither repeats nor forgets a visit; what is
held here is their last reading, for the case that someone's flush takes them.
"""

from __future__ import annotations

from datetime import datetime

from ravebot.access.nftables.counts import Totals, Visitor, from_text, grown, merged, to_text, totals
from ravebot.access.nftables.nft import JsonObject
from ravebot.access.nftables.ruleset import AUDIT_TIMEOUT_SECONDS
from ravebot.access.nftables.snapshot import Snapshot
from ravebot.access.rules import Connections


class Visits:
    """The books of one table."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._counted: dict[Visitor, Totals] = {}
        self._told: dict[Visitor, Totals] = {}
        self._saved: tuple[Connections, ...] = ()
        self._handed_out_at: datetime | None = None

    def note(self, found: Snapshot, now: datetime) -> None:
        """Take over what the kernel's books say."""
        self._counted = totals(found.seen, found.dropped, found.traffic, now, AUDIT_TIMEOUT_SECONDS)
        self._told = {visitor: Totals.parse(text) for visitor, text in found.told.items()}
        saved = (from_text(visitor, text) for visitor, text in found.saved.items())
        self._saved = tuple(visit for visit in saved if visit is not None)

    def unread(self) -> tuple[Connections, ...]:
        """What is to be handed out, one entry for each visitor."""
        return merged([*self._saved, *grown(self._counted, self._told, self._handed_out_at)])

    def carry_over(self) -> list[JsonObject]:
        """nft commands that save what is unread in a table that is just being written anew."""
        return self._add("saved", {Visitor(visit.source, visit.port): to_text(visit) for visit in self.unread()})

    def settle(self, found: Snapshot) -> list[JsonObject]:
        """nft commands that note all of `found` as handed out: a crash right after may lose it, never repeat it."""
        told = {visitor: str(total) for visitor, total in self._counted.items()}
        outdated = [visitor for visitor, text in found.told.items() if told.get(visitor) != text]
        fresh = {visitor: text for visitor, text in told.items() if found.told.get(visitor) != text}
        return [
            *self._delete("saved", list(found.saved)),
            *self._delete("told", outdated),
            *self._add("told", fresh),
            *(self._reset(name) for name, count in found.uncounted.items() if count.packets),
        ]

    def hand_out(self, now: datetime) -> tuple[Connections, ...]:
        """What is unread, for the only time."""
        handed_out = self.unread()
        self._saved = ()
        self._told = dict(self._counted)
        self._handed_out_at = now
        return handed_out

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
