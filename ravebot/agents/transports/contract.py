"""What the runner wants of a transport, and how it wakes it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from ravebot.agents.model import ConversationId


@dataclass
class Nudge:
    """How a driver is woken: something about its conversation changed, or its place is needed."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    news: bool = True
    leave: bool = False

    def wake(self) -> None:
        self.news = True
        self.event.set()

    def take(self) -> bool:
        """Whether there is news; there is none afterwards."""
        news, self.news = self.news, False
        return news


class ConversationTransport(Protocol):
    """Drives one conversation, until there is nothing to do."""

    async def drive(self, conversation_id: ConversationId, nudge: Nudge) -> None: ...
