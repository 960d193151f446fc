"""Our nftables tables as read back: the form of the static part, the elements, and the visitors' counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ravebot.access.nftables.counts import Count, Visitor
from ravebot.access.nftables.nft import JsonObject, bodies
from ravebot.access.nftables.ruleset import COUNTERS, SETS, UNCOUNTED, Element, NamedSet

_OUTSIDE_THE_FORM = ("handle", "elem", "packets", "bytes")
Form = tuple[JsonObject, ...]
"""A table's definitions in the kernel's order, without handles, elements and counts: equal if nobody altered it."""


@dataclass(frozen=True)
class Snapshot:
    """Our tables at one moment. A family that has no table is missing from `forms`.

    `rivals` are other instances whose rules name our bridge. Without `with_audit`, the visitors' counters are not read.
    """

    forms: Mapping[str, Form] = field(default_factory=dict)
    elements: Mapping[NamedSet, frozenset[Element]] = field(default_factory=dict)
    seen: Mapping[Visitor, Count] = field(default_factory=dict)
    traffic: Mapping[Visitor, Count] = field(default_factory=dict)
    dropped: Mapping[Visitor, Count] = field(default_factory=dict)
    told: Mapping[Visitor, str] = field(default_factory=dict)
    saved: Mapping[Visitor, str] = field(default_factory=dict)
    uncounted: Mapping[str, Count] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)  # packets
    rivals: tuple[str, ...] = ()
    with_audit: bool = True


def read(
    tables: Mapping[str, list[JsonObject] | None], *, rivals: tuple[str, ...] = (), with_audit: bool = True
) -> Snapshot:
    """Parse each family's table as nft lists it. Sets that someone recreated in another shape are read as empty."""
    forms = {family: _form(listed) for family, listed in tables.items() if listed is not None}
    contents = {
        (family, str(body["name"])): cast(list[object], body.get("elem", []))
        for family, listed in tables.items()
        for entry in listed or ()
        for kind, body in bodies(entry)
        if kind in ("set", "map")
    }
    try:
        counters = {name: _counter(tables.get("inet") or [], name) for name in COUNTERS}
        return Snapshot(
            forms=forms,
            rivals=rivals,
            with_audit=with_audit,
            elements={one: _elements(one, contents.get((one.family, one.name), [])) for one in SETS},
            seen=_counts(contents.get(("inet", "seen"), [])),
            traffic=_counts(contents.get(("inet", "traffic"), [])),
            dropped=_counts(contents.get(("inet", "dropped"), [])),
            told=_comments(contents.get(("inet", "told"), [])),
            saved=_comments(contents.get(("inet", "saved"), [])),
            uncounted={name: counters[name] for name in UNCOUNTED.values()},
            counters={name: count.packets for name, count in counters.items()},
        )
    except (KeyError, TypeError, ValueError):
        return Snapshot(forms=forms, rivals=rivals, with_audit=with_audit)


def _form(listed: list[JsonObject]) -> Form:
    return tuple(
        {kind: {key: value for key, value in body.items() if key not in _OUTSIDE_THE_FORM}}
        for entry in listed
        for kind, body in bodies(entry)
    )


def _elements(source: NamedSet, raw: list[Any]) -> frozenset[Element]:
    if source.value is not None:
        return frozenset((_plain(key), value) for key, value in raw)
    if len(source.key) == 1:
        return frozenset((_plain(value),) for value in raw)
    return frozenset(tuple(_plain(value)["concat"]) for value in raw)


def _plain(raw: Any) -> Any:
    """The element without a comment or timeout that someone added by hand."""
    return raw["elem"]["val"] if type(raw) is dict and "elem" in raw else raw


def _extended(raw: object) -> JsonObject:
    """An element that carries more than its value: `{"elem": {"val": …, "counter": …}}`; empty for a plain one."""
    return cast(JsonObject, raw["elem"]) if isinstance(raw, dict) and "elem" in raw else {}


def _visitor(body: JsonObject) -> Visitor:
    source, port = cast(dict[str, list[str | int]], body["val"])["concat"]
    return Visitor(str(source), int(port))


def _counts(raw: list[object]) -> dict[Visitor, Count]:
    counts = {}
    for body in (_extended(element) for element in raw):
        counter = cast(dict[str, int] | None, body.get("counter"))
        if counter:
            expires = cast(int, body.get("expires", 0))
            counts[_visitor(body)] = Count(counter["packets"], counter["bytes"], expires)
    return counts


def _counter(listed: list[JsonObject], name: str) -> Count:
    for entry in listed:
        body = cast(dict[str, int | str], entry.get("counter", {}))
        if body.get("name") == name:
            return Count(int(body["packets"]), int(body["bytes"]), 0)
    return Count(0, 0, 0)


def _comments(raw: list[object]) -> dict[Visitor, str]:
    return {_visitor(body): str(body.get("comment", "")) for body in map(_extended, raw) if body}
