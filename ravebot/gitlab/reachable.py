"""Whether GitLab answers now, for whoever asks often and must not burden it."""

from __future__ import annotations

import asyncio

from ravebot.errors import RavebotError
from ravebot.gitlab.client import GitLab

_FRESH_SECONDS = 5.0


class Reachable:
    """Asks GitLab who we are, one request at a time however many want to know; an answer is good for a moment."""

    def __init__(self, gitlab: GitLab, fresh_seconds: float = _FRESH_SECONDS) -> None:
        self._gitlab = gitlab
        self._fresh_seconds = fresh_seconds
        self._question: asyncio.Task[str] | None = None

    async def problem(self) -> str:
        """Why GitLab can't be used now; empty when it can."""
        if self._question is None:
            self._question = asyncio.create_task(self._ask())
        # Shielded: who loses patience leaves the question to those who come after.
        return await asyncio.shield(self._question)

    async def _ask(self) -> str:
        try:
            await self._gitlab.me()
        except RavebotError as error:
            return str(error)
        else:
            return ""
        finally:
            asyncio.get_running_loop().call_later(self._fresh_seconds, self._forget)

    def _forget(self) -> None:
        self._question = None
