"""Waits for something new, for a caller who asked for that: at most so long, and less often the longer it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from ravebot.backoff import Backoff

_PAUSES = Backoff.growing(0.1, 1.0, factor=1.3)


@dataclass
class LookAgain:
    """`while not found and await again.wait(): look`."""

    seconds: float
    _until: float = field(init=False)
    _pauses: Iterator[float] = field(default_factory=lambda: iter(_PAUSES))

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.seconds

    async def wait(self) -> bool:
        """Wait for the next look; False if the time is over."""
        left = self._until - time.monotonic()
        if left <= 0:
            return False
        await asyncio.sleep(min(next(self._pauses), left))
        return True
