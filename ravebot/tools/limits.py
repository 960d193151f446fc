"""How many requests somebody may make: a bucket each, which fills again by and by."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CallRate:
    """`burst` at once, and `per_second` in the long run."""

    burst: float
    per_second: float


@dataclass
class Buckets:
    """A bucket for each name; of those that were not asked for long, the oldest are forgotten, which fills them."""

    allowance: CallRate
    most: int = 10_000
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)  # how much, and when that was

    def take(self, name: str) -> float:
        """Take one; returns 0, or if there is none the seconds until there is."""
        left = self._now(name)
        if left < 1:
            return (1 - left) / self.allowance.per_second
        self._put(name, left - 1)
        return 0.0

    def is_empty(self, name: str) -> float:
        """As `take`, without taking."""
        left = self._now(name)
        return 0.0 if left >= 1 else (1 - left) / self.allowance.per_second

    def _now(self, name: str) -> float:
        left, at = self._left.get(name, (self.allowance.burst, 0.0))
        return min(self.allowance.burst, left + (time.monotonic() - at) * self.allowance.per_second)

    def _put(self, name: str, left: float) -> None:
        self._left[name] = (left, time.monotonic())
        self._left.move_to_end(name)
        while len(self._left) > self.most:
            self._left.popitem(last=False)


@dataclass
class AtOnce:
    """How many requests of somebody are under way."""

    most: int
    _inside: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def entered(self, name: str) -> Iterator[bool]:
        """While a request is worked on; False if there are too many."""
        self._inside[name] += 1
        try:
            yield self._inside[name] <= self.most
        finally:
            self._inside[name] -= 1
            if not self._inside[name]:
                del self._inside[name]
