"""Carries out approvals in a process of its own, which kills itself right before or after one of its commits.

`python -m tests.support.dying FOLDER GITLAB_URL before|after|never N`; the token of GitLab comes on stdin. It ends
by itself, with 0, when there is nothing left to do.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ravebot.agents.approvals import Approvals
from ravebot.agents.approved import ApprovedDiffs
from ravebot.agents.carryout import CarryOut
from ravebot.agents.telling import ConversationTelling
from ravebot.commands.people import People
from ravebot.gitlab.client import GitLab
from ravebot.parts import make_diffs
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.intents import Intents
from ravebot.sandboxes.journal import Journal
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.store import approvals
from ravebot.store.database import Database, Transaction
from ravebot.web.metrics import Metrics
from tests.support.clock import ManualClock
from tests.support.records import make_config, with_agents

T = TypeVar("T")


class MortalDatabase(Database):
    """Kills the process at its n-th transaction that writes."""

    def dies(self, when: str, at: int) -> None:
        self._when, self._left = when, at

    async def write(self, function: Callable[[Transaction], T], **how: Any) -> T:
        self._left -= 1
        if self._left == 0 and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await super().write(function, **how)
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


async def main(folder: Path, url: str, when: str, at: int, token: str) -> None:
    config, clock = with_agents(make_config(folder, gitlab={"url": url})), ManualClock()
    async with MortalDatabase(folder / "ravebot.db", clock) as database:
        database.dies(when, at)
        gitlab = GitLab(url, token, clock, 2)
        engine = Approvals(config, ConversationTelling(config), database, People(config, database, gitlab))
        intents = Intents(config, Lifecycle(config, Journal(config, Metrics())), engine)
        diffs = make_diffs(config, database, MemoryProvider(MemoryHost()), gitlab)
        work = CarryOut(database, engine, intents, ApprovedDiffs(database, diffs, config.matrix.users))
        while await database.read(approvals.undone):
            await work.look()
        await gitlab.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.stdin.read().strip()))
