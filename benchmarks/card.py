"""From a webhook to the card in a room member's sync, compared with a plain message by somebody else in that room."""

from __future__ import annotations

import asyncio
import json
import re
import time

from benchmarks.figures import Figure, median, ms, spread
from benchmarks.scene import Webhooks, busy_stage, paced, told_everything, webhook_body
from tests.support.crashes import rows
from tests.support.stage import Stage
from tests.support.synapse import RoomReader

PER_SECOND, COUNT = 5, 100
BURST_PER_SECOND, BURST_COUNT = 50, 200
AIM_RATIO = 1.25
_NUMBER = re.compile(r"!(\d+)")


async def measure() -> tuple[Figure, ...]:
    async with busy_stage() as stage, Webhooks(stage) as webhooks:
        reader = RoomReader(stage.matrix_alice, stage.room)
        reading = asyncio.create_task(reader.run())
        try:
            await asyncio.sleep(2)
            cards, bare = await _side_by_side(stage, webhooks, reader)
            await told_everything(stage)
            burst, moved = await _burst(stage, webhooks, reader)
            await told_everything(stage)
            bare_burst = await _bare_burst(stage, reader)
        finally:
            reading.cancel()
            await asyncio.wait({reading})
    more, ratio = median(cards) - median(bare), median(cards) / median(bare)
    share = median(burst) - median(bare_burst)
    return (
        Figure(f"plain message to sync at {PER_SECOND}/s", spread(bare), note=f"{len(bare)} by another user"),
        Figure(f"webhook to card in sync at {PER_SECOND}/s", spread(cards), note=f"{len(cards)} merge requests"),
        Figure(
            "what ravebot adds",
            f"{ms(more)} at the median, {ratio:.2f} of a plain message",
            f"at most {AIM_RATIO:.2f} of a plain message",
            ratio <= AIM_RATIO,
        ),
        Figure(
            f"plain message to sync at {BURST_PER_SECOND}/s",
            spread(bare_burst),
            note=f"{len(bare_burst)} by another user, after the webhooks",
        ),
        Figure(f"webhook to card in sync at {BURST_PER_SECOND}/s", spread(burst), note=f"{len(burst)} merge requests"),
        Figure(f"what ravebot adds at {BURST_PER_SECOND}/s", f"{ms(share)} at the median"),
        Figure(
            f"cards out of order at {BURST_PER_SECOND}/s",
            f"{moved} of {len(burst)}",
            "none",
            moved == 0,
            "against the order in which the webhooks were committed",
        ),
    )


async def _side_by_side(stage: Stage, webhooks: Webhooks, reader: RoomReader) -> tuple[list[float], list[float]]:
    """Send webhooks and plain messages alternately, at the same rate."""
    opened, bodies = _merge_requests(stage, COUNT)
    sent: dict[int, float] = {}
    said: dict[str, float] = {}

    async def say() -> None:
        began = time.perf_counter()
        said[await stage.matrix_ops.send(stage.room, "a plain message")] = began

    async with asyncio.TaskGroup() as group:
        async for number in paced(2 * COUNT, 2 * PER_SECOND):
            if number % 2:
                group.create_task(say())
            else:
                sent[opened[number // 2]] = time.perf_counter()
                group.create_task(webhooks.post(bodies[number // 2]))
    await stage.until(
        lambda: set(opened) <= _cards(stage, reader).keys() and said.keys() <= reader.seen.keys(),
        60,
        "not every card came",
    )
    shown = _cards(stage, reader)
    return [shown[iid] - sent[iid] for iid in opened], [reader.seen[event] - began for event, began in said.items()]


async def _bare_burst(stage: Stage, reader: RoomReader) -> list[float]:
    """How long plain messages take at the rate of the burst: the homeserver's own share."""
    said: dict[str, float] = {}

    async def say() -> None:
        began = time.perf_counter()
        said[await stage.matrix_ops.send(stage.room, "a plain message")] = began

    async with asyncio.TaskGroup() as group:
        async for _ in paced(BURST_COUNT, BURST_PER_SECOND):
            group.create_task(say())
    await stage.until(lambda: said.keys() <= reader.seen.keys(), 120, "not every message came")
    return [reader.seen[event] - began for event, began in said.items()]


async def _burst(stage: Stage, webhooks: Webhooks, reader: RoomReader) -> tuple[list[float], int]:
    """How long each card took, and how many arrived after a card whose webhook was committed later."""
    opened, bodies = _merge_requests(stage, BURST_COUNT)
    sent: dict[int, float] = {}
    async with asyncio.TaskGroup() as group:
        async for number in paced(BURST_COUNT, BURST_PER_SECOND):
            sent[opened[number]] = time.perf_counter()
            group.create_task(webhooks.post(bodies[number]))
    await stage.until(lambda: set(opened) <= _cards(stage, reader).keys(), 120, "not every card came")
    shown = _cards(stage, reader)
    lanes = [row["lane"] for row in rows(stage, "SELECT lane FROM inbox WHERE source = 'gitlab' ORDER BY id")]
    committed = [iid for lane in lanes if (iid := int(lane.partition("!")[2])) in sent]
    place = {iid: index for index, iid in enumerate(committed)}
    told = [place[iid] for iid in shown if iid in sent]
    newest, moved = -1, 0
    for index in told:
        moved += index < newest
        newest = max(newest, index)
    return [shown[iid] - sent[iid] for iid in opened], moved


def _merge_requests(stage: Stage, count: int) -> tuple[list[int], list[bytes]]:
    """New merge requests, by number, and their webhooks, not sent yet."""
    numbers, bodies = [], []
    for _ in range(count):
        mr = stage.open_merge_request("A change", "branch", files={})
        numbers.append(mr.iid)
        bodies.append(json.dumps(webhook_body(stage, mr, "open")).encode())
    return numbers, bodies


def _cards(stage: Stage, reader: RoomReader) -> dict[int, float]:
    """When each merge request's card appeared in the sync, in that order; edits and threads are not cards."""
    shown: dict[int, float] = {}
    for event_id, at in reader.seen.items():
        event = reader.events[event_id]
        content = event["content"]
        found = _NUMBER.search(str(content.get("body", "")))
        if event["sender"] == stage.matrix_bot.user_id and "m.relates_to" not in content and found:
            shown.setdefault(int(found[1]), at)
    return shown
