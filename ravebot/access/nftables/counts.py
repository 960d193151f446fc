"""The arithmetic of the access audit: by how much the visitors' counters grew since they were last reported.

The counters are kept by the kernel and only grow. Beside them, as comments of elements, are the counts that were
reported (the set `told`) and those saved from a rewrite of the table (the set `saved`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from ravebot.access.rules import Connections
from ravebot.clock import from_us, to_us


class Visitor(NamedTuple):
    """A source address, and the port of the host that it connects to."""

    source: str
    port: int


class Count(NamedTuple):
    """A dynamic element's counter. `expires`, in seconds, tells how long ago the last packet was."""

    packets: int
    bytes: int
    expires: int


_NONE = Count(0, 0, 0)


@dataclass(frozen=True)
class Totals:
    """A visitor's counters, and when they last grew."""

    connections: int = 0
    dropped: int = 0
    bytes: int = 0
    last_connection: datetime | None = None
    last_seen: datetime | None = None

    def __str__(self) -> str:
        return f"{self.connections} {self.dropped} {self.bytes}"

    @classmethod
    def parse(cls, text: str) -> Totals:
        """Parse what `str` wrote; anything else counts as nothing reported."""
        numbers = _numbers(text, 3)
        if not numbers:
            return cls()
        connections, dropped, moved = numbers
        return cls(connections, dropped, moved)


def totals(
    seen: Mapping[Visitor, Count],
    dropped: Mapping[Visitor, Count],
    traffic: Mapping[Visitor, Count],
    now: datetime,
    timeout_seconds: int,
) -> dict[Visitor, Totals]:
    """The three counters of each visitor, combined."""

    def moved(count: Count | None) -> datetime | None:
        return now - timedelta(seconds=max(0, timeout_seconds - count.expires)) if count else None

    result = {}
    for visitor in {*seen, *dropped, *traffic}:
        new, refused, passed = seen.get(visitor), dropped.get(visitor), traffic.get(visitor)
        arrivals = [moment for moment in (moved(new), moved(refused)) if moment]
        result[visitor] = Totals(
            connections=(new or _NONE).packets,
            dropped=(refused or _NONE).packets,
            bytes=(passed or _NONE).bytes,
            last_connection=max(arrivals, default=None),
            last_seen=max([*arrivals, *(moment for moment in (moved(passed),) if moment)], default=now),
        )
    return result


def grown(
    current: Mapping[Visitor, Totals], told: Mapping[Visitor, Totals], since: datetime | None
) -> list[Connections]:
    """What is new in `current`. `since` is the time of the previous reading: nothing in the result is older."""
    result = []
    for visitor, total in sorted(current.items(), key=lambda item: item[0]):
        before = told.get(visitor, Totals())
        connections = _growth(total.connections, before.connections)
        dropped = _growth(total.dropped, before.dropped)
        moved_bytes = _growth(total.bytes, before.bytes)
        if not (connections or dropped or moved_bytes) or total.last_seen is None:
            continue
        # The counter knows when the last connection arrived: if there is only one, that is also the first.
        first = total.last_connection if connections + dropped == 1 and total.last_connection else since
        result.append(
            Connections(
                source=visitor.source,
                port=visitor.port,
                connections=connections,
                dropped=dropped,
                bytes=moved_bytes,
                first_seen=min(first or total.last_connection or total.last_seen, total.last_seen),
                last_seen=total.last_seen,
            )
        )
    return result


def merged(parts: Iterable[Connections]) -> tuple[Connections, ...]:
    """One entry for each visitor."""
    result: dict[Visitor, Connections] = {}
    for part in parts:
        visitor = Visitor(part.source, part.port)
        known = result.get(visitor)
        result[visitor] = part if known is None else _together(known, part)
    return tuple(result.values())


def to_text(visit: Connections) -> str:
    """A visit as text of less than 128 bytes, the limit of an element's comment."""
    first, last = to_us(visit.first_seen), to_us(visit.last_seen)
    return f"{visit.connections} {visit.dropped} {visit.bytes} {first} {last}"


def from_text(visitor: Visitor, text: str) -> Connections | None:
    """Parse what `to_text` wrote; None for anything else."""
    numbers = _numbers(text, 5)
    if not numbers:
        return None
    connections, dropped, moved, first, last = numbers
    try:
        return Connections(*visitor, connections, dropped, moved, from_us(first), from_us(last))
    except OverflowError:
        return None


def _numbers(text: str, count: int) -> list[int]:
    parts = text.split()
    well_formed = len(parts) == count and all(part.isascii() and part.isdigit() for part in parts)
    return [int(part) for part in parts] if well_formed else []


def _growth(current: int, told: int) -> int:
    # A counter below the reported value has expired and started again at 0.
    return current - told if current >= told else current


def _together(one: Connections, other: Connections) -> Connections:
    return replace(
        one,
        connections=one.connections + other.connections,
        dropped=one.dropped + other.dropped,
        bytes=one.bytes + other.bytes,
        first_seen=min(one.first_seen, other.first_seen),
        last_seen=max(one.last_seen, other.last_seen),
    )
