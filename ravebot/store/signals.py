"""Wake-ups between the loops of one process.

A lost signal costs a little time and no data: every loop also reads the database at intervals.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

INTAKE = "intake"
IMAGES = "images"
POOL = "pool"
RUNS = "runs"
AGENTS = "agents"
APPROVALS = "approvals"
DELIVERIES = "deliveries"
ENVIRONMENTS = "environments"
POLL = "poll"
AGENTS_WAIT = "agents wait"
"""Something changed that a message to an agent may wait for."""


def inbox_of(agent: str) -> str:
    """There may be a message for an agent that takes them itself."""
    return f"inbox of {agent}"


class Signals:
    """Named events, each waited for by one loop."""

    def __init__(self) -> None:
        self._events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def wake(self, name: str) -> None:
        self._events[name].set()

    async def wait(self, name: str, timeout_seconds: float) -> bool:
        """Wait for the signal, at most that long; returns whether it came."""
        event = self._events[name]
        try:
            async with asyncio.timeout(timeout_seconds):
                await event.wait()
        except TimeoutError:
            return False
        event.clear()
        return True
