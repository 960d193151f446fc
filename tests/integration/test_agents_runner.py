"""The loop over conversations: what it drives, in which order, and what it leaves alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from ravebot.agents.model import AgentDoor, AgentMessage, ConversationId, Turn, TurnState
from ravebot.agents.runner import AgentRunner
from ravebot.agents.transports.contract import Nudge
from ravebot.sandboxes.model import Actor
from ravebot.store import agent_work, conversations
from ravebot.store.database import Database, Transaction
from tests.support.clock import ManualClock

pytestmark = pytest.mark.integration
ALICE = Actor("matrix", "@alice:example.org")


def say(tx: Transaction, thread: str, count: int = 1) -> list[Turn]:
    """Queue turns in the conversation of a thread."""
    found = conversations.find(tx, "coder", AgentDoor.MATRIX, "!room", thread) or conversations.begin(
        tx, "coder", AgentDoor.MATRIX, "!room", thread, own_thread=True, mr=None
    )
    turns = []
    for _ in range(count):
        row = tx.one("SELECT COUNT(*) AS n FROM agent_messages")
        assert row
        said = conversations.add_message(tx, found.id, f"${row['n']}", ALICE, ALICE, "text", 0)
        assert isinstance(said, AgentMessage)
        turns.append(conversations.add_turn(tx, said, TurnState.QUEUED))
    return turns


@dataclass
class Recorder:
    """A transport that answers each turn at once, or does what a test sets."""

    database: Database
    driven: list[ConversationId] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    fails: bool = False
    stays: bool = False
    idles: bool = False
    looks: int = 0
    answered: list[Turn] = field(default_factory=list)

    async def drive(self, conversation_id: ConversationId, nudge: Nudge) -> None:
        self.driven.append(conversation_id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.fails:
                raise KeyError("a bug")
            while True:
                nudge.event.clear()
                if nudge.take():
                    self.looks += 1
                    while not self.stays and (
                        turn := await self.database.write(partial(_answer, conversation_id=conversation_id))
                    ):
                        self.answered.append(turn)
                if not self.idles or nudge.leave:
                    return
                await nudge.event.wait()
        finally:
            self.at_once -= 1


def _answer(tx: Transaction, conversation_id: ConversationId) -> Turn | None:
    turn = agent_work.first_turn(tx, conversation_id)
    if turn is not None:
        conversations.save_turn(tx, replace(turn, state=TurnState.DONE, ended_at=tx.now))
    return turn


@asynccontextmanager
async def running(folder: Path, most: int = 100) -> AsyncIterator[tuple[Database, Recorder]]:
    async with Database(folder / "ravebot.db", ManualClock()) as database:
        recorder = Recorder(database)
        task = asyncio.create_task(AgentRunner(database, recorder, most).run())
        try:
            yield database, recorder
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until_done(database: Database, count: int, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        sql = "SELECT 1 FROM agent_turns WHERE state = 'done'"
        while len(await database.read(lambda tx: tx.all(sql))) < count:
            await asyncio.sleep(0.01)


async def test_each_conversation_keeps_its_order_however_many_there_are(tmp_path: Path) -> None:
    async with running(tmp_path) as (database, recorder):
        for thread in range(50):
            await database.write(partial(say, thread=f"${thread}", count=20))
        await until_done(database, 1000)
        assert len(set(recorder.driven)) == 50
        for conversation_id in set(recorder.driven):
            turns = [turn.id for turn in recorder.answered if turn.conversation_id == conversation_id]
            assert len(turns) == 20
            assert turns == sorted(turns)


async def test_no_more_are_driven_at_once_than_may_and_idle_ones_make_room(tmp_path: Path) -> None:
    async with running(tmp_path, most=3) as (database, recorder):
        recorder.idles = True
        for thread in range(9):
            await database.write(partial(say, thread=f"${thread}"))
        await until_done(database, 9)
        assert recorder.most_at_once == 3


async def test_a_wake_up_reaches_only_the_conversation_that_changed(tmp_path: Path) -> None:
    async with running(tmp_path) as (database, recorder):
        recorder.idles = True
        for thread in range(20):
            await database.write(partial(say, thread=f"${thread}"))
        await until_done(database, 20)
        await asyncio.sleep(0.2)
        before = recorder.looks
        await database.write(lambda tx: say(tx, "$7"))
        await until_done(database, 21)
        await asyncio.sleep(0.2)
        assert 1 <= recorder.looks - before <= 2


async def test_what_waits_paused_or_not_yet_due_is_left_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as (database, recorder):

        def arrange(tx: Transaction) -> None:
            waiting, paused, stopped, later = (say(tx, f"${number}")[0] for number in range(4))
            conversations.save_turn(tx, replace(waiting, state=TurnState.ACCEPTED))
            conversations.pause(tx, paused.conversation_id, "it went round in circles")
            conversations.save_turn(tx, replace(later, next_try_at=tx.now + timedelta(seconds=30)))
            conversations.save_turn(tx, replace(stopped, cancelled_by="@alice:example.org"))

        await database.write(arrange)
        await until_done(database, 1)
        await asyncio.sleep(0.1)
        assert len(recorder.driven) == 1  # only the one that is to be cancelled
        await database.write(lambda tx: conversations.pause(tx, ConversationId(2), ""))
        await until_done(database, 2)


async def test_a_bug_in_one_conversation_ends_neither_the_loop_nor_the_others(tmp_path: Path) -> None:
    async with running(tmp_path) as (database, recorder):
        recorder.fails = True
        await database.write(lambda tx: say(tx, "$1"))
        async with asyncio.timeout(60):
            while not recorder.driven:
                await asyncio.sleep(0.01)
        recorder.fails = False
        await database.write(lambda tx: say(tx, "$2"))
        await until_done(database, 1)
        assert recorder.driven.count(ConversationId(1)) == 1  # and it is not driven again at once


async def test_a_conversation_in_which_nothing_can_be_done_is_not_looked_at_without_pause(tmp_path: Path) -> None:
    async with running(tmp_path) as (database, recorder):
        recorder.stays = True
        await database.write(lambda tx: say(tx, "$1"))
        async with asyncio.timeout(60):
            while not recorder.driven:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert 1 <= len(recorder.driven) <= 2


async def test_ten_thousand_waiting_turns_are_looked_at_quickly(tmp_path: Path) -> None:
    async with Database(tmp_path / "ravebot.db", ManualClock()) as database:
        for thread in range(50):
            await database.write(partial(say, thread=f"${thread}", count=200))
        plan = await database.read(
            lambda tx: [row["detail"] for row in tx.all(f"EXPLAIN QUERY PLAN {agent_work.HEADS}")]
        )
        assert not [step for step in plan if step.startswith("SCAN") and "walk" not in step], plan
        began = time.process_time()
        for _ in range(20):
            assert len(await database.read(agent_work.heads)) == 50
        assert (time.process_time() - began) / 20 < 0.02
