"""The kernel's counters of connections that were passed on or refused: by how much they grew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ravebot.access.nftables.ruleset import PASSED, REFUSED
from ravebot.access.nftables.snapshot import Snapshot
from ravebot.access.rules import Attempts, Service


class AttemptCounters:
    """Those of one table. What was counted before the first look is left out: an earlier run told it, or nobody."""

    def __init__(self) -> None:
        self._last: Mapping[str, int] = {}
        self._new = Counter[str]()

    def update(self, found: Snapshot) -> None:
        """Add by how much they grew. A counter that shrank began again at 0, when its table was written anew."""
        for name, count in found.counters.items():
            before = self._last.get(name, count)
            self._new[name] += count - before if count >= before else count
        self._last = found.counters or self._last

    def take(self) -> dict[Service, Attempts]:
        """What is new; it counts as taken from here on."""
        new, self._new = self._new, Counter()
        return {service: Attempts(new[PASSED[service]], new[REFUSED[service]]) for service in Service}
