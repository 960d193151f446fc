"""Alerts, from Alertmanager's request to one message in the operators' room, through a real Synapse."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from ravebot.errors import StoreError
from ravebot.gitlab.refusals import Refusals
from ravebot.intake.alerts import AlertIntake
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.rooms import RoomDirectory
from ravebot.notify.delivery import Delivery
from ravebot.notify.matrix import MatrixSender
from ravebot.operations.audit.weekly import render_head
from ravebot.operations.weekly import Weekly, WeeklyNews
from ravebot.sandboxes.model import RAVEBOT, EventKind
from ravebot.store import alerts, events, outbox
from ravebot.store.alerts import MOST_FIRING, Heard
from ravebot.store.targets import MATRIX, Kind, RoomLane
from ravebot.web.alerts.door import MAX_BODY_BYTES, PATH, AlertDoor
from ravebot.web.alerts.reading import AlertDelivery
from ravebot.web.checks import Checks
from ravebot.web.metrics import Metrics
from ravebot.web.server import make_app, serve
from tests.support.edges import LosesAnswers
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
        "fingerprint": hashlib.sha256(repr(labels).encode()).hexdigest()[:16],
    }


def a_delivery(*found: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"version": "4", "groupKey": "{}", "truncatedAlerts": 0, "receiver": "ravebot", "alerts": found, **more}


@dataclass
class Watchroom:
    """The door on a port, what stores alerts, and what sends them to the room that alice reads."""

    world: World
    sender: MatrixSender
    line: LosesAnswers
    alice: MatrixUser
    room: str
    refusals: Refusals
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
        line = LosesAnswers(client)
        sender = MatrixSender(config, world.database, world.views, line, rooms)
        refusals = Refusals(world.clock, "requests to /webhooks/alertmanager")
        made = Watchroom(world, sender, line, alice, room, refusals)
        intake = AlertIntake(world.database, OPS)

        async def take(delivery: AlertDelivery) -> Counter[Heard]:
            return await intake.take(delivery.alerts, delivery.left_out)

        async def no_webhooks(_: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            raise NotImplementedError

        door = AlertDoor(TOKEN, take, world.metrics, made.refusals)
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


async def test_an_alert_that_fires_again_later_is_another_message(watchroom: Watchroom) -> None:
    await watchroom.told(an_alert())
    await watchroom.told(an_alert("resolved"))
    await watchroom.told(an_alert(began="2026-01-01T13:00:00Z"))
    await watchroom.told(an_alert(began="2026-01-01T13:00:00Z", instance="other:8080"))
    assert [one.body.split("\n")[0] for one in await watchroom.heard()] == [
        "✅ Resolved: QueueStuck", "🔴 critical: QueueStuck", "🔴 critical: QueueStuck",
    ]  # fmt: skip


async def test_an_alert_that_was_over_before_it_was_heard_of_is_not_told(watchroom: Watchroom) -> None:
    await watchroom.told(an_alert("resolved"))
    await watchroom.told(an_alert())  # late
    assert await watchroom.heard() == []
    assert watchroom.count("late") == 2


async def test_late_word_that_an_alert_fires_changes_nothing_and_one_that_fires_on_is_shown_as_such(
    watchroom: Watchroom,
) -> None:
    """Alertmanager resolves what a Prometheus that is cut off does not repeat; then it goes on as the same alert."""
    await watchroom.told(an_alert())
    await watchroom.told(an_alert("resolved"))
    await watchroom.told(an_alert())
    [message] = await watchroom.heard()
    assert message.body.startswith("✅ Resolved")
    watchroom.world.pass_by(minutes=4)
    await watchroom.told(an_alert())
    [message] = await watchroom.heard()
    assert message.body.startswith("🔴 critical: QueueStuck")
    await watchroom.told(an_alert("resolved"))
    watchroom.world.pass_by(days=-3)  # a clock may be set back
    await watchroom.told(an_alert())
    [message] = await watchroom.heard()
    assert message.body.startswith("🔴 critical: QueueStuck")


async def test_an_alert_whose_message_is_lost_in_a_kill_is_told_once_and_ends_as_it_is(watchroom: Watchroom) -> None:
    await watchroom.told(an_alert())
    watchroom.line.to_lose = 1
    await watchroom.delivered(lost=True)
    await watchroom.told(an_alert("resolved"))
    watchroom.line.to_lose = 1
    await watchroom.delivered(lost=True)
    [message] = await watchroom.heard()
    assert message.body.startswith("✅ Resolved: QueueStuck")
    assert message.edits == 1


async def test_an_alert_that_is_over_before_it_could_be_told_is_one_quiet_message(watchroom: Watchroom) -> None:
    await watchroom.told(an_alert())
    await watchroom.told(an_alert("resolved"))
    [message] = await watchroom.heard()
    assert (message.kind, message.edits, message.body.split("\n")[0]) == ("m.notice", 0, "✅ Resolved: QueueStuck")


async def test_only_who_has_the_token_is_heard(watchroom: Watchroom) -> None:
    assert [await watchroom.post(a_delivery(an_alert()), token) for token in (None, "", "wrong", f"{TOKEN}x")] == [
        401
    ] * 4
    assert watchroom.refusals.said.startswith("requests to /webhooks/alertmanager are refused (3 since")
    assert await watchroom.world.outbox() == []
    assert await watchroom.post(a_delivery()) == 200
    assert watchroom.refusals.said == ""


async def test_what_is_no_delivery_is_refused_and_what_is_no_alert_is_left_out(watchroom: Watchroom) -> None:
    bodies = (
        b"\xff",
        b"[]",
        b"[" * 100_000,
        {"version": "3", "alerts": []},
        {"version": "4"},
        b" " * (MAX_BODY_BYTES + 1),
    )
    assert [await watchroom.post(body) for body in bodies] == [400, 400, 400, 400, 400, 413]
    wrong: tuple[Any, ...] = (None, {}, an_alert("new"), an_alert(began="soon"), {**an_alert(), "labels": ["x"]})
    assert await watchroom.post(a_delivery(*wrong, an_alert())) == 200
    assert len(await watchroom.heard()) == 1
    assert watchroom.count("malformed") == len(wrong)


async def test_a_delivery_that_can_not_be_stored_is_to_be_sent_again(watchroom: Watchroom) -> None:
    async def fails(_: AlertDelivery) -> Counter[Heard]:
        raise StoreError("the disk is full")

    app = aiohttp.web.Application()
    AlertDoor(TOKEN, fails, watchroom.world.metrics, watchroom.refusals).add_to(app)
    async with serve(app, "127.0.0.1", 0) as (host, port):
        watchroom.url = f"http://{host}:{port}{PATH}"
        assert await watchroom.post(a_delivery(an_alert())) == 503


async def test_a_storm_of_alerts_is_cut_and_told_in_one_line_a_day(watchroom: Watchroom) -> None:
    world = watchroom.world
    for batch in range(7):
        await watchroom.told(*(an_alert(pod=f"{batch}.{number}") for number in range(101)))
    kinds = Counter(kind for _, _, kind, _ in await world.outbox())
    assert kinds == {"alert": MOST_FIRING, "news": 1}
    assert (watchroom.count("new"), watchroom.count("left_out")) == (MOST_FIRING, 707 - MOST_FIRING)
    await world.empty_outbox()
    await watchroom.told(an_alert("resolved", pod="0.0"))
    await watchroom.told(an_alert(pod="6.0"))
    assert await watchroom.post(a_delivery(truncatedAlerts=3)) == 200
    assert [kind for _, _, kind, _ in await world.outbox()] == ["alert", "alert"]
    world.pass_by(days=1)
    assert await watchroom.post(a_delivery(truncatedAlerts=3)) == 200
    assert [kind for _, _, kind, _ in await world.outbox()] == ["alert", "alert", "news"]


async def test_alerts_that_nobody_tells_of_any_more_take_no_others_place(watchroom: Watchroom) -> None:
    world = watchroom.world
    for batch in range(5):
        await watchroom.told(*(an_alert(pod=f"{batch}.{number}") for number in range(100)))
    world.pass_by(days=8)
    await watchroom.told(an_alert(pod="another"))
    assert (watchroom.count("new"), watchroom.count("left_out")) == (MOST_FIRING + 1, 0)


async def test_alerts_are_forgotten_a_month_after_they_were_resolved_or_heard_of_last(watchroom: Watchroom) -> None:
    world, month = watchroom.world, timedelta(days=30)
    await watchroom.told(an_alert(), an_alert(pod="1"), an_alert(pod="2"))
    world.pass_by(days=20)
    await watchroom.told(an_alert("resolved"), an_alert(pod="1"))
    world.pass_by(days=29)
    assert await world.write(lambda tx: alerts.forget(tx, month)) == 1
    world.pass_by(days=2)
    assert await world.write(lambda tx: alerts.forget(tx, month)) == 2


async def test_the_event_logs_hash_is_told_once_a_week(watchroom: Watchroom) -> None:
    world = watchroom.world
    weekly, head = Weekly(world.database, ()), WeeklyNews("log head", OPS, render_head)
    await weekly.look(head)  # there are no events: nothing to tell
    await world.write(lambda tx: events.append(tx, EventKind.SANDBOX_READY, RAVEBOT))
    await asyncio.gather(*(weekly.look(head) for _ in range(3)))
    world.pass_by(days=7)
    await world.write(lambda tx: events.append(tx, EventKind.SANDBOX_READY, RAVEBOT))
    await weekly.look(head)
    world.pass_by(days=-7)
    await weekly.look(head)
    newest = await world.read(events.head)
    first, second = await watchroom.heard()
    assert "after the week 2025-W52: the event log has 1 event, with the hash" in first.body
    assert f"2026-W01: the event log has 2 events, the newest with the hash `{newest}`" in second.body
    assert first.kind == second.kind == "m.notice"


async def test_a_clock_that_was_decades_ahead_at_the_first_telling_silences_none_of_the_next(
    watchroom: Watchroom,
) -> None:
    world, head = watchroom.world, WeeklyNews("log head", OPS, render_head)
    await world.write(lambda tx: events.append(tx, EventKind.SANDBOX_READY, RAVEBOT))
    world.pass_by(days=365 * 73)
    await Weekly(world.database, ()).look(head)
    world.pass_by(days=-365 * 73)
    for _ in range(15):
        await Weekly(world.database, ()).look(head)  # a bot that is restarted twice a day
        world.pass_by(hours=12)
    weeks = [one.body.split(":")[0].removeprefix("For the record, after the week ") for one in await watchroom.heard()]
    assert weeks == ["2098-W49", "2026-W01"]


async def test_a_storm_of_alerts_holds_up_no_other_message_to_the_room(watchroom: Watchroom) -> None:
    await watchroom.told(*(an_alert(pod=str(number)) for number in range(20)))
    await watchroom.world.write(lambda tx: outbox.add(tx, RoomLane(OPS), Kind.NEWS, body={"text": "urgent"}))
    bodies = [one.body for one in await watchroom.heard()]
    assert len(bodies) == 21
    assert bodies.index("urgent") < 10
