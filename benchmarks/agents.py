"""From a person's message to the agent's first byte, and from the agent's word to the row that tells of it.

The agent is reached by real SSH in a guest of its own namespaces on this machine, so that both sides share one clock;
the runner is in this process. What a homeserver takes is not in these figures.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psutil

from benchmarks.figures import Figure, ms, percentile, spread
from ravebot.store.database import Transaction
from tests.support.agent_world import AGENT_SOURCE, AgentWorld, an_agent_world
from tests.support.sshd import SshGuest

TURNS = 200
CONVERSATIONS = 50
MESSAGES = 40
AIM_SECONDS = 0.030
_LOOK_SECONDS = 0.005


async def measure() -> tuple[Figure, ...]:
    async with _world() as world:
        one_by_one = await _one_by_one(world)
    async with _world() as world:
        return (*one_by_one, *await _crowd(world))


@asynccontextmanager
async def _world() -> AsyncIterator[AgentWorld]:
    with tempfile.TemporaryDirectory(prefix="ravebot-bench-") as name:
        folder = Path(name)
        (folder / "state").mkdir()
        with SshGuest(folder, folder / "state") as guest:
            command = [guest.program("agent", AGENT_SOURCE.read_text())]
            limits = {"messages_per_day": 1_000_000}
            async with an_agent_world(guest, folder / "bot", command, limits=limits) as world:
                yield world


async def _one_by_one(world: AgentWorld) -> tuple[Figure, ...]:
    there, back = [], []
    await world.over(await world.say("say it is connected"))
    for _ in range(TURNS):
        turn = await world.over(await world.say("clock"))
        got, said = map(int, turn.answer.split())
        row = await world.database.read(partial(Transaction.one, sql=_TOLD, parameters=(f'%"turn":{turn.id}%',)))
        assert row
        there.append(got / 1e9 - row["said_at"] / 1e6)
        back.append(row["told"] / 1e6 - said / 1e9)
    return (
        Figure("message to the agent's first byte", spread(there), f"median <= {ms(AIM_SECONDS)}",
               percentile(there, 50) <= AIM_SECONDS, f"{TURNS} turns one after the other, connected before"),
        Figure("agent's word to the row that tells of it", spread(back), f"median <= {ms(AIM_SECONDS)}",
               percentile(back, 50) <= AIM_SECONDS, "from its write to the transaction's begin"),
    )  # fmt: skip


async def _crowd(world: AgentWorld) -> tuple[Figure, ...]:
    """Many conversations at once, each with messages that wait in its queue."""
    delays: list[float] = []
    watch = asyncio.create_task(_watch(delays))
    threads = [f"$thread-{number}" for number in range(CONVERSATIONS)]
    began = time.monotonic()
    turns = [await world.say(f"say {number}", thread=thread) for number in range(MESSAGES) for thread in threads]
    await _all_over(world, len(turns))
    seconds = time.monotonic() - began
    watch.cancel()
    done = await world.database.read(lambda tx: tx.all(_ORDER))
    in_order = all(json.loads(row["ids"]) == sorted(json.loads(row["ids"])) for row in done)
    exactly = sorted(await world.prompts()) == sorted(turns)
    memory = psutil.Process().memory_info().rss
    return (
        Figure(f"{CONVERSATIONS} conversations at once", f"{len(turns) / seconds:.0f} messages a second", "none",
               None, f"{len(turns)} messages in {seconds:.1f} s, the agents' own time included"),
        Figure("each prompt once, in each conversation in order", "yes" if in_order and exactly else "no", "yes",
               in_order and exactly, "counted in the agents' own input"),
        Figure("event loop's delay meanwhile", spread(delays), "p99 < 50 ms", percentile(delays, 99) < 0.05,
               "of a sleep of 5 ms"),
        Figure("memory of this process", f"{memory / 1024**2:.0f} MiB", "none", None, "tests' own parts included"),
    )  # fmt: skip


_TOLD = """
SELECT m.said_at, (SELECT MIN(created_at) FROM outbox WHERE kind = 'answer' AND body LIKE ?) AS told
  FROM agent_messages m
 ORDER BY m.id DESC
 LIMIT 1
"""
_ORDER = """
SELECT json_group_array(id) AS ids
  FROM (SELECT conversation_id, id FROM agent_turns WHERE state = 'done' ORDER BY conversation_id, ended_at, id)
 GROUP BY conversation_id
"""


async def _all_over(world: AgentWorld, count: int) -> None:
    sql = "SELECT COUNT(*) AS n FROM agent_turns WHERE state = 'done'"
    until = time.monotonic() + 900
    while True:
        row = await world.database.read(lambda tx: tx.one(sql))
        assert row
        if row["n"] >= count:
            return
        assert time.monotonic() < until, row["n"]
        await asyncio.sleep(0.2)


async def _watch(delays: list[float]) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(_LOOK_SECONDS)
        delays.append(max(0.0, time.monotonic() - before - _LOOK_SECONDS))
