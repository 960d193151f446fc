"""The examples of docs/agents.md, each a process of its own: a webhook receiver and an agent with an inbox.

They are sent messages by the real loop over webhooks, and answer to the real API with real tokens.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from ravebot.agents.model import TurnState
from ravebot.agents.reception import Reception
from ravebot.commands.people import People
from ravebot.config.model import ApiConfig
from ravebot.operations.tokens.operator import TokenOperator
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.model import Actor
from ravebot.tools.calls import ToolCalls
from ravebot.tools.workbench import Workbench
from ravebot.web.api.gate import Gate
from ravebot.web.api.server import serve_api
from tests.integration.test_agents_elsewhere_check import Everybody
from tests.support.elsewhere import ElsewhereWorld, an_elsewhere_world
from tests.support.pages import DOCS
from tests.support.receivers import SIGNING_KEY

pytestmark = pytest.mark.integration


def a_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@asynccontextmanager
async def a_served_world(folder: Path, hook_port: int) -> AsyncIterator[ElsewhereWorld]:
    """Its agents have tokens in files, and the API listens."""
    api = ApiConfig(listen=f"127.0.0.1:{a_free_port()}")
    hook = f"http://127.0.0.1:{hook_port}/hook"
    async with an_elsewhere_world(folder, hook, api=api) as world:
        people = People(world.config, world.database, cast(Any, Everybody()))
        nothing = cast(Any, None)  # what the tools of agents do not use
        bench = Workbench(
            world.config, world.database, people, nothing, Views(world.config),
            Reception(world.config, people, world.desk), nothing, world.answers,
        )  # fmt: skip
        tokens = TokenOperator(world.config, world.database, people)
        for name in ("reviewer", "helper"):
            made = await tokens.create_token(
                owner="alice", name=name, scopes=("agent",), projects=("group/*",), agent=name,
                expires=timedelta(days=1), actor=Actor("shell", "root"),
            )  # fmt: skip
            (folder / f"{name}-token").write_text(f"{made.text}\n")
        (folder / "key").write_text(f"{SIGNING_KEY}\n")
        async with serve_api(api, ToolCalls(bench), Gate(world.database)):
            yield world


@asynccontextmanager
async def running(example: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(DOCS / example), env={**os.environ, **environment}, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def test_the_webhook_receiver_checks_who_sends_and_answers(tmp_path: Path) -> None:
    assert len((DOCS / "receiver.py").read_text().splitlines()) < 45
    port = a_free_port()
    environment = {
        "PORT": str(port), "SIGNING_KEY_FILE": str(tmp_path / "key"), "TOKEN_FILE": str(tmp_path / "reviewer-token"),
    }  # fmt: skip
    async with a_served_world(tmp_path, port) as world, running("receiver.py", **environment):
        turn = await world.over(await world.say("reviewer", "does it build?"))  # tried until the receiver listens
        assert (turn.state, turn.answer) == (TurnState.DONE, "You wrote: does it build?")
        forged = await world.sender.poster.post(f"http://127.0.0.1:{port}/hook", b"{}", {"webhook-id": "msg_1"})
        assert forged.status == 401


async def test_the_agent_with_an_inbox_takes_acknowledges_and_answers(tmp_path: Path) -> None:
    async with a_served_world(tmp_path, 1) as world:
        environment = {
            "API": f"http://{world.config.api.listen}/api/v1", "TOKEN_FILE": str(tmp_path / "helper-token"),
        }  # fmt: skip
        async with running("inbox.py", **environment):
            turns = [await world.say("helper", text, f"${text}") for text in ("one", "two")]
            for turn_id, text in zip(turns, ("one", "two"), strict=True):
                turn = await world.over(turn_id)
                assert (turn.state, turn.answer) == (TurnState.DONE, f"You wrote: {text}")
