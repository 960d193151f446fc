"""Messages between a room and its agents: how long they take there and back, and what many of them cost.

The room is on a real Synapse, the agents are reached by real SSH in a guest of its own namespaces on this machine, so
that all share one clock. For the times the bot is a process of its own; for the crowd the runner is in this process.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from benchmarks.figures import Figure, median, ms, percentile, spread
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.waiting import SandboxBinding, WaitingLoop
from ravebot.app import freeze_objects
from ravebot.store import agent_work
from tests.support.agent_room import AgentRoom, an_agent_room
from tests.support.agent_world import AGENT_SOURCE, AgentWorld, an_agent_world
from tests.support.sshd import SshGuest
from tests.support.synapse import Synapse

TURNS = 100
CONVERSATIONS = 50
ROUNDS = 10
MESSAGES_A_ROUND = 20
AIM_SECONDS = 0.030
_LOOK_SECONDS = 0.005
_CLOCK = re.compile(r"([0-9]{19}) ([0-9]{19})")


async def measure() -> tuple[Figure, ...]:
    return (*await _there_and_back(), *await _crowd())


@asynccontextmanager
async def _a_room() -> AsyncIterator[AgentRoom]:
    with tempfile.TemporaryDirectory(prefix="ravebot-bench-") as name:
        folder = Path(name)
        for part in ("synapse", "guest", "key"):
            (folder / part).mkdir()
        with SshGuest(folder / "guest", folder / "key") as guest:
            async with Synapse(folder / "synapse") as synapse, an_agent_room(synapse, guest, folder / "bot") as room:
                await room.begin()
                yield room


async def _there_and_back() -> tuple[Figure, ...]:
    """Bare sends and messages to the agent in turns, in random order, each after the same pause."""
    bare, there, heard, back = [], [], [], []
    async with _a_room() as room:
        seen, offset = room.reader.seen, time.time() - time.perf_counter()
        root = await room.say("@coder !1 say it is connected")
        await room.until(lambda: _said(room, "it is connected"), 60)
        for number in range(2 * TURNS):
            await asyncio.sleep(0.5)
            if number % 2 == 0:
                order = random.sample((True, False), 2)
            began = time.perf_counter()
            if order[number % 2]:
                event = await room.alice.send(room.bot.room, "a plain message")
                await room.until(partial(seen.__contains__, event))
                bare.append(seen[event] - began)
                continue
            before = len(seen)
            event = await room.say("clock\nwait 0.3", root)
            await room.until(partial(_clock, room, before))
            found = _clock(room, before)
            assert found
            there.append(found.got - offset - began)
            heard.append(found.got - offset - seen[event])
            back.append(found.seen - (found.said - offset))
    ours = {"there": median(there) - median(bare), "back": median(back) - median(bare)}
    return (
        Figure("a bare send", spread(bare), "none", None, f"one member's request to another's sync, {TURNS} times"),
        Figure("message in the room to the agent's first byte", spread(there), f"{ms(AIM_SECONDS)} over a bare send",
               ours["there"] <= AIM_SECONDS, f"{_times(there, bare)} a bare send, {ms(ours['there'])} more; connected"),
        Figure("the same, from when another member has it", spread(heard), "none", None, "bot's sync to the agent"),
        Figure("agent's word to another member", spread(back), f"{ms(AIM_SECONDS)} over a bare send",
               ours["back"] <= AIM_SECONDS, f"{_times(back, bare)} a bare send, {ms(ours['back'])} more"),
    )  # fmt: skip


@dataclass(frozen=True)
class _Clock:
    """When the agent got a prompt, when it spoke, and when a member of the room saw that."""

    got: float
    said: float
    seen: float


def _said(room: AgentRoom, text: str) -> bool:
    events = room.reader.events.values()
    return any(text in _body(event) for event in events if event["sender"] == room.bot.user_id)


def _clock(room: AgentRoom, before: int) -> _Clock | None:
    for event_id in list(room.reader.seen)[before:]:
        event = room.reader.events[event_id]
        if event["sender"] == room.bot.user_id and (found := _CLOCK.search(_body(event))):
            return _Clock(int(found[1]) / 1e9, int(found[2]) / 1e9, room.reader.seen[event_id])
    return None


def _body(event: dict[str, object]) -> str:
    content = event["content"]
    assert isinstance(content, dict)
    return str(content.get("body", ""))


def _times(values: list[float], bare: list[float]) -> str:
    return f"{median(values) / median(bare):.2f} times"


@dataclass(frozen=True)
class _Round:
    """What one round cost."""

    per_second: float
    delays: tuple[float, ...]
    rss: int
    ssh: tuple[int, ...]
    database: int
    look: float
    wait_look: float


async def _crowd() -> tuple[Figure, ...]:
    """Many conversations at once, each with messages that wait in its queue; the last round has a long history."""
    with tempfile.TemporaryDirectory(prefix="ravebot-bench-") as name:
        folder = Path(name)
        (folder / "key").mkdir()
        with SshGuest(folder, folder / "key") as guest:
            command = [guest.program("agent", AGENT_SOURCE.read_text())]
            limits = {"messages_per_day": 1_000_000}
            async with an_agent_world(guest, folder / "bot", command, limits=limits) as world:
                freeze_objects()
                before = psutil.Process().memory_info().rss
                turns: list[int] = []
                rounds = [await _round(world, turns) for _ in range(ROUNDS)]
                return (*_cost(before, rounds, len(turns)), await _order(world, turns))


async def _round(world: AgentWorld, turns: list[int]) -> _Round:
    delays: list[float] = []
    watch = asyncio.create_task(_watch(delays))
    began = time.monotonic()
    for number in range(MESSAGES_A_ROUND):
        turns += [await world.say(f"say {number}", thread=f"$thread-{one}") for one in range(CONVERSATIONS)]
    await _all_over(world, len(turns))
    seconds = time.monotonic() - began
    watch.cancel()
    ssh = [one for one in psutil.Process().children() if one.name() == "ssh"]
    waiting = WaitingLoop(world.database, SandboxBinding(world.config, ConversationTelling(world.config)))
    return _Round(
        MESSAGES_A_ROUND * CONVERSATIONS / seconds,
        tuple(delays),
        psutil.Process().memory_info().rss,
        tuple(one.memory_full_info().pss for one in ssh),
        sum(path.stat().st_size for path in world.database.path.parent.glob("ravebot.db*")),
        await _takes(lambda: world.database.read(agent_work.heads)),
        await _takes(waiting.look),
    )


async def _takes(look: Callable[[], Awaitable[object]]) -> float:
    """The median of some looks."""
    took = []
    for _ in range(25):
        began = time.perf_counter()
        await look()
        took.append(time.perf_counter() - began)
    return median(took)


def _cost(before: int, rounds: list[_Round], count: int) -> tuple[Figure, ...]:
    first, last = rounds[0], rounds[-1]
    ends = f"in the first {MESSAGES_A_ROUND * CONVERSATIONS} messages, and in the last of {count}"
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (
        Figure(f"{CONVERSATIONS} conversations at once", f"{first.per_second:.0f}, then {last.per_second:.0f}"
               " messages a second", "none", None, f"{ends}; the agents' own time included"),
        Figure("event loop's delay", f"{_delays(first)}; then {_delays(last)}", "p99 < 50 ms",
               percentile(last.delays, 99) < 0.05, f"of a sleep of {ms(_LOOK_SECONDS)}"),
        Figure("memory of this process", f"{_mib(before)} before, {_mib(first.rss)}, then {_mib(last.rss)}", "none",
               None, f"highest {_mib(highest)}; the tests' own parts included"),
        Figure("memory of the SSH clients", f"{len(last.ssh)} with {_mib(sum(last.ssh))}", "none", None,
               f"{_mib(max(last.ssh, default=0))} the largest, shared pages divided"),
        Figure("database", f"{_mib(first.database)}, then {_mib(last.database)}", "none", None,
               f"{last.database / count / 1024:.1f} KiB a message, the outbox's rows included"),
        Figure("a look of the runner", f"{ms(first.look)}, then {ms(last.look)}", "does not grow",
               last.look < 2 * first.look + 0.001, "median of 25, with nothing to do"),
        Figure("a look of the loop over what waits", f"{ms(first.wait_look)}, then {ms(last.wait_look)}",
               "does not grow", last.wait_look < 2 * first.wait_look + 0.001, "median of 25, with nothing to do"),
    )  # fmt: skip


def _delays(one: _Round) -> str:
    return f"{spread(one.delays)}, max {ms(max(one.delays))}"


def _mib(count: float) -> str:
    return f"{count / 1024**2:.1f} MiB"


async def _order(world: AgentWorld, turns: list[int]) -> Figure:
    done = await world.database.read(lambda tx: tx.all(_ORDER))
    in_order = all(json.loads(row["ids"]) == sorted(json.loads(row["ids"])) for row in done)
    exactly = sorted(await world.prompts()) == sorted(turns)
    return Figure("each prompt once, in each conversation in order", "yes" if in_order and exactly else "no", "yes",
                  in_order and exactly, "counted in the agents' own input")  # fmt: skip


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
