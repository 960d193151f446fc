"""Pauses between tries: they grow up to a maximum, and are at least as long as the server asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from random import SystemRandom
from typing import Self

jitter = SystemRandom().random
"""A random spread for `Backoff.after`, so that requests that failed together are not retried together."""


@dataclass(frozen=True)
class Backoff:
    """The pauses in seconds after the first failure, the second and so on; the last one is repeated."""

    steps: tuple[float, ...]

    @classmethod
    def growing(cls, first: float, longest: float, factor: float = 2.0) -> Self:
        steps = [min(first, longest)]
        while steps[-1] < longest:
            steps.append(min(longest, steps[-1] * factor))
        return cls(tuple(steps))

    def after(self, failures: int, asked: float | None = None, spread: float = 1.0) -> float:
        """The pause after that many failures in a row (1 or more).

        A `spread` below 1 shortens it, by half at most; it is never shorter than the server `asked` for.
        """
        assert failures > 0
        pause = self.steps[min(failures, len(self.steps)) - 1]
        return max(asked or 0.0, pause * (0.5 + spread / 2))

    def __iter__(self) -> Iterator[float]:
        """Every pause in order, endlessly."""
        return chain(self.steps, repeat(self.steps[-1]))
