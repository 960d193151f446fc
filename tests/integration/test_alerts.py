"""Alerts, from Alertmanager's request to one message in the operators' room, through a real Synapse."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from ravebot.errors import Unavailable
from ravebot.intake.alerts import AlertIntake
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.rooms import RoomDirectory
from ravebot.notify.delivery import Delivery
from ravebot.notify.matrix import MatrixSender
from ravebot.store.alerts import Heard
from ravebot.store.targets import MATRIX
from ravebot.web.alerts.door import PATH, AlertDoor
from ravebot.web.alerts.reading import AlertDelivery
from ravebot.web.checks import Checks
from ravebot.web.metrics import Metrics
from ravebot.web.server import make_app, serve
from tests.support.records import World, a_world
from tests.support.synapse import MatrixUser, Message, Synapse

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

OPS = "#alerts:localhost"
TOKEN = "the right one"
NO_CHECKS: Checks = {}
STUCK = {"alertname": "QueueStuck", "severity": "critical", "instance": "host:8080"}


def an_alert(status: str = "firing", *, began: str = "2026-01-01T11:48:00.123456789Z", **labels: str) -> dict[str, Any]:
    """As Alertmanager writes one."""
    return {
        "status": status,
        "labels": {**STUCK, **labels},
        "annotations": {
            "summary": "No sandbox has become ready for 10 minutes",
            "description": "3 wait in the queue.",
            "runbook_url": "https://docs.example.org/operate.html#queue",
        },
        "startsAt": began,
        "endsAt": "2026-01-01T12:30:00Z" if status == "resolved" else "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus:9090/graph",
        "fingerprint": f"{abs(hash(tuple(sorted({**STUCK, **labels}.items())))):016x}"[:16],
    }


def a_delivery(*alerts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"version": "4", "groupKey": "{}", "truncatedAlerts": 0, "receiver": "ravebot", "alerts": alerts, **more}


class LosesAlertAnswers:
    """Takes what is sent to Matrix there, and loses the answers that it is told to."""

    def __init__(self, client: MatrixClient) -> None:
        self.client = client
        self.to_lose = 0

    async def send(self, room_id: str, content: Mapping[str, object], txn_id: str, kind: str = "m.room.message") -> str:
        event_id = await self.client.send(room_id, content, txn_id, kind)
        if self.to_lose:
            self.to_lose -= 1
            raise Unavailable("the answer got lost")
        return event_id

    async def redact(self, room_id: str, event_id: str, txn_id: str) -> str:
        return await self.client.redact(room_id, event_id, txn_id)

    async def upload(self, data: bytes, name: str, kind: str) -> str:
        return await self.client.upload(data, name, kind)

    async def display_name(self, user_id: str) -> str:
        return await self.client.display_name(user_id)


@dataclass
class Watchroom:
    """The door on a port, what stores alerts, and what sends them to the room that alice reads."""

    world: World
    sender: MatrixSender
    line: LosesAlertAnswers
    alice: MatrixUser
    room: str
    url: str = ""

    async def post(self, body: object, token: str | None = TOKEN) -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with aiohttp.ClientSession(headers=headers) as session, session.post(self.url, data=data) as answer:
            return answer.status

    async def told(self, *found: dict[str, Any]) -> None:
        """Alertmanager's request with these alerts; it is answered with 2xx."""
        assert await self.post(a_delivery(*found)) == 200

    async def delivered(self, *, lost: bool = False) -> None:
        """Run the outbox's delivery until it is empty, or until an answer got lost: then it is ended, as by a kill."""
        delivery = Delivery(self.world.database, MATRIX, self.sender, lambda _target, _result: None)
        task = asyncio.create_task(delivery.run())
        async with asyncio.timeout(10):
            while self.line.to_lose if lost else await self.world.outbox():
                await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await self.world.write(lambda tx: tx.execute("UPDATE outbox SET next_attempt_at = 0"))

    async def heard(self) -> list[Message]:
        await self.delivered()
        return [one for one in await self.alice.messages(self.room) if one.sender != self.alice.user_id]

    def count(self, result: str) -> float:
        return self.world.metrics.registry.get_sample_value("ravebot_alerts_received_total", {"result": result}) or 0


@pytest_asyncio.fixture(loop_scope="module")
async def watchroom(
    synapse: Synapse, account: MatrixUser, alice: MatrixUser, tmp_path: Path
) -> AsyncIterator[Watchroom]:
    room = await alice.create_room("alerts", public=True)
    settings = {"homeserver": synapse.url, "user_id": account.user_id, "rooms": [], "operations_room": OPS}
    async with a_world(tmp_path, matrix=settings) as world:
        config = world.config.matrix
        client = MatrixClient(config, account.password, tmp_path)
        await client.open()
        rooms = RoomDirectory(client, config.rooms, world.clock, config.operations_room)
        line = LosesAlertAnswers(client)
        made = Watchroom(world, MatrixSender(config, world.database, world.views, line, rooms), line, alice, room)
        intake = AlertIntake(world.database, OPS)

        async def take(delivery: AlertDelivery) -> Counter[Heard]:
            return await intake.take(delivery.alerts, delivery.left_out)

        async def no_webhooks(_: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            raise NotImplementedError

        door = AlertDoor(TOKEN, take, world.metrics)
        async with serve(make_app(no_webhooks, NO_CHECKS, Metrics(), add_more=door.add_to), "127.0.0.1", 0) as (
            host,
            port,
        ):
            made.url = f"http://{host}:{port}{PATH}"
            yield made
        await client.close()
    await alice.call("DELETE", "directory", "room", OPS)


async def test_an_alert_is_one_message_that_is_edited_when_it_is_resolved(watchroom: Watchroom) -> None:
    await watchroom.told(an_alert())
    [message] = await watchroom.heard()
    assert message.kind == "m.text"  # notices notify nobody
    assert message.mentions == {}
    assert message.body == (
        "🔴 critical: QueueStuck\n"
        "No sandbox has become ready for 10 minutes\n"
        "3 wait in the queue.\n"
        "Fires since 2026-01-01 11:48 UTC\n"
        "What to do: runbook https://docs.example.org/operate.html#queue"
    )
    assert '<a href="https://docs.example.org/operate.html#queue">runbook</a>' in message.html
    await watchroom.told(an_alert("resolved"))
    [edited] = await watchroom.heard()
    assert (edited.event_id, edited.edits) == (message.event_id, 1)
    assert edited.body == (
        "✅ Resolved: QueueStuck\n"
        "No sandbox has become ready for 10 minutes\n"
        "Fired for 42 min: from 2026-01-01 11:48 to 12:30 UTC"
    )


async def test_an_alertmanager_that_repeats_itself_a_hundred_times_is_told_once(watchroom: Watchroom) -> None:
    for _ in range(50):
        await watchroom.told(an_alert())
    [message] = await watchroom.heard()
    for _ in range(50):
        await watchroom.told(an_alert("resolved"), an_alert("resolved"))
    [resolved] = await watchroom.heard()
    assert (message.edits, resolved.edits) == (0, 1)
    assert [watchroom.count(one) for one in ("new", "resolved", "repeated")] == [1, 1, 148]
