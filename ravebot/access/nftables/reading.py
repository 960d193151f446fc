"""Reads one instance's tables, in a time that neither visitors nor other tables can increase much."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

from ravebot.access.nftables import snapshot as snapshots
from ravebot.access.nftables.nft import LONG_BYTES, JsonObject, NetworkTools, RulesetDump, TooSlow, bodies
from ravebot.access.nftables.ruleset import AUDIT_SETS, FAMILIES, SETS, TABLE_PREFIX
from ravebot.access.nftables.snapshot import Snapshot

_LARGE_BYTES = 300_000
_LARGE_SECONDS = 60.0
_TOO_SLOW_SECONDS = 1800.0

ObjectKey = tuple[str, str, str]
"""A set or map: kind, family and name."""

_WANTED: tuple[ObjectKey, ...] = tuple(("set" if one.value is None else "map", one.family, one.name) for one in SETS)
_AUDIT_SETS: tuple[ObjectKey, ...] = tuple(("set", "inet", name) for name in AUDIT_SETS)


class Reader:
    """Reads the tables of one name: with one call that lists everything or, if that is too much, set by set.

    `bridge` is ours: other instances whose rules name it are reported as rivals.
    """

    def __init__(self, tools: NetworkTools, table: str, bridge: str) -> None:
        self._tools = tools
        self._table = table
        self._bridge = bridge
        self._piecemeal_until = 0.0

    async def read(self, *, with_audit: bool = False) -> Snapshot:
        """The current state; with the access audit if `with_audit`, or if that costs nothing. Raises Unavailable."""
        if asyncio.get_running_loop().time() >= self._piecemeal_until:
            try:
                listing = await self._tools.listing()
            except TooSlow:  # because of other tables: ours are small
                self._piecemeal_until = asyncio.get_running_loop().time() + _TOO_SLOW_SECONDS
            else:
                if listing.length > _LARGE_BYTES:
                    self._piecemeal_until = asyncio.get_running_loop().time() + _LARGE_SECONDS
                return await self._snapshot(listing, with_audit=True)
        return await self._read_piecemeal(with_audit)

    async def _read_piecemeal(self, with_audit: bool) -> Snapshot:
        places = [*_WANTED, *(_AUDIT_SETS if with_audit else ())]
        asking = (self._tools.elements(kind, family, self._table, name) for kind, family, name in places)
        static, contents = await asyncio.gather(self._tools.listing(terse=True), asyncio.gather(*asking))
        known = dict(zip(places, contents, strict=True))
        entries = [{kind: self._filled(kind, body, known) for kind, body in bodies(entry)} for entry in static.entries]
        length = static.length + sum(len(content) for content in contents) * 100
        return await self._snapshot(RulesetDump(cast(list[JsonObject], entries), length), with_audit)

    def _filled(self, kind: str, body: JsonObject, known: dict[ObjectKey, list[object]]) -> JsonObject:
        elements = known.get((kind, str(body.get("family")), str(body.get("name"))))
        return {**body, "elem": elements} if elements and body.get("table") == self._table else body

    async def _snapshot(self, listing: RulesetDump, with_audit: bool) -> Snapshot:
        def work() -> Snapshot:
            tables = {family: _of_table(listing.entries, family, self._table) for family in FAMILIES}
            rivals = instances_on(listing.entries, self._bridge) - {self._table.removeprefix(TABLE_PREFIX)}
            return snapshots.read(tables, rivals=tuple(sorted(rivals)), with_audit=with_audit)

        return await asyncio.to_thread(work) if listing.length > LONG_BYTES else work()


def instances_on(entries: Iterable[JsonObject], bridge: str) -> set[str]:
    """The ids of the instances whose rules name that bridge."""
    return {instance_id for instance_id, bridges in bridges_by_instance(entries).items() if bridge in bridges}


def bridges_by_instance(entries: Iterable[JsonObject]) -> dict[str, set[str]]:
    """For each instance that has tables, the bridges that its rules name."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        rule = cast(JsonObject, entry.get("rule", {}))
        table = str(rule.get("table", ""))
        if rule.get("family") == "inet" and table.startswith(TABLE_PREFIX):
            bridges = found.setdefault(table.removeprefix(TABLE_PREFIX), set())
            for match in (
                cast(JsonObject, part.get("match", {})) for part in cast(list[JsonObject], rule.get("expr", []))
            ):
                name = match.get("right")
                if match.get("left") == {"meta": {"key": "iifname"}} and isinstance(name, str) and name[:1] != "@":
                    bridges.add(name)
    return found


def _of_table(entries: list[JsonObject], family: str, name: str) -> list[JsonObject] | None:
    found = []
    for entry in entries:
        for kind, body in bodies(entry):
            if body.get("family") == family and body.get("name" if kind == "table" else "table") == name:
                found.append(entry)
    return found or None
