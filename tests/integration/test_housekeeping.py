"""What is forgotten, what is kept, and what is counted."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.agents.model import TurnState
from ravebot.clock import to_us
from ravebot.config.model import KeepConfig
from ravebot.errors import Unavailable
from ravebot.operations.housekeeping import LOOKED_AT, Housekeeping
from ravebot.operations.measuring import Measuring
from ravebot.sandboxes.model import RAVEBOT, Stage, StageResult
from ravebot.store import agent_texts, agent_work, api_tokens, conversations, inbox, outbox, sandboxes
from ravebot.store.api_tokens import ApiToken, KeptAnswer, TokenId
from ravebot.store.database import Transaction, set_meta
from ravebot.store.targets import TARGETS
from tests.support.agent_yard import ALICE, an_agent_yard
from tests.support.records import a_merge_request
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration
MR = a_merge_request()
GONE = "rave-test-0123456789"
DAY = 24 * 3600


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path / "state") as yard:
        yield yard


def housekeeping(yard: Yard, *logs: tuple[Path, str], keep: KeepConfig | None = None) -> Housekeeping:
    return Housekeeping(yard.clock, yard.database, yard.provider, keep or KeepConfig(), logs)


async def a_day_on(yard: Yard) -> None:
    """As if the last look had been a day ago."""
    yesterday = to_us(yard.clock.now() - timedelta(days=1))
    await yard.write(lambda tx: set_meta(tx, LOOKED_AT, str(yesterday)))


def measuring(yard: Yard) -> Measuring:
    return Measuring(yard.config, yard.clock, yard.database, yard.provider, yard.metrics, TARGETS)


@asynccontextmanager
async def at_work(loop: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(loop)
    try:
        yield task
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until_gone(path: Path) -> None:
    async with asyncio.timeout(60):
        while path.exists():
            await asyncio.sleep(0.01)


def log_of(folder: Path, name: str, days_old: float) -> Path:
    path = folder / name
    path.write_text("it said this\n")
    then = time.time() - days_old * DAY
    os.utime(path, (then, then))
    return path


async def test_logs_of_machines_that_are_long_gone_are_removed_and_no_others(yard: Yard, tmp_path: Path) -> None:
    await yard.make_ready(MR)
    live = (await yard.machine(MR)).name
    old, rolled = log_of(tmp_path, f"{GONE}.log", 8), log_of(tmp_path, f"{GONE}.log.0", 8)
    kept = [
        log_of(tmp_path, "rave-test-abcdef0123.log", 6),
        log_of(tmp_path, f"{live}.log", 8),
        log_of(tmp_path, "rave-other-0123456789.log", 8),
        log_of(tmp_path, "mine.log", 8),
    ]
    elsewhere = tmp_path / "nowhere", "*.log*"
    logs = tmp_path, "rave-test-??????????.log*"
    await a_day_on(yard)
    async with at_work(housekeeping(yard, elsewhere, logs).forget()):
        await until_gone(old)
        await until_gone(rolled)
    assert all(path.exists() for path in kept)


async def test_a_log_that_can_not_be_removed_keeps_no_other_from_it(yard: Yard, tmp_path: Path) -> None:
    stubborn = tmp_path / "a.log"
    stubborn.mkdir()
    os.utime(stubborn, (0, 0))
    old = log_of(tmp_path, "b.log", 8)
    await a_day_on(yard)
    async with at_work(housekeeping(yard, (tmp_path, "*.log*")).forget()):
        await until_gone(old)
    assert stubborn.exists()


async def test_rows_are_forgotten_when_nobody_can_ask_for_them_again_and_events_never(yard: Yard) -> None:
    await yard.make_ready(MR)
    sandbox = await yard.latest(MR)
    printed = StageResult(Stage.SETUP, ok=True, seconds=1, tail="what it printed")

    def keep(tx: Transaction) -> None:
        for key in ("handled", "waits"):
            inbox.add(tx, source="gitlab", key=key, lane=key, kind="note", body="{}")
        inbox.handled(tx, 1, "done")
        outbox.delivered(tx, 1, "$event")
        sandboxes.add_result(tx, sandbox, printed)

    await yard.write(keep)
    known = await yard.events()
    waiting = len(await yard.outbox())

    async def rows(sql: str) -> list[Any]:
        return [tuple(row) for row in await yard.read(lambda tx: tx.all(sql))]

    async def all_is_forgotten() -> bool:
        return await rows("SELECT 1 FROM stage_results WHERE tail <> ''") == []

    tidy = housekeeping(yard)
    yard.pass_by(days=6)
    await a_day_on(yard)
    async with at_work(tidy.forget()):
        await asyncio.sleep(0.2)
    assert not await all_is_forgotten()
    yard.pass_by(days=9)
    await a_day_on(yard)
    async with at_work(tidy.forget()), asyncio.timeout(60):
        while not await all_is_forgotten():
            await asyncio.sleep(0.01)
    assert await rows("SELECT delivery_key FROM inbox") == [("waits",)]
    assert await rows("SELECT COUNT(*) FROM outbox WHERE delivered_at IS NOT NULL") == [(0,)]
    assert len(await yard.outbox()) == waiting
    assert await yard.events() == known


async def test_a_clock_that_jumps_ahead_makes_nothing_be_forgotten_before_it_stays_there_for_a_day(yard: Yard) -> None:
    def keep(tx: Transaction) -> None:
        inbox.add(tx, source="gitlab", key="handled", lane="lane", kind="note", body="{}")
        inbox.handled(tx, 1, "done")

    async def looked() -> bool:
        """Look as after a restart; whether the key by which a second delivery is recognised is still there."""
        async with at_work(housekeeping(yard).forget()):
            await asyncio.sleep(0.05)
        return await yard.read(lambda tx: tx.one("SELECT 1 FROM inbox")) is not None

    await yard.write(keep)
    assert await looked()
    for days in (1, 400, -400, 1, 30, -30, 365 * 60, -365 * 60):
        yard.pass_by(days=days)
        assert await looked()
    yard.pass_by(days=30)  # from now on it is so, or ravebot was off so long
    for _ in range(3):
        assert await looked()
        yard.pass_by(hours=5)
    yard.pass_by(hours=5)
    assert not await looked()


async def test_the_log_of_a_machine_that_only_the_provider_knows_is_kept(yard: Yard, tmp_path: Path) -> None:
    """After a restore the database does not know those that were made since."""
    await yard.make_ready(MR)
    unknown = (await yard.machine(MR)).name
    await yard.write(lambda tx: tx.execute("UPDATE machines SET state = 'gone'"))
    kept, old = log_of(tmp_path, f"{unknown}.log", 8), log_of(tmp_path, f"{GONE}.log", 8)
    await a_day_on(yard)
    yard.provider.fails["list"] = Unavailable("libvirt is away")
    async with at_work(housekeeping(yard, (tmp_path, "*.log*")).forget()):
        await asyncio.sleep(0.1)
        assert old.exists()  # nobody knows which machines there are
    yard.provider.fails.clear()
    await a_day_on(yard)
    async with at_work(housekeeping(yard, (tmp_path, "*.log*")).forget()):
        await until_gone(old)
    assert kept.exists()


@pytest.mark.parametrize("kept", ["consoles", "output", "messages", "requests"])
async def test_each_is_kept_as_long_as_the_configuration_says(yard: Yard, tmp_path: Path, kept: str) -> None:
    await yard.make_ready(MR)
    sandbox = await yard.latest(MR)
    console = log_of(tmp_path, f"{GONE}.log", 19)

    def keep(tx: Transaction) -> None:
        inbox.add(tx, source="gitlab", key="handled", lane="lane", kind="note", body="{}")
        inbox.handled(tx, 1, "done")
        outbox.delivered(tx, 1, "$event")
        sandboxes.add_result(tx, sandbox, StageResult(Stage.SETUP, ok=True, seconds=1, tail="what it printed"))

    def left(tx: Transaction) -> set[str]:
        rows = {
            "requests": tx.all("SELECT 1 FROM inbox"),
            "messages": tx.all("SELECT 1 FROM outbox WHERE delivered_at IS NOT NULL"),
            "output": tx.all("SELECT 1 FROM stage_results WHERE tail <> ''"),
        }
        return {name for name, found in rows.items() if found}

    await yard.write(keep)
    yard.pass_by(days=19)
    tidy = housekeeping(yard, (tmp_path, "*.log*"), keep=KeepConfig(**{kept: timedelta(days=20)}))
    await a_day_on(yard)
    async with at_work(tidy.forget()), asyncio.timeout(60):
        while len(await yard.read(left)) + console.exists() > 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
    assert (await yard.read(left), console.exists()) == ({kept} - {"consoles"}, kept == "consoles")


async def test_answers_that_a_key_gets_no_more_are_forgotten(yard: Yard) -> None:
    def keep(tx: Transaction) -> None:
        end = tx.now + timedelta(days=90)
        token = ApiToken(TokenId(0), "alice", "laptop", ("run",), ("group/*",), "", tx.now, "root", end)
        made = api_tokens.add(tx, token, "0" * 64, RAVEBOT)
        for number in range(700):  # more than are forgotten at once
            api_tokens.keep_answer(tx, made.id, f"old {number}", KeptAnswer("1" * 64, 200, "{}"))

    await yard.write(keep)
    yard.pass_by(hours=23)
    await yard.write(lambda tx: api_tokens.keep_answer(tx, TokenId(1), "new", KeptAnswer("1" * 64, 200, "{}")))
    yard.pass_by(hours=2)

    async def keys() -> list[str]:
        return [row["key"] for row in await yard.read(lambda tx: tx.all("SELECT key FROM api_answers"))]

    await a_day_on(yard)
    async with at_work(housekeeping(yard).forget()), asyncio.timeout(60):
        while await keys() != ["new"]:
            await asyncio.sleep(0.01)


async def test_the_outbox_is_counted_though_the_provider_is_away_and_the_host_when_it_is_back(yard: Yard) -> None:
    await yard.told(MR)
    yard.pass_by(seconds=90)
    yard.provider.fails["host"] = Unavailable("libvirt is away")
    async with at_work(measuring(yard).run()), asyncio.timeout(60):
        while gauge(yard, 'outbox_oldest_seconds{target="gitlab"}') != 90:
            await asyncio.sleep(0.01)
    yard.provider.fails.clear()
    async with at_work(measuring(yard).run()), asyncio.timeout(60):
        while gauge(yard, "host_disk_free_bytes") != yard.provider.host_usage.disk_free_bytes:
            await asyncio.sleep(0.01)


def gauge(yard: Yard, name: str) -> float:
    lines = yard.metrics.exposition().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"ravebot_{name} ")), math.nan)


async def test_a_clock_that_was_set_back_loses_nothing(yard: Yard) -> None:
    def keep(tx: Transaction) -> None:
        inbox.add(tx, source="gitlab", key="new", lane="new", kind="note", body="{}")
        inbox.handled(tx, 1, "done")

    await yard.write(keep)
    yard.clock.advance(timedelta(days=-30))
    await a_day_on(yard)
    async with at_work(housekeeping(yard).forget()):
        await asyncio.sleep(0.2)
    assert await yard.read(lambda tx: tx.one("SELECT 1 FROM inbox")) is not None


async def test_what_was_said_to_agents_is_forgotten_after_thirty_days_but_not_that_it_was(tmp_path: Path) -> None:
    async with an_agent_yard(tmp_path / "state") as world:
        await world.ready()
        over, waits = await world.taken("the secret plan"), await world.taken("not given yet")
        process = await world.given(over)
        await world.ended(over, "a secret answer")
        await world.yard.write(lambda tx: conversations.show_answer(tx, over, "$answer"))
        ended = replace(process, ended_at=world.yard.clock.now(), ended="The sandbox ended")
        await world.yard.write(lambda tx: conversations.save_process(tx, ended))
        known = await world.yard.events()

        async def texts() -> list[str]:
            rows = await world.yard.read(lambda tx: tx.all("SELECT text FROM agent_messages ORDER BY id"))
            return [row["text"] for row in rows]

        async def rows_left() -> int:
            tables = ("agent_processes", "shown_turns", "agent_budgets WHERE kind <> 'agent'")
            sql = " + ".join(f"(SELECT COUNT(*) FROM {table})" for table in tables)
            return (await world.yard.read(lambda tx: tx.all(f"SELECT {sql} AS n")))[0]["n"]  # type: ignore[no-any-return]

        world.yard.pass_by(days=29)
        await a_day_on(world.yard)
        async with at_work(housekeeping(world.yard).forget()):
            await asyncio.sleep(0.2)
        assert await texts() == ["the secret plan", "not given yet"]
        world.yard.pass_by(days=2)
        await world.yard.empty_outbox()  # what is not delivered yet is not forgotten
        await a_day_on(world.yard)
        async with at_work(housekeeping(world.yard).forget()), asyncio.timeout(60):
            while await rows_left():
                await asyncio.sleep(0.01)
        assert await texts() == ["", "not given yet"]
        turn = await world.turn(over)
        assert (turn.answer, turn.state) == ("", TurnState.DONE)
        assert (await world.turn(waits)).state is TurnState.QUEUED
        assert await world.yard.events() == known


async def test_an_answer_that_is_not_delivered_yet_is_not_forgotten(tmp_path: Path) -> None:
    async with an_agent_yard(tmp_path / "state") as world:
        await world.ready()
        turn = await world.taken()
        await world.answered(turn, "the answer")
        assert [kind for _, _, kind, _ in await world.yard.outbox() if kind == "answer"]
        world.yard.pass_by(days=31)
        forgets = lambda tx: agent_texts.forget(tx, KeepConfig().talks, 500)  # noqa: E731
        await world.yard.write(forgets)
        assert (await world.turn(turn)).answer == "the answer"
        await world.yard.empty_outbox()
        await world.yard.write(forgets)
        assert (await world.turn(turn)).answer == ""


async def test_old_texts_are_forgotten_in_small_transactions(tmp_path: Path) -> None:
    async with an_agent_yard(tmp_path / "state") as world:
        await world.ready()
        for _ in range(5):
            await world.answered(await world.taken(), "done")
        world.yard.pass_by(days=31)
        rounds = [await world.yard.write(lambda tx: agent_texts.forget(tx, KeepConfig().talks, 2)) for _ in range(4)]
        assert rounds == [True, True, False, False]


async def test_what_agents_have_to_do_and_what_they_gave_up_is_counted(tmp_path: Path) -> None:
    async with an_agent_yard(tmp_path / "state") as world:
        await world.ready()
        runs, given_up, again = await world.taken("one"), await world.taken("two"), await world.taken("three")
        for turn_id in (given_up, again):
            await world.given(turn_id)
            await world.ended(turn_id, "", TurnState.FAILED)
        await world.yard.write(lambda tx: world.desk.resend(tx, again, ALICE))
        await world.given(runs)
        await world.taken("to be given", thread="$other")
        world.yard.pass_by(minutes=5)
        counted = world.yard.metrics.registry.get_sample_value
        async with at_work(measuring(world.yard).run()), asyncio.timeout(60):
            while not counted("ravebot_agent_waiting_seconds"):
                await asyncio.sleep(0.01)
        states = ("accepted", "queued", "delivered", "failed", "dead")
        assert [counted("ravebot_agent_turns", {"state": state}) for state in states] == [0, 2, 1, 1, 0]
        assert counted("ravebot_agent_waiting_seconds") == 300


@pytest.mark.parametrize(
    "held", ["paused agent", "paused conversation", "earlier message", "sandbox", "yes", "nothing"]
)
async def test_a_message_counts_as_late_only_if_ravebot_itself_holds_it_back(tmp_path: Path, held: str) -> None:
    async with an_agent_yard(tmp_path / "state") as world:
        if held == "sandbox":
            await world.yard.told(MR)
        elif held == "yes":
            await world.yard.told(MR, may_start=False)
        else:
            await world.ready()
        first = await world.taken("one")
        if held == "paused agent":
            await world.yard.write(lambda tx: conversations.pause_agent(tx, "coder", "ops"))
        elif held == "paused conversation":
            turn = await world.turn(first)
            await world.yard.write(lambda tx: conversations.pause(tx, turn.conversation_id, "paused"))
        elif held == "earlier message":
            await world.taken("two")
            await world.given(first)
        else:
            await world.promote()
        waiting = await world.yard.read(agent_work.undelivered_since)
        assert waiting == (world.yard.clock.now() if held == "nothing" else None)
