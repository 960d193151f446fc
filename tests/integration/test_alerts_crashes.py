"""The alerts' door and the weekly telling, killed at each commit: nothing is told twice, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ravebot.sandboxes.model import RAVEBOT, EventKind
from ravebot.store import events
from ravebot.web.alerts.door import PATH
from tests.support.news_dying import TOKEN
from tests.support.records import a_world

pytestmark = pytest.mark.integration
KILLED = -9


def word(status: str) -> dict[str, Any]:
    return {
        "status": status, "labels": {"alertname": "QueueStuck"}, "annotations": {}, "fingerprint": "f" * 16,
        "startsAt": "2026-01-01T11:48:00Z", "endsAt": "2026-01-01T11:58:00Z",
    }  # fmt: skip


async def run(folder: Path, when: str, at: int, said: list[str]) -> int | None:
    """A process that tells and listens; Alertmanager's words, of which each that is answered is taken from the list, as
    it repeats the others. Returns the process' end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.news_dying", str(folder), when, str(at), stdin=PIPE, stdout=PIPE
    )
    assert process.stdout
    port = (await process.stdout.readline()).decode().strip()
    try:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            while said and port:
                body = json.dumps({"version": "4", "alerts": [word(said[0])]})
                async with http.post(f"http://127.0.0.1:{port}{PATH}", data=body) as answer:
                    assert answer.status == 200
                said.pop(0)
    except aiohttp.ClientError:
        pass
    await process.communicate(b"")
    return process.returncode


async def test_a_kill_between_any_two_steps_tells_nothing_twice_and_loses_nothing(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.write(lambda tx: events.append(tx, EventKind.SANDBOX_READY, RAVEBOT))
    said = ["firing", "resolved"]
    deaths = [("before", 1), ("after", 1), ("before", 1), ("after", 1), ("before", 2), ("after", 1)]
    left = []
    for when, at in deaths:
        assert await run(tmp_path, when, at, said) == KILLED
        left.append(len(said))
    assert left == [2, 2, 2, 2, 1, 1]  # twice in the weekly telling, then before and after each word was stored
    assert await run(tmp_path, "never", 0, said) == 0
    assert said == []
    async with a_world(tmp_path) as world:
        kinds = [kind for _, _, kind, _ in await world.outbox()]
        assert kinds == ["reply", "alert"]
        [alert] = await world.read(lambda tx: tx.all("SELECT status, seen_at FROM alerts"))
        assert alert["status"] == "resolved"
