"""Agents elsewhere are served by a process of its own, which kills itself at one of its steps, as a power cut would.

Beside the runner and the loop over webhooks it has a door on a Unix socket, which stands for the API: what comes in
there is carried out by the same functions.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, UnixConnector, web

from ravebot.agents.answers import AnswerEnd, AnswerTaken
from ravebot.agents.model import ConversationId
from ravebot.agents.transports.webhook.outcomes import Posted
from ravebot.agents.transports.webhook.poster import WebhookPoster
from ravebot.clock import SystemClock
from tests.support.agent_world import CrashingDatabase
from tests.support.elsewhere import ALICE_IN_ROOM, ElsewhereWorld, elsewhere_config, make_world

SOCKET, STRUCK = "door.sock", "struck"


class LabelledDatabase(CrashingDatabase):
    """Writes down at which step it killed its process; `only_webhooks`: no other steps count."""

    last = ""
    only_webhooks = False

    def step(self, what: str = "") -> None:
        self.last = what or "a transaction"
        if what or not self.only_webhooks:
            super().step(what)

    def die(self) -> None:
        with (self.path.parent / STRUCK).open("a") as file:
            file.write(f"{self.last}\n")
        super().die()


class CrashingPoster(WebhookPoster):
    """Its requests are steps of the database's."""

    def __init__(self, database: CrashingDatabase) -> None:
        super().__init__()
        self._database = database

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Posted:
        self._database.step("before a webhook")
        posted = await super().post(url, body, headers)
        self._database.step("after a webhook")
        return posted


def serve_until_killed(folder: Path, url: str, crash_at: int, only_webhooks: bool) -> None:
    """What the process runs; 0: it is killed by whoever started it."""
    asyncio.run(_serve(folder, url, crash_at, only_webhooks))


async def _serve(folder: Path, url: str, crash_at: int, only_webhooks: bool) -> None:
    database = LabelledDatabase(folder / "ravebot.db", SystemClock())
    database.steps, database.crash_at, database.only_webhooks = itertools.count(1), crash_at, only_webhooks
    async with database:
        world = make_world(elsewhere_config(folder, url), database)
        world.sender.poster = CrashingPoster(database)
        async with asyncio.TaskGroup() as group:
            await _open_door(world, folder / SOCKET)
            group.create_task(world.runner.run())
            group.create_task(world.sender.run())


async def _open_door(world: ElsewhereWorld, path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response(await _carried_out(world, request.path, asked))

    app = web.Application()
    app.router.add_post("/{what}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    path.unlink(missing_ok=True)
    await web.UnixSite(runner, str(path)).start()


async def _carried_out(world: ElsewhereWorld, what: str, asked: dict[str, Any]) -> dict[str, Any]:
    match what:
        case "/take":
            taken = await world.take()
            return {"id": taken.id, "text": taken.body["text"]} if taken else {}
        case "/ack":
            return _said(await world.ack(asked["id"]))
        case "/answer":
            end = AnswerEnd(asked["end"]) if asked.get("end") else None
            status = asked.get("status", "")
            return _said(await world.answer(asked["id"], asked.get("text", ""), end, asked["agent"], status=status))
        case _:
            conversation_id = ConversationId(asked["conversation"])
            outcome = await world.database.write(lambda tx: world.desk.cancel(tx, conversation_id, ALICE_IN_ROOM))
            return {"accepted": outcome.accepted}


def _said(taken: AnswerTaken) -> dict[str, Any]:
    return {"accepted": taken.accepted, "refused": taken.refused}


async def ask_door(folder: Path, what: str, **asked: Any) -> dict[str, Any]:
    """Ask until it is answered, however often the process is killed meanwhile."""
    while True:
        try:
            async with (
                ClientSession(connector=UnixConnector(str(folder / SOCKET))) as session,
                session.post(f"http://door/{what}", json=asked) as response,
            ):
                if response.status == 200:
                    found: dict[str, Any] = await response.json()
                    return found
        except (ClientError, OSError):
            pass
        await asyncio.sleep(0.02)
