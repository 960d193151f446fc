"""What is kept of what people said: what a command needs, until it is acted on, and then nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import aiohttp
import pytest

from ravebot.clock import SystemClock
from ravebot.gitlab.receiver import webhook_handler
from ravebot.gitlab.refusals import Refusals
from ravebot.gitlab.webhook import WebhookDelivery, WebhookSecrets
from ravebot.intake.loop import Intake
from ravebot.matrix.incoming import read_message
from ravebot.store import inbox, outbox
from ravebot.store.database import Database, Transaction, migrate, migrations
from ravebot.store.targets import MATRIX, Kind, RoomLane
from ravebot.web.metrics import Metrics
from ravebot.web.server import make_app, serve
from tests.integration.test_intake_gitlab import Desk, desk
from tests.integration.test_intake_matrix import ALICE, DEV, Chat, chat
from tests.support.clock import ManualClock
from tests.support.gitlab import MergeRequest
from tests.support.gitlab import payloads as hooks
from tests.support.records import ROOM, pending
from tests.support.rooms import room_handler

pytestmark = pytest.mark.integration
__all__ = ["chat", "desk"]  # the fixtures, from where they are made

LONG = "what nobody needs to keep " * 40_000  # a megabyte


@asynccontextmanager
async def receiving(desk: Desk) -> AsyncIterator[str]:
    """The receiver as the bot serves it, over the desk's database; yields its address."""

    async def accept(delivery: WebhookDelivery) -> bool:
        return await desk.world.write(
            lambda tx: inbox.add(
                tx, source="gitlab", key=delivery.key, lane=delivery.lane, kind=delivery.kind, body=delivery.body
            )
        )

    clock = SystemClock()
    handler = webhook_handler(WebhookSecrets("a secret"), clock, accept, lambda *_: None, Refusals(clock))
    async with serve(make_app(handler, {}, Metrics()), "127.0.0.1", 0) as (host, port):
        yield f"http://{host}:{port}/webhooks/gitlab"


async def post(url: str, body: object) -> int:
    async with (
        aiohttp.ClientSession(headers={"X-Gitlab-Token": "a secret"}) as session,
        session.post(url, data=json.dumps(body).encode()) as response,
    ):
        return response.status


def comment(desk: Desk, mr: MergeRequest, text: str) -> object:
    """The webhook of a comment of alice's."""
    note = desk.server.comment(mr, desk.alice, text)
    assert note
    return hooks.note_event(desk.server.url, mr, note, desk.alice, "create")


async def work_both(desk: Desk) -> None:
    """Run the intake, rooms and merge requests, until no request is left."""
    world = desk.world
    rooms = room_handler(world, desk.gitlab, world.config)
    task = asyncio.create_task(Intake(world.database, {"gitlab": desk.handler(), "matrix": rooms}).run())
    try:
        async with asyncio.timeout(60):
            while await world.read(pending):
                await asyncio.sleep(0.005)
    finally:
        task.cancel()
        await asyncio.wait({task})


def used_bytes(tx: Transaction) -> int:
    """What the database holds, less the pages that are free again."""
    size, pages, free = (tx.one(f"PRAGMA {name}") for name in ("page_size", "page_count", "freelist_count"))
    assert size
    assert pages
    assert free
    return int(size[0]) * (int(pages[0]) - int(free[0]))


async def bodies(desk: Desk, table: str) -> list[str]:
    rows = await desk.world.read(lambda tx: tx.all(f"SELECT body FROM {table} ORDER BY id"))
    return [row["body"] for row in rows]


async def test_comments_under_a_long_description_take_little_room_and_none_once_they_are_handled(desk: Desk) -> None:
    mr = desk.open(description=LONG)
    before = await desk.world.read(used_bytes)
    async with receiving(desk) as url:
        assert await post(url, hooks.merge_request_event(desk.server.url, mr, desk.alice, "open")) == 202
        for number in range(20):
            text = f"{LONG[:100_000]}\n/sandbox {'stop' if number % 2 else 'start'}\n{LONG[:100_000]}"
            assert await post(url, comment(desk, mr, text)) == 202
        assert await desk.world.read(used_bytes) - before < 100_000
        await desk.work(seconds=30)
        assert await desk.answers() == ["white_check_mark"] * 20
        assert await desk.world.read(used_bytes) - before < 100_000
    assert await bodies(desk, "inbox") == [""] * 21


async def test_a_delivery_that_comes_again_after_it_was_handled_is_still_a_duplicate(desk: Desk) -> None:
    mr = desk.open()
    opened, asked = (
        hooks.merge_request_event(desk.server.url, mr, desk.alice, "open"),
        comment(desk, mr, "/sandbox stop"),
    )
    async with receiving(desk) as url:
        assert [await post(url, body) for body in (opened, asked)] == [202, 202]
        await desk.work()
        assert [await post(url, body) for body in (opened, asked)] == [200, 200]
    assert await desk.world.read(pending) == 0
    assert await bodies(desk, "inbox") == ["", ""]


async def test_a_command_that_polling_found_is_kept_without_the_rest_of_the_comment(desk: Desk) -> None:
    mr = desk.open()
    await desk.poller.look()
    await desk.say(mr, desk.alice, f"{LONG[:100_000]}\n/sandbox start\n{LONG[:100_000]}", webhook=False)
    await desk.poller.look()
    [body] = await bodies(desk, "inbox")
    assert len(body) < 1000
    await desk.work()
    assert await desk.answers() == ["white_check_mark"]
    assert await bodies(desk, "inbox") == [""]


async def test_a_comment_that_can_not_be_obeyed_is_answered_to_its_author_though_little_of_it_was_kept(
    desk: Desk,
) -> None:
    mr = desk.open()
    asked = comment(desk, mr, f"{LONG[:50_000]}\n/sandbox start")
    mr.iid = 99  # GitLab has it no more
    async with receiving(desk) as url:
        assert await post(url, asked) == 202
    await desk.work()
    assert (await desk.outcomes())[0].startswith("given up: GitLab has no such thing")
    replies = [json.loads(body) for _, _, kind, body in await desk.world.outbox() if kind == "reply"]
    assert [reply["username"] for reply in replies] == ["alice"]
    assert await bodies(desk, "inbox") == [""]


async def test_of_a_message_only_the_command_is_kept_and_nothing_once_it_is_handled(chat: Chat, desk: Desk) -> None:
    before = await desk.world.read(used_bytes)
    for number in range(20):
        event = {
            "type": "m.room.message",
            "event_id": f"$event{number}",
            "sender": ALICE,
            "origin_server_ts": int(desk.world.clock.now().timestamp() * 1000),
            "content": {
                "msgtype": "m.text",
                "body": f"!rave help\n{LONG[:60_000]}",
                "m.relates_to": {"rel_type": "m.thread", "event_id": "$" + "x" * 50_000},
            },
        }
        message = read_message(event, DEV, "@ravebot:example.org")
        assert message
        await chat.journal.save((message,), f"batch {number}")
    assert await desk.world.read(used_bytes) - before < 100_000
    await chat.work()
    assert await bodies(desk, "inbox") == [""] * 20
    assert ["!rave extend REF [1h]" in reply for reply in await chat.replies()] == [True] * 20
    assert {len(body) < 10_000 for body in await bodies(desk, "outbox")} == {True}


@pytest.mark.parametrize(
    ("status", "answer"),
    [(503, "GitLab does not answer as it should right now. Your command is kept"), (404, "GitLab does not have that")],
)
async def test_a_message_that_can_not_be_obeyed_is_answered_in_its_room_and_thread(
    chat: Chat, desk: Desk, status: int, answer: str
) -> None:
    desk.open()
    await desk.poller.look()
    desk.server.fail(status)
    relation = {"rel_type": "m.thread", "event_id": "$root"}
    content = {"msgtype": "m.text", "body": f"!rave start 1\n{LONG[:60_000]}", "m.relates_to": relation}
    event = {"type": "m.room.message", "event_id": "$asked", "sender": ALICE, "content": content}
    message = read_message(event, DEV, "@ravebot:example.org")
    assert message
    await chat.journal.save((message,), "batch")
    assert max(len(body) for body in await bodies(desk, "inbox")) < 1000
    with suppress(TimeoutError):
        await chat.work(0.3)
    [(lane, reply)] = [(lane, json.loads(body)) for _, lane, kind, body in await desk.world.outbox() if kind == "reply"]
    assert lane == ROOM
    assert reply["content"]["body"].startswith(answer)
    assert reply["content"]["m.relates_to"]["event_id"] == "$root"
    assert reply["content"]["m.relates_to"]["m.in_reply_to"] == {"event_id": "$asked"}


async def test_what_was_delivered_is_not_kept(desk: Desk) -> None:
    def deliver(tx: Transaction) -> None:
        outbox.add(tx, RoomLane(DEV), Kind.REPLY, body={"content": {"body": LONG}})
        outbox.add(tx, RoomLane(DEV), Kind.REPLY, body={"content": {"body": "it waits"}})
        outbox.delivered(tx, 1, "$event")

    await desk.world.write(deliver)
    assert await bodies(desk, "outbox") == ["{}", '{"content":{"body":"it waits"}}']


async def test_a_database_of_the_first_version_keeps_its_waiting_requests_and_loses_the_words_of_the_handled(
    desk: Desk, tmp_path: Path
) -> None:
    """Every kind of row that waits is acted on as before; what was handled or delivered is emptied."""
    mr, other = desk.open(description=LONG[:1000]), desk.open("other")
    opened = hooks.merge_request_event(desk.server.url, mr, desk.alice, "open")
    author = {"id": desk.alice.id, "username": "alice"}
    ref = {"project_id": desk.project.id, "iid": other.iid}
    found = {
        "ref": ref, "project_path": "group/app", "note_id": 9001, "author": author, "mr": None, "created_at": None,
        "text": f"{LONG[:1000]}\n/sandbox start",
    }  # fmt: skip
    said = {
        "event_id": "$said", "room_id": DEV, "sender": ALICE, "text": f"!rave help\n{LONG[:1000]}",
        "thread_root": None, "direct": False, "at_ms": 0,
    }  # fmt: skip
    rows = [
        ("gitlab", "delivery:1", f"{desk.project.id}!1", "merge_request", opened),
        ("gitlab", "note:1", f"{desk.project.id}!1", "note", comment(desk, mr, f"{LONG[:1000]}\n/sandbox stop")),
        ("gitlab", "note:9001", f"{desk.project.id}!2", "polled_note", found),
        ("matrix", "$said", DEV, "message", said),
    ]
    path = tmp_path / "first" / "ravebot.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, migrations()[:1])
        add = (
            "INSERT INTO inbox (source, delivery_key, lane, kind, body, received_at, handled_at) VALUES (?,?,?,?,?,?,?)"
        )
        for source, key, lane, kind, body in rows:
            connection.execute(add, (source, key, lane, kind, json.dumps(body), 1, None))
            connection.execute(add, (source, f"handled {key}", lane, kind, json.dumps(body), 1, 1))
        tell = "INSERT INTO outbox (target, lane, kind, body, created_at, delivered_at) VALUES (?, ?, ?, ?, 1, ?)"
        connection.execute(tell, (MATRIX.name, DEV, "reply", json.dumps({"content": {"body": "told"}}), 1))
        connection.execute(tell, (MATRIX.name, DEV, "reply", json.dumps({"content": {"body": "not yet"}}), None))
    async with Database(path, ManualClock()) as database:
        desk.world.database = database
        await database.write(lambda tx: outbox.set_room(tx, ROOM, DEV))
        kept = await database.read(lambda tx: tx.all("SELECT body FROM inbox WHERE handled_at IS NOT NULL"))
        assert [row["body"] for row in kept] == [""] * 4
        assert await bodies(desk, "outbox") == ["{}", '{"content": {"body": "not yet"}}']
        await work_both(desk)
        outcomes = await database.read(
            lambda tx: tx.all("SELECT delivery_key, outcome FROM inbox WHERE delivery_key NOT LIKE 'handled%'")
        )
        assert {row["delivery_key"]: row["outcome"] for row in outcomes} == {
            "delivery:1": "queued",
            "note:1": "The sandbox of group/app!1 is being stopped.",
            "note:9001": "A sandbox for group/app!2 is on its way.",
            "$said": "help",
        }
        assert not await database.write(
            lambda tx: inbox.add(tx, source="gitlab", key="handled note:1", lane="x", kind="note", body="{}")
        )
