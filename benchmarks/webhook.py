"""From a webhook's POST to its 2xx, which means that it is committed."""

from __future__ import annotations

import asyncio
import json

from benchmarks.figures import Figure, ms, percentile, spread
from benchmarks.scene import Webhooks, busy_stage, paced, told_everything, webhook_body
from tests.support.crashes import rows

PER_SECOND = 100
SECONDS = 20
EACH_OPENS = 20
"""One webhook in this many opens a merge request (which queues a sandbox); the others change titles."""
AIM_SECONDS = 0.025


async def measure() -> tuple[Figure, ...]:
    """100 a second against the real process with its real database, then `kill -9`, and a check of what was kept."""
    async with busy_stage() as stage, Webhooks(stage) as webhooks:
        bodies: list[bytes] = []
        opened = []
        for number in range(PER_SECOND * SECONDS):
            if number % EACH_OPENS == 0:
                opened.append(stage.open_merge_request(f"Change {number}", f"branch-{number}", files={}))
                body = webhook_body(stage, opened[-1], "open")
            else:
                mr = opened[number * 7 % len(opened)]
                stage.gitlab.retitle(mr, f"Change {number}")
                body = webhook_body(stage, mr, "update")
            bodies.append(json.dumps(body).encode())
        await asyncio.gather(*(webhooks.post(b"{}") for _ in range(20)))  # both sides have run this once
        posts: list[asyncio.Task[tuple[int, float]]] = []
        async with asyncio.TaskGroup() as group:
            async for number in paced(len(bodies), PER_SECOND):
                posts.append(group.create_task(webhooks.post(bodies[number])))
        done = [post.result() for post in posts]
        await stage.bot.kill()
        kept = rows(stage, "SELECT COUNT(*) AS n FROM inbox WHERE kind = 'merge_request'")[0]["n"]
        accepted = sum(status == 202 for status, _ in done)
        handled = rows(stage, "SELECT COUNT(*) AS n FROM inbox WHERE handled_at IS NOT NULL")[0]["n"]
        stage.bot.start()
        await stage.until(stage.is_ready, 60, "ravebot is not ready again")
        await told_everything(stage)
    seconds = [taken for _, taken in done]
    late = percentile(seconds, 99)
    return (
        Figure(
            f"webhook to 2xx at {PER_SECOND}/s",
            spread(seconds),
            f"p99 < {ms(AIM_SECONDS)}",
            late < AIM_SECONDS,
            f"{len(done)} posts, a connection each; longest {ms(max(seconds))}",
        ),
        Figure(
            "acknowledged, and there after kill -9",
            f"{accepted} of {len(done)} acknowledged, {kept - 1} kept",
            "every one",
            accepted == len(done) == kept - 1,
            f"killed right after the last 2xx, when {handled - 1} were worked off already",
        ),
    )
