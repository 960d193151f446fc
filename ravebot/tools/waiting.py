"""Waits for something new, for a caller who asked for that: at most so long, and less often the longer it takes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

_FIRST_SECONDS, _LONGEST_SECONDS, _GROWTH = 0.1, 1.0, 1.3


@dataclass
class LookAgain:
    """`while not found and await again.wait(): look`."""

    seconds: float
    _until: float = field(init=False)
    _pause: float = _FIRST_SECONDS

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.seconds

    async def wait(self) -> bool:
        """Wait for the next look; False if the time is over."""
        left = self._until - time.monotonic()
        if left <= 0:
            return False
        await asyncio.sleep(min(self._pause, left))
        self._pause = min(_LONGEST_SECONDS, self._pause * _GROWTH)
        return True
