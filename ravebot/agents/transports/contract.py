"""What the runner wants of a transport, how it wakes it, and what serves an agent in its sandbox."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ravebot.agents.model import ConversationId
from ravebot.config.model import AgentConfig
from ravebot.sandboxes.model import SandboxId


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


class DoorServer(Protocol):
    """Serves one sandbox on a Unix socket of its own: the socket tells which sandbox asks."""

    @property
    def name(self) -> str:
        """A short word, which names the socket's file."""
        ...

    @property
    def port(self) -> int:
        """Where agents find it in the guest, on 127.0.0.1."""
        ...

    @property
    def path(self) -> str:
        """What its address there has behind the port, such as /mcp; or empty."""
        ...

    def is_for(self, agent: AgentConfig) -> bool:
        """Whether that agent gets it."""
        ...

    def serve(self, sandbox_id: SandboxId, path: Path) -> AbstractAsyncContextManager[None]:
        """Listens on `path` (which isn't there yet) until the context is left; it then ends what is open.

        Raises OSError if it can't listen there.
        """
        ...
