"""Delivery of the outbox: order within a lane, retries for as long as it takes, and nothing told twice."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from ravebot.clock import SystemClock
from ravebot.errors import Forbidden, NotFound, SlowDown, StoreError, Unacceptable, Unavailable
from ravebot.notify.delivery import Delivery
from ravebot.sandboxes.model import MergeRequestRef, SandboxId
from ravebot.store import outbox
from ravebot.store.database import Database
from ravebot.store.targets import GITLAB, MATRIX, Kind, NoteLane, RoomLane, Target
from tests.support.edges import FarEnd

pytestmark = pytest.mark.integration


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database(tmp_path / "ravebot.db", SystemClock()) as database:
        yield database


@pytest.fixture
def far_end() -> FarEnd:
    return FarEnd()


@asynccontextmanager
async def delivering(
    database: Database, far_end: FarEnd, results: list[str] | None = None, target: Target = MATRIX
) -> AsyncIterator[None]:
    """The loop, ended as a crash ends it: without a word."""

    def note(_target: str, result: str) -> None:
        if results is not None:
            results.append(result)

    delivery = Delivery(database, target, far_end, note)
    task = asyncio.create_task(delivery.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def tell(database: Database, lane: str, *texts: str, merge_key: str | None = None) -> None:
    for text in texts:
        await database.write(
            partial(
                outbox.add,
                lane=RoomLane(lane),
                kind=Kind.SAY,
                sandbox_id=SandboxId(1),
                body={"text": text},
                merge_key=merge_key,
            )
        )


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def texts(far_end: FarEnd, lane: str | None = None) -> list[str]:
    return [str(message.body["text"]) for message in far_end.got if lane in (None, message.lane)]


async def waiting(database: Database) -> int:
    return (await database.read(lambda tx: outbox.backlog(tx, MATRIX)))[0]


async def all_noted(database: Database, *, but: int = 0) -> None:
    """The loop notes what was sent a moment after the far end has it."""
    async with asyncio.timeout(60):
        while await waiting(database) > but:
            await asyncio.sleep(0.005)


async def next_due(database: Database) -> float:
    """Seconds to the next try of a row that the loop postpones a moment after it failed."""
    async with asyncio.timeout(60):
        while (due := await database.read(lambda tx: outbox.seconds_to_next(tx, MATRIX))) is None:
            await asyncio.sleep(0.005)
    return due


async def test_messages_arrive_in_order_lane_by_lane(database: Database, far_end: FarEnd) -> None:
    numbers = [str(number) for number in range(20)]
    for number in numbers:
        await tell(database, "a", f"a{number}")
        await tell(database, "b", f"b{number}")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.got) == 40)
        assert texts(far_end, "a") == [f"a{number}" for number in numbers]
        assert texts(far_end, "b") == [f"b{number}" for number in numbers]
        await all_noted(database)
    assert len(far_end.tried) == 40


async def test_a_message_that_comes_later_is_sent_at_once(database: Database, far_end: FarEnd) -> None:
    async with delivering(database, far_end):
        await asyncio.sleep(0.05)
        await tell(database, "a", "late")
        await until(lambda: texts(far_end) == ["late"], 3)


async def test_a_lane_waits_for_its_failed_message_and_other_lanes_do_not(database: Database, far_end: FarEnd) -> None:
    far_end.refuses["a"] = Unavailable("down")
    await tell(database, "a", "first", "second")
    results: list[str] = []
    async with delivering(database, far_end, results):
        await tell(database, "b", "other")
        await until(lambda: texts(far_end) == ["other"])
        await until(lambda: results.count("retried") >= 2)
        far_end.refuses.clear()
        await until(lambda: len(far_end.got) == 3)
    assert texts(far_end, "a") == ["first", "second"]


async def test_pauses_between_tries_grow(database: Database, far_end: FarEnd) -> None:
    far_end.errors = [Unavailable("down")] * 3
    await tell(database, "a", "text")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.got) == 1, 10)
    moments = [moment for _, moment in far_end.tried]
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert len(pauses) == 3
    for pause, grown in zip(pauses, (0.5, 1.0, 2.0), strict=True):
        assert grown / 2 - 0.01 <= pause <= grown + 0.5


async def test_a_server_that_says_when_to_come_back_is_left_alone_by_every_lane(
    database: Database, far_end: FarEnd
) -> None:
    far_end.errors = [SlowDown("slow down", 0.6)]
    await tell(database, "a", "first")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.tried) == 1)
        await asyncio.sleep(0.05)
        await tell(database, "b", "second")
        await until(lambda: len(far_end.got) == 2)
    first, *later = [moment for _, moment in far_end.tried]
    assert all(moment - first >= 0.6 for moment in later)


async def test_gitlab_that_says_when_to_come_back_is_left_alone_for_that_endpoint_and_project_only(
    database: Database, far_end: FarEnd
) -> None:
    """A crowd on one merge request must not delay the notes of others; it may be an hour until the limit is over."""
    mine, other = MergeRequestRef(1, 1), MergeRequestRef(2, 1)
    far_end.errors = [SlowDown("slow down", 30)]

    async def add(ref: MergeRequestRef, kind: Kind) -> None:
        await database.write(partial(outbox.add, lane=NoteLane(ref), kind=kind, body={"text": f"{kind} {ref}"}))

    async with delivering(database, far_end, target=GITLAB):
        await add(mine, Kind.EMOJI)
        await until(lambda: len(far_end.tried) == 1)
        for iid in range(2, 12):  # more than there are slots
            await add(MergeRequestRef(1, iid), Kind.EMOJI)
        await add(other, Kind.EMOJI)
        await add(MergeRequestRef(1, 20), Kind.REPLY)
        await until(lambda: len(far_end.got) == 2, 3)
        await asyncio.sleep(0.1)
    assert sorted(texts(far_end)) == [f"emoji {other}", f"reply {MergeRequestRef(1, 20)}"]
    assert len(far_end.tried) == 3, "what waits for the limit is not asked of GitLab again"


async def test_a_lane_that_must_wait_for_itself_holds_up_no_other(database: Database, far_end: FarEnd) -> None:
    far_end.refuses["a"] = Unavailable("this room is tried again later", 30)
    await tell(database, "a", "first")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.tried) == 1)
        await tell(database, "b", "second")
        await until(lambda: texts(far_end) == ["second"], 3)
        assert 25 < await next_due(database) <= 30


async def test_what_can_never_be_sent_is_given_up_and_its_lane_goes_on(database: Database, far_end: FarEnd) -> None:
    far_end.errors = [Unacceptable("too large")]
    await tell(database, "a", "first", "second")
    results: list[str] = []
    async with delivering(database, far_end, results):
        await until(lambda: texts(far_end) == ["second"])
        await until(lambda: results == ["given up", "delivered"])
    row = await database.read(lambda tx: tx.one("SELECT result FROM outbox WHERE id = 1"))
    assert row
    assert row["result"] == "refused: too large"


async def test_a_sender_that_breaks_in_an_unforeseen_way_ends_nothing(database: Database, far_end: FarEnd) -> None:
    far_end.errors = [KeyError(0)]
    await tell(database, "a", "first")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.tried) == 1)
        await tell(database, "b", "second")
        await until(lambda: texts(far_end) == ["second"])
        await all_noted(database, but=1)  # which is tried again
        assert await waiting(database) == 1


async def test_a_sender_that_can_not_look_up_one_message_holds_up_no_other(database: Database, far_end: FarEnd) -> None:
    far_end.unreadable.add("a")
    await tell(database, "a", "what breaks it")
    await tell(database, "b", "sound")
    async with delivering(database, far_end):
        await until(lambda: texts(far_end) == ["sound"])
        assert 55 < await next_due(database) <= 60


async def test_a_sender_that_could_not_write_to_the_database_tries_again_in_a_moment(
    database: Database, far_end: FarEnd
) -> None:
    far_end.errors = [StoreError("the disk is full")]
    await tell(database, "a", "first")
    results: list[str] = []
    async with delivering(database, far_end, results):
        await until(lambda: results == ["delivered"])
    assert texts(far_end) == ["first"]


async def test_while_the_database_is_locked_nothing_is_lost_and_the_loop_goes_on(
    tmp_path: Path, far_end: FarEnd
) -> None:
    async with Database(tmp_path / "ravebot.db", SystemClock(), patience_seconds=0.1) as database:
        async with delivering(database, far_end):
            with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
                await tell(database, "a", "first")
                await until(lambda: len(far_end.got) == 1)
                far_end.stuck = asyncio.Event()
                await tell(database, "a", "second")
                await until(lambda: len(far_end.got) == 2)
                other.execute("BEGIN IMMEDIATE")
                far_end.stuck.set()  # it was sent, and that can't be noted now
                await asyncio.sleep(0.4)
                other.execute("ROLLBACK")
            await until(lambda: len(far_end.got) == 3)
            await all_noted(database)
        assert [(message.id, message.attempted) for message in far_end.got] == [(1, False), (2, False), (2, True)]


async def test_the_number_of_a_row_is_never_given_out_again(database: Database, far_end: FarEnd) -> None:
    await tell(database, "a", "first")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.got) == 1)
        await all_noted(database)
    await database.write(lambda tx: outbox.forget_delivered(tx, timedelta(seconds=-60)))
    await tell(database, "a", "second")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.got) == 2)
    assert [message.id for message in far_end.got] == [1, 2]


@pytest.mark.parametrize("error", [Forbidden("no power in the room"), NotFound("no such room")])
async def test_what_is_refused_is_kept_and_tried_much_later(
    database: Database, far_end: FarEnd, error: Exception
) -> None:
    far_end.refuses["a"] = error
    await tell(database, "a", "text")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.tried) == 1)
        await tell(database, "b", "other")
        await until(lambda: texts(far_end) == ["other"])
        assert 50 < await next_due(database) <= 60


async def test_why_a_message_was_refused_is_known_after_a_restart_and_while_the_far_end_is_away(
    tmp_path: Path, far_end: FarEnd
) -> None:
    far_end.refuses["a"] = Forbidden("no power in the room")
    async with Database(tmp_path / "ravebot.db", SystemClock()) as database:
        await tell(database, "a", "text")
        await tell(database, "b", "other")
        async with delivering(database, far_end):
            await all_noted(database, but=1)
            await next_due(database)
    far_end.refuses.clear()
    far_end.errors = [Unavailable("down")] * 10
    async with Database(tmp_path / "ravebot.db", SystemClock()) as database:
        await database.write(lambda tx: tx.execute("UPDATE outbox SET next_attempt_at = 0"))
        async with delivering(database, far_end):
            await until(lambda: len(far_end.tried) == 3)
            await asyncio.sleep(0.05)
        found = await database.read(lambda tx: outbox.waiting(tx, MATRIX))
    assert [(lane.name, lane.count, lane.refused) for lane in found] == [("a", 1, "no power in the room")]


async def test_changes_that_come_while_the_server_is_away_are_sent_as_one(database: Database, far_end: FarEnd) -> None:
    far_end.errors = [Unavailable("down")]
    await tell(database, "a", "one", merge_key="card")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.tried) == 1)
        for number in range(10):
            await tell(database, "a", f"change {number}", merge_key="card")
        await until(lambda: len(far_end.got) == 2)
        await asyncio.sleep(0.05)
    assert len(far_end.got) == 2


async def test_after_a_crash_between_send_and_note_the_same_row_is_sent_again_and_known_as_attempted(
    database: Database, far_end: FarEnd
) -> None:
    far_end.stuck = asyncio.Event()
    await tell(database, "a", "first", "second")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.got) == 1)
    far_end.stuck = None
    async with delivering(database, far_end):
        await until(lambda: len(far_end.got) == 3)
        await all_noted(database)
    assert [(message.id, message.attempted) for message in far_end.got] == [(1, False), (1, True), (2, False)]


async def test_a_crash_before_the_answer_leaves_the_attempt_in_the_database(
    database: Database, far_end: FarEnd
) -> None:
    far_end.stuck = asyncio.Event()
    await tell(database, "a", "first")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.got) == 1)
        row = await database.read(lambda tx: tx.one("SELECT attempted_at, delivered_at FROM outbox"))
        assert row
        assert row["attempted_at"] is not None
        assert row["delivered_at"] is None


async def test_what_was_told_is_never_sent_again_by_a_new_process(database: Database, far_end: FarEnd) -> None:
    await tell(database, "a", "text")
    for _ in range(3):
        async with delivering(database, far_end):
            await until(lambda: len(far_end.got) == 1)
            await all_noted(database)
            await asyncio.sleep(0.02)
    assert len(far_end.got) == 1
    row = await database.read(lambda tx: tx.one("SELECT result FROM outbox"))
    assert row
    assert row["result"] == "$1"


async def test_a_hundred_lanes_are_all_served(database: Database, far_end: FarEnd) -> None:
    for number in range(100):
        await tell(database, f"lane {number}", "text")
    async with delivering(database, far_end):
        await until(lambda: len(far_end.got) == 100)
