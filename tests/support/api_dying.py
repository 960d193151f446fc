"""The API in a process of its own, which kills itself at the n-th step of its database after it was told which one.

A step is before a transaction, in it when all is done but the commit, and right after the commit.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ravebot.commands.people import People
from ravebot.config.model import ApiConfig
from ravebot.gitlab.client import GitLab
from ravebot.store.database import Database, Transaction
from ravebot.tools.calls import ToolCalls
from ravebot.web.api.gate import Gate
from ravebot.web.api.server import serve_api
from tests.support.agent_yard import an_agent, an_agent_yard
from tests.support.api_yard import HELPER, a_workbench

T = TypeVar("T")


class ArmedDatabase(Database):
    """Dies at a step; `struck` in its folder has a line for each death."""

    steps = itertools.count(1)
    dies_at = 0

    def step(self, what: str) -> None:
        if next(self.steps) == self.dies_at:
            with (self.path.parent / "struck").open("a") as file:
                file.write(f"{what}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    async def write(self, function: Callable[[Transaction], T], *, urgent: bool = False, synced: bool = True) -> T:
        def watched(tx: Transaction) -> T:
            result = function(tx)
            self.step("in a transaction")
            return result

        self.step("before a transaction")
        result = await super().write(watched, urgent=urgent, synced=synced)
        self.step("after a commit")
        return result


def serve_until_killed(folder: Path, gitlab_url: str, token: str) -> None:
    """What the process runs: `url` in its folder says where; `step` when it is to die, from the next request on."""
    asyncio.run(_serve(folder, gitlab_url, token))


async def _serve(folder: Path, gitlab_url: str, token: str) -> None:
    async with an_agent_yard(folder, an_agent(), HELPER, opens=ArmedDatabase) as world:
        database = world.yard.database
        assert isinstance(database, ArmedDatabase)
        gitlab = GitLab(gitlab_url, token, world.yard.clock, 5)
        people = People(world.config, database, gitlab)
        calls = ToolCalls(a_workbench(world, world.config, people, gitlab))
        async with serve_api(ApiConfig.model_construct(listen="127.0.0.1:0"), calls, Gate(database)) as (host, port):
            _write(folder / "url", f"http://{host}:{port}")
            while True:
                if (folder / "step").exists():
                    database.steps, database.dies_at = itertools.count(1), int((folder / "step").read_text())
                    (folder / "step").unlink()
                await asyncio.sleep(0.005)


def _write(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)
