"""A member of a room who listens all the time, and notes when each event came."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tests.support.synapse.user import MatrixUser

_KINDS = ("m.room.message", "m.reaction")


@dataclass
class RoomReader:
    """Long-polls; knows messages and reactions."""

    user: MatrixUser
    room: str
    seen: dict[str, float] = field(default_factory=dict)
    """Event ids in order of arrival, with the time (`perf_counter`)."""
    events: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def run(self) -> None:
        """Run until cancelled."""
        since = str((await self.user.sync())["next_batch"])
        while True:
            answer = await self.user.sync(since, timeout_ms=20_000, at_most=1000)
            now = time.perf_counter()
            since = str(answer["next_batch"])
            joined = answer.get("rooms", {}).get("join", {}).get(self.room, {})
            for event in joined.get("timeline", {}).get("events", []):
                if event["type"] in _KINDS and event["event_id"] not in self.seen:
                    self.seen[event["event_id"]] = now
                    self.events[event["event_id"]] = event
