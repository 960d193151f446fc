"""Many threads with many messages each to slow and fast agents, while the runner is killed at random again and again.

What is counted is in the agents' own input. tests/integration/test_agents_whole_bot.py has less of it, with the room.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import sqlite3
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from ravebot.store.database import Transaction
from tests.support.agent_world import AGENT_SOURCE, AgentWorld, an_agent_world, run_until_killed
from tests.support.sshd import SshGuest

THREADS = 50
MESSAGES = 200
PAUSES = (5.0, 25.0)
"""Seconds until the runner is killed."""
_CONTEXT = multiprocessing.get_context("forkserver")


async def measure() -> tuple[Figure, ...]:
    _CONTEXT.set_forkserver_preload(["tests.support.agent_world"])
    with tempfile.TemporaryDirectory(prefix="ravebot-bench-") as name:
        folder = Path(name)
        (folder / "key").mkdir()
        with SshGuest(folder, folder / "key") as guest:
            return (await _endure(_Endurance(guest, folder / "bot"))).figures()


@dataclass
class _Endurance:
    """`said`: the turns of each thread, in order."""

    guest: SshGuest
    state_dir: Path
    said: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    kills: int = 0
    seconds: float = 0.0

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.state_dir / "ravebot.db", timeout=20)) as connection:
            return connection.execute(sql).fetchall()

    @property
    def goes_on(self) -> bool:
        return bool(self.rows("SELECT 1 FROM agent_turns WHERE ended_at IS NULL LIMIT 1"))

    def figures(self) -> tuple[Figure, ...]:
        thread_of = dict(self.rows(_THREADS))
        given, ended, count = defaultdict(list), defaultdict(list), 0
        for (folder,) in self.rows("SELECT folder FROM agent_processes ORDER BY id"):
            for line in map(json.loads, self.guest.lines(folder)):
                if line.get("method") == "session/prompt":
                    given[thread_of[line["id"] - 1000]].append(line["id"] - 1000)
                    count += 1
        for turn, thread in self.rows(f"{_THREADS} ORDER BY t.ended_at, t.id"):
            ended[thread].append(turn)
        texts = self.rows("SELECT m.text, t.answer FROM agent_turns t JOIN agent_messages m ON m.id = t.message_id")
        receipts: dict[int, str] = {}
        for (body,) in self.rows("SELECT body FROM outbox WHERE kind = 'receipt' ORDER BY id"):
            row = json.loads(body)
            receipts[row["turn"]] = row["receipt"]
        states = dict(self.rows("SELECT state, COUNT(*) FROM agent_turns GROUP BY state"))
        size = THREADS * MESSAGES
        return (
            _so("given once, and in order in each thread", given == self.said,
                f"{count} prompts in the agents' own input; {self.kills} kills of the runner in {self.seconds:.0f} s"),
            _so("ended in order in each thread", ended == self.said, f"{states}"),
            _so("answered with what was asked for", all(text.endswith(f"say {answer}") for text, answer in texts),
                f"{size} messages in {THREADS} threads, every second agent slow"),
            _so("receipts as the table has it", receipts == dict.fromkeys(thread_of, "done"), "each turn's last row"),
        )  # fmt: skip


_THREADS = "SELECT t.id, c.thread FROM agent_turns t JOIN conversations c ON c.id = t.conversation_id"


def _so(name: str, holds: bool, note: str) -> Figure:
    return Figure(name, "yes" if holds else "no", "yes", holds, note)


async def _endure(one: _Endurance) -> _Endurance:
    command = [one.guest.program("agent", AGENT_SOURCE.read_text())]
    limits = {"messages_per_day": 1_000_000}
    async with an_agent_world(one.guest, one.state_dir, command, runs=False, limits=limits) as world:
        for number in range(MESSAGES):
            await world.database.write(partial(_say, world=world, number=number, said=one.said))
    began, chance = time.monotonic(), random.Random(1)
    while one.goes_on:
        process = _CONTEXT.Process(target=run_until_killed, args=(one.state_dir, one.guest.port, command, 0))
        process.start()
        until = time.monotonic() + chance.uniform(*PAUSES)
        while time.monotonic() < until and one.goes_on:
            await asyncio.sleep(0.1)
        assert process.is_alive(), "the runner ended by itself"
        process.kill()
        process.join()
        one.kills += 1
    one.seconds = time.monotonic() - began
    return one


def _say(tx: Transaction, world: AgentWorld, number: int, said: dict[str, list[int]]) -> None:
    """One message in each thread."""
    for thread in range(THREADS):
        text = f"{'wait 0.03' if thread % 2 else 'do Look'}\nsay {thread}-{number}"
        said[f"${thread}"].append(world.accept(tx, text, f"${thread}"))
