"""Many threads with many messages each to agents that are fast or slow, while the bot is killed again and again."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass

from ravebot.matrix.agents import RECEIPTS
from tests.support.agent_room import AgentRoom
from tests.support.synapse.user import timeline

DONE = "✅"
_TURNS = """
SELECT t.answer, t.state
  FROM agent_turns t
  JOIN conversations c ON c.id = t.conversation_id
 WHERE c.thread = ?
 ORDER BY t.id
"""
_RECEIPTS = """
SELECT m.key, s.receipt
  FROM shown_turns s
  JOIN agent_turns t ON t.id = s.turn_id
  JOIN agent_messages m ON m.id = t.message_id
"""
_SIGNS = {str(receipt): sign.replace("\ufe0f", "") for receipt, sign in RECEIPTS.items()}
_ANSWER = re.compile(r"[0-9]+-[0-9]+-")


@dataclass(frozen=True)
class Soaked:
    """What came of it. `said`: by thread the texts in order; `given`: by thread what the agents' own input has;
    `kept`: by thread what the table has; `shown`: by thread the answers in the room's order; `receipts`: by message the
    signs on it; `wrong`: messages whose signs are not what the table says."""

    said: dict[str, list[str]]
    given: dict[str, list[str]]
    kept: dict[str, list[tuple[str, str]]]
    shown: dict[str, list[str]]
    receipts: dict[str, list[str]]
    wrong: tuple[str, ...]
    kills: int
    seconds: float

    @property
    def is_right(self) -> bool:
        """Each message was given once and answered once, in order, and has the sign that the table says."""
        kept = {thread: [(text, "done") for text in texts] for thread, texts in self.said.items()}
        signs = all(one == [DONE] for one in self.receipts.values())
        return self.given == self.said and self.shown == self.said and self.kept == kept and signs and not self.wrong


async def soak(room: AgentRoom, threads: int, messages: int, pauses: tuple[float, float], seed: int = 1) -> Soaked:
    """Every second agent is slow. The bot is killed after a random pause of that many seconds, as long as it works."""
    chance, began = random.Random(seed), time.monotonic()
    said: dict[str, list[str]] = defaultdict(list)
    ids: dict[str, list[str]] = defaultdict(list)
    await room.begin()
    kills: list[float] = []
    killing = asyncio.create_task(_kill(room, chance, pauses, kills))

    async def talk(number: int) -> None:
        slow = "wait 0.05\n" if number % 2 else ""
        root = ""
        for count in range(messages):
            text = f"{slow}say {number}-{count}-"
            event = await room.say(f"@coder !1 {text}" if not root else text, root)
            root = root or event
            said[root].append(f"{number}-{count}-")
            ids[root].append(event)

    talks = [asyncio.create_task(talk(number)) for number in range(threads)]
    await asyncio.gather(*talks)
    quiet = 0
    while quiet < 5:
        over, unsent = room.counts()
        quiet = quiet + 1 if over == threads * messages and not unsent else 0
        await asyncio.sleep(0.2)
    killing.cancel()
    with suppress(asyncio.CancelledError):
        await killing
    seconds = time.monotonic() - began
    room.kill()
    return await _judged(room, said, ids, len(kills), seconds)


async def _kill(room: AgentRoom, chance: random.Random, pauses: tuple[float, float], kills: list[float]) -> None:
    while True:
        await asyncio.sleep(chance.uniform(*pauses))
        await asyncio.to_thread(room.kill)
        kills.append(time.monotonic())
        room.start()


async def _judged(
    room: AgentRoom, said: dict[str, list[str]], ids: dict[str, list[str]], kills: int, seconds: float
) -> Soaked:
    given, kept, shown = {}, {}, {}
    for thread in said:
        given[thread] = [text.rpartition(" ")[2] for _, text in room.prompts(thread)]
        kept[thread] = room.rows(_TURNS, thread)
    table = dict(room.rows(_RECEIPTS))
    events = await room.alice.events(room.bot.room)
    ours = [one for one in timeline(events) if one.sender == room.bot.user_id]
    for thread in said:
        found = (_ANSWER.search(one.body) for one in ours if one.thread_root == thread)
        shown[thread] = [match[0] for match in found if match]
    signs = defaultdict(list)
    for event in events:
        relation = event["content"].get("m.relates_to", {})
        if event["type"] == "m.reaction" and event["sender"] == room.bot.user_id and "key" in relation:
            signs[relation["event_id"]].append(relation["key"].replace("\ufe0f", ""))
    messages = [one for of_thread in ids.values() for one in of_thread]
    wrong = tuple(one for one in messages if [_SIGNS.get(table.get(one, ""), "")] != signs[one])
    receipts = {one: signs[one] for one in messages}
    return Soaked(dict(said), given, kept, shown, receipts, wrong, kills, seconds)
