"""Inbox and outbox: nothing twice, nothing lost, order within a lane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from ravebot.clock import from_us
from ravebot.sandboxes.model import MergeRequestRef, SandboxId
from ravebot.store import inbox, outbox
from ravebot.store.database import Database
from ravebot.store.signals import INTAKE
from ravebot.store.targets import GITLAB, MATRIX, TARGETS, Kind, Lane, NoteLane, RoomLane
from tests.support.clock import ManualClock
from tests.support.records import World, a_database_of_version_1, a_world, pending

pytestmark = pytest.mark.integration
MR_LANE = NoteLane(MergeRequestRef(7, 1))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


async def receive(world: World, key: str, lane: str = "7!1", source: str = "gitlab") -> bool:
    return await world.write(
        lambda tx: inbox.add(tx, source=source, key=key, lane=lane, kind="note", body=f"body of {key}")
    )


async def heads(world: World) -> list[str]:
    return [request.body.removeprefix("body of ") for request in await world.read(lambda tx: inbox.heads(tx, 100))]


async def finish(world: World, key: str, outcome: str = "done") -> bool:
    rows = await world.read(lambda tx: tx.all("SELECT id FROM inbox WHERE delivery_key = ?", (key,)))
    return await world.write(lambda tx: inbox.handled(tx, rows[0]["id"], outcome))


async def test_the_same_delivery_twice_is_one_row_also_after_it_was_handled(world: World) -> None:
    assert await receive(world, "k1")
    assert not await receive(world, "k1", lane="another")
    assert await heads(world) == ["k1"]
    assert await finish(world, "k1")
    assert not await receive(world, "k1")
    assert await heads(world) == []


async def test_the_same_key_of_another_source_is_another_delivery(world: World) -> None:
    assert await receive(world, "k1", source="gitlab")
    assert await receive(world, "k1", source="matrix")


async def test_only_the_oldest_of_each_lane_is_next(world: World) -> None:
    for key, lane in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")):
        await receive(world, key, lane)
    assert await heads(world) == ["a1", "b1"]
    await finish(world, "a1")
    assert await heads(world) == ["b1", "a2"]


async def test_lanes_of_two_sources_do_not_wait_for_each_other(world: World) -> None:
    await receive(world, "k1", "same", "gitlab")
    await receive(world, "k2", "same", "matrix")
    assert await heads(world) == ["k1", "k2"]


async def test_a_postponed_row_holds_its_lane_until_its_time_and_no_other(world: World) -> None:
    for key, lane in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        await receive(world, key, lane)
    first = (await world.read(lambda tx: inbox.heads(tx, 1)))[0]
    await world.write(lambda tx: inbox.postpone(tx, first.id, timedelta(seconds=5)))
    assert await heads(world) == ["b1"]
    world.pass_by(seconds=5)
    assert await heads(world) == ["a1", "b1"]
    assert (await world.read(lambda tx: inbox.heads(tx, 1)))[0].attempts == 1


async def test_a_clock_set_back_to_before_a_row_was_postponed_ends_its_wait_and_a_smaller_step_does_not(
    world: World,
) -> None:
    await receive(world, "k1")
    first = (await world.read(lambda tx: inbox.heads(tx, 1)))[0]
    await world.write(lambda tx: inbox.postpone(tx, first.id, timedelta(hours=1)))
    world.pass_by(minutes=30)
    world.pass_by(minutes=-30)
    assert await heads(world) == []
    world.pass_by(seconds=-1)
    assert await heads(world) == ["k1"]


async def test_a_row_is_handled_once(world: World) -> None:
    await receive(world, "k1")
    assert await finish(world, "k1", "first")
    assert not await finish(world, "k1", "second")
    row = await world.read(lambda tx: tx.one("SELECT outcome FROM inbox"))
    assert row
    assert row["outcome"] == "first"


async def test_what_waits_is_never_forgotten_and_what_was_handled_long_ago_is(world: World) -> None:
    for key in ("old", "waiting", "new"):
        await receive(world, key, key)
    await finish(world, "old")
    world.pass_by(days=15)
    await finish(world, "new")
    assert await world.write(lambda tx: inbox.forget_handled(tx, timedelta(days=14))) == 1
    assert await world.read(pending) == 1
    assert not await receive(world, "new")


async def test_a_new_delivery_wakes_the_intake_and_a_doubled_one_does_not(world: World) -> None:
    await receive(world, "k1")
    assert await world.database.signals.wait(INTAKE, 1)
    await receive(world, "k1")
    assert not await world.database.signals.wait(INTAKE, 0.01)


async def tell(world: World, lane: str | Lane, kind: Kind = Kind.CARD, merge_key: str | None = None) -> None:
    to = RoomLane(lane) if isinstance(lane, str) else lane
    await world.write(lambda tx: outbox.add(tx, to, kind, sandbox_id=SandboxId(1), body={"n": 1}, merge_key=merge_key))


async def test_what_an_agent_says_comes_after_what_is_told_of_sandboxes(world: World) -> None:
    await tell(world, RoomLane("a", 1), Kind.ANSWER, "answer:1")
    await tell(world, RoomLane("a", 1, receipts=True), Kind.RECEIPT)
    await tell(world, RoomLane("a", 2), Kind.ANSWER)
    await tell(world, RoomLane("a", 3), Kind.QUESTION)
    await tell(world, "a", Kind.CARD)
    due = await world.read(lambda tx: outbox.due_lanes(tx, MATRIX))
    assert due == ("a", "a 2", "a 3", "a 1 receipts", "a 1")


async def test_what_waits_for_more_to_come_is_sent_at_once_when_something_waits_behind_it(world: World) -> None:
    lane = RoomLane("a", 1)
    add = partial(outbox.add, lane=lane, kind=Kind.ANSWER, merge_key="answer:1", delay=timedelta(seconds=5))
    await world.write(add)
    assert await world.read(lambda tx: outbox.due_lanes(tx, MATRIX)) == ()
    await world.write(lambda tx: outbox.hasten(tx, lane))
    await tell(world, RoomLane("a", 2, receipts=True), Kind.RECEIPT)
    assert await world.read(lambda tx: outbox.due_lanes(tx, MATRIX)) == ("a 1", "a 2 receipts")
    head = await world.read(lambda tx: outbox.head(tx, MATRIX, "a 1"))
    assert head
    await world.write(lambda tx: outbox.attempt(tx, head.id))
    await world.write(lambda tx: outbox.postpone(tx, head.id, timedelta(seconds=60)))
    await world.write(lambda tx: outbox.hasten(tx, lane))
    assert await world.read(lambda tx: outbox.due_lanes(tx, MATRIX)) == ("a 2 receipts",)


async def test_it_is_known_what_may_be_on_its_way(world: World) -> None:
    await tell(world, "a", Kind.CARD, "card")
    assert not await world.read(lambda tx: outbox.in_flight(tx, "card"))
    head = await world.read(lambda tx: outbox.head(tx, MATRIX, "a"))
    assert head
    await world.write(lambda tx: outbox.attempt(tx, head.id))
    assert await world.read(lambda tx: outbox.in_flight(tx, "card"))
    await world.write(lambda tx: outbox.delivered(tx, head.id, "$1"))
    assert not await world.read(lambda tx: outbox.in_flight(tx, "card"))


async def test_a_change_is_merged_into_the_one_that_waits_unsent(world: World) -> None:
    for _ in range(3):
        await tell(world, "room", merge_key="card:1:room")
    await tell(world, "room", merge_key="card:2:room")
    await tell(world, "room", Kind.HISTORY)
    await tell(world, "room", Kind.HISTORY)
    assert await world.told_kinds() == ["matrix card", "matrix card", "matrix history", "matrix history"]


async def test_a_change_after_an_attempt_is_a_row_of_its_own_for_the_attempted_may_have_arrived(world: World) -> None:
    await tell(world, "room", merge_key="card")
    first = await world.read(lambda tx: outbox.head(tx, MATRIX, "room"))
    assert first
    assert not first.attempted
    await world.write(lambda tx: outbox.attempt(tx, first.id))
    await tell(world, "room", merge_key="card")
    await tell(world, "room", merge_key="card")
    assert len(await world.outbox()) == 2
    again = await world.read(lambda tx: outbox.head(tx, MATRIX, "room"))
    assert again
    assert (again.id, again.attempted, again.attempts) == (first.id, True, 1)
    await world.write(lambda tx: outbox.delivered(tx, first.id, "$event"))
    following = await world.read(lambda tx: outbox.head(tx, MATRIX, "room"))
    assert following
    assert (following.id, following.attempted) == (first.id + 1, False)


async def test_the_first_attempts_time_is_kept(world: World) -> None:
    await tell(world, "room")
    await world.write(lambda tx: outbox.attempt(tx, 1))
    world.pass_by(hours=1)
    await world.write(lambda tx: outbox.attempt(tx, 1))
    row = await world.read(lambda tx: tx.one("SELECT attempted_at - created_at AS after, attempts FROM outbox"))
    assert row
    assert tuple(row) == (0, 2)


async def test_a_lane_is_due_when_its_oldest_row_is(world: World) -> None:
    for lane in ("a", "b", "a"):
        await tell(world, lane, Kind.HISTORY)
    await tell(world, MR_LANE, Kind.NOTE)
    assert await world.read(lambda tx: outbox.due_lanes(tx, MATRIX)) == ("a", "b")
    assert await world.read(lambda tx: outbox.due_lanes(tx, GITLAB)) == ("7!1",)
    await world.write(lambda tx: outbox.postpone(tx, 1, timedelta(seconds=5)))
    assert await world.read(lambda tx: outbox.due_lanes(tx, MATRIX)) == ("b",)
    assert await world.read(lambda tx: outbox.head(tx, MATRIX, "a")) is None
    assert await world.read(lambda tx: outbox.seconds_to_next(tx, MATRIX)) == 5
    assert await world.read(lambda tx: outbox.seconds_to_next(tx, GITLAB)) is None
    world.pass_by(seconds=5)
    assert await world.read(lambda tx: outbox.due_lanes(tx, MATRIX)) == ("a", "b")


async def test_a_clock_set_back_to_before_a_message_was_postponed_ends_its_wait(world: World) -> None:
    await tell(world, "room")
    await world.write(lambda tx: outbox.postpone(tx, 1, timedelta(hours=1)))
    assert await world.read(lambda tx: outbox.due_lanes(tx, MATRIX)) == ()
    world.pass_by(seconds=-1)
    assert await world.read(lambda tx: outbox.due_lanes(tx, MATRIX)) == ("room",)
    assert await world.read(lambda tx: outbox.head(tx, MATRIX, "room"))
    assert await world.read(lambda tx: outbox.seconds_to_next(tx, MATRIX)) is None


async def test_the_age_of_what_waits_grows_again_after_the_clock_was_set_back(world: World) -> None:
    await receive(world, "k1")
    await tell(world, "room")
    world.pass_by(hours=-3)
    now = world.clock.now()
    await world.write(lambda tx: inbox.postpone(tx, 1, timedelta(seconds=5)))
    await world.write(lambda tx: outbox.attempt(tx, 1))
    assert await world.read(lambda tx: outbox.backlog(tx, MATRIX)) == (1, now)
    row = await world.read(lambda tx: tx.one("SELECT received_at FROM inbox"))
    assert row
    assert from_us(row["received_at"]) == now


async def test_rows_of_the_version_before_are_all_there_after_the_upgrade_and_due(tmp_path: Path) -> None:
    waits = {"attempts": 3, "next_attempt_at": 10**18}
    told = {"target": MATRIX.name, "lane": "room", "kind": "say", **waits}
    heard = {"source": "gitlab", "delivery_key": "k", "lane": "a", "kind": "note", "body": "body of k", **waits}
    done = {"source": "gitlab", "delivery_key": "d", "lane": "a", "kind": "note", "handled_at": 5, "outcome": "done"}
    path = a_database_of_version_1(tmp_path / "old", told, {**told, "delivered_at": 5}, inbox=(heard, done))
    async with Database(path, ManualClock()) as database:
        message = await database.read(lambda tx: outbox.head(tx, MATRIX, "room"))
        assert message
        assert (message.id, message.key, message.attempts, message.unanswered_for) == (1, "1", 3, None)
        [request] = await database.read(lambda tx: inbox.heads(tx, 9))
        assert (request.id, request.body, request.attempts) == (1, "body of k", 3)
        kept = await database.read(
            lambda tx: tx.all("SELECT handled_at FROM inbox UNION ALL SELECT delivered_at FROM outbox")
        )
    assert [row[0] for row in kept] == [None, 5, None, 5]


async def test_the_backlog_says_how_many_wait_and_since_when(world: World) -> None:
    assert await world.read(lambda tx: outbox.backlog(tx, MATRIX)) == (0, None)
    asked = world.clock.now()
    await tell(world, "room", Kind.HISTORY)
    world.pass_by(minutes=1)
    await tell(world, "room", Kind.HISTORY)
    assert await world.read(lambda tx: outbox.backlog(tx, MATRIX)) == (2, asked)
    await world.write(lambda tx: outbox.delivered(tx, 1, "x"))
    assert (await world.read(lambda tx: outbox.backlog(tx, MATRIX)))[0] == 1
    world.pass_by(days=15)
    assert await world.write(lambda tx: outbox.forget_delivered(tx, timedelta(days=14))) == 1
    assert (await world.read(lambda tx: outbox.backlog(tx, MATRIX)))[0] == 1


@pytest.mark.parametrize("lane", [RoomLane("room"), MR_LANE])
async def test_a_message_wakes_its_own_delivery(world: World, lane: Lane) -> None:
    await tell(world, lane, Kind.REPLY)
    for target in TARGETS:
        assert await world.database.signals.wait(target.signal, 0.01) == (target is lane.target)


async def test_lanes_whose_tries_fail_again_and_again_delay_no_other(world: World) -> None:
    for iid in range(20):
        await tell(world, NoteLane(MergeRequestRef(1, iid)), Kind.REPLY)
    ids = [row["id"] for row in await world.read(lambda tx: tx.all("SELECT id FROM outbox"))]
    world.pass_by(seconds=20)
    for one in ids:
        await world.write(partial(outbox.postpone, message_id=one, delay=timedelta(seconds=10)))
    await tell(world, NoteLane(MergeRequestRef(2, 1)), Kind.REPLY)
    world.pass_by(seconds=1)
    await tell(world, NoteLane(MergeRequestRef(2, 2)), Kind.REPLY)
    world.pass_by(seconds=20)
    lanes = await world.read(lambda tx: outbox.due_lanes(tx, GITLAB))
    assert lanes[-1] == "2!2"
    assert len(lanes) == 22
    for one in ids:
        await world.write(partial(outbox.postpone, message_id=one, delay=timedelta(seconds=0)))
    world.pass_by(seconds=1)
    assert (await world.read(lambda tx: outbox.due_lanes(tx, GITLAB)))[:2] == ("2!1", "2!2")


async def test_the_index_of_answers_is_not_taken_for_cards_and_notes_which_have_very_many(world: World) -> None:
    sql = "SELECT 1 FROM outbox WHERE merge_key = ? AND delivered_at IS NULL AND attempted_at IS NULL"
    plan = [row["detail"] for row in await world.read(lambda tx: tx.all(f"EXPLAIN QUERY PLAN {sql}", ("x",)))]
    assert any("outbox_merge" in step for step in plan), plan


async def test_a_card_is_found_by_its_sandbox_and_room(world: World) -> None:
    one = SandboxId(1)
    assert await world.read(lambda tx: outbox.card(tx, one, "room")) is None
    await world.write(lambda tx: outbox.set_card(tx, one, "room", outbox.Card("!r", "$a")))
    await world.write(lambda tx: outbox.set_card(tx, one, "other", outbox.Card("!o", "$b")))
    await world.write(lambda tx: outbox.set_card(tx, one, "room", outbox.Card("!r", "$c", "shown", replaced=True)))
    expected = outbox.Card("!r", "$c", "shown", True, world.clock.now())
    assert await world.read(lambda tx: outbox.card(tx, one, "room")) == expected


async def test_the_id_of_a_room_is_remembered_and_may_change(world: World) -> None:
    await world.write(lambda tx: outbox.set_room(tx, "#dev", "!one"))
    await world.write(lambda tx: outbox.set_room(tx, "#dev", "!two"))
    assert await world.read(outbox.rooms) == {"#dev": "!two"}
