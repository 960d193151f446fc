"""What ravebot asks of GitLab: for one merge request from open to end, in an hour with nothing live, in a burst."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from benchmarks.figures import Figure
from benchmarks.scene import Webhooks, busy_stage, told_everything, webhook_body
from ravebot.operations.hooks.watch import PAUSE, due
from tests.support.crashes import rows
from tests.support.gitlab import DEVELOPER, MergeRequest
from tests.support.gitlab.faults import Request
from tests.support.stage import Stage

AIM_CALLS, AIM_IDLE_CALLS = 20, 20
BURST_MERGE_REQUESTS, BURST_WEBHOOKS = 100, 500
SETTLED_SECONDS = 6.0
POLLS, HOURS = 12, 48


async def measure() -> tuple[Figure, ...]:
    """Everything is real but GitLab, which counts."""
    return (await _one_merge_request(), await _idle(1), await _idle(20), *await _burst())


def by_kind(requests: Iterable[Request]) -> str:
    """How many of each, the ids left out."""
    kinds = Counter(f"{one.method} {_short(one.path)}" for one in requests)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def _short(path: str) -> str:
    plain = re.sub(r"/[0-9a-f]{40}\b", "/SHA", re.sub(r"/\d+\b", "/N", path))
    return plain.replace("/api/v4", "").replace("/projects/N", "")


async def _one_merge_request() -> Figure:
    async with Stage({"gitlab": {"poll": "1h", "request_limit": "5s"}}) as stage:
        await stage.start()
        await told_everything(stage)
        before = len(stage.gitlab.requests)
        mr = stage.open_merge_request()
        await stage.ready(mr, 180)
        await told_everything(stage)
        stage.gitlab.merge(mr)
        await stage.until(lambda: stage.gitlab.environment(stage.project, f"review/mr-{mr.iid}") is None, 60, "its end")
        await told_everything(stage)
        await asyncio.sleep(SETTLED_SECONDS)
        asked = stage.gitlab.requests[before:]
    met = len(asked) <= AIM_CALLS
    name = "calls, merge request from open to end"
    return Figure(name, str(len(asked)), f"≤ {AIM_CALLS}", met, by_kind(asked))


async def _idle(projects: int) -> Figure:
    """A poll every two seconds is as many calls as one of the default period, with time passing faster."""
    async with Stage({"gitlab": {"poll": "2s"}}) as stage:
        for number in range(1, projects):
            project = stage.gitlab.add_project(f"group/app-{number}")
            stage.gitlab.set_role(project, stage.ravebot, DEVELOPER)
        await stage.start()
        await told_everything(stage)
        before = len(stage.gitlab.requests)
        await asyncio.sleep(2.0 * POLLS + 1)
        asked = [one for one in stage.gitlab.requests[before:] if "hooks" not in one.path]
    polls = sum("merge_requests" in one.path for one in asked)
    hooks = _looks_at_webhooks(projects)
    hourly = len(asked) / polls * 12 + hooks
    note = f"12 polls, and {hooks:.0f} looks at webhooks; seen: {by_kind(asked)}"
    name = f"calls an hour with nothing live, {projects} project{'s' * (projects > 1)}"
    return Figure(name, f"{hourly:.0f}", f"≤ {AIM_IDLE_CALLS}", hourly <= AIM_IDLE_CALLS + 0.5, note)


def _looks_at_webhooks(projects: int) -> float:
    """How many the watch makes an hour; each takes one request."""
    served = [(number, f"group/app-{number}") for number in range(projects)]
    now, looked_at, looks = datetime(2026, 1, 1, tzinfo=UTC), dict[str, datetime](), 0
    for _ in range(HOURS * 4):
        for one in due(served, looked_at, now):
            looked_at[one[1]] = now
            looks += 1
        now += PAUSE
    return looks / HOURS


async def _burst() -> tuple[Figure, ...]:
    """Five webhooks about each of a hundred merge requests, all at once; only the last state of each matters."""
    async with busy_stage() as stage, Webhooks(stage) as webhooks:
        bodies: list[bytes] = []
        opened = [
            stage.open_merge_request(f"Change {number}", f"branch-{number}", files={})
            for number in range(BURST_MERGE_REQUESTS)
        ]
        for step in range(BURST_WEBHOOKS // BURST_MERGE_REQUESTS):
            for number, mr in enumerate(opened):
                bodies.append(json.dumps(_step(stage, mr, step, number)).encode())
        before, began = len(stage.gitlab.requests), time.monotonic()
        statuses = [status for status, _ in await asyncio.gather(*map(webhooks.post, bodies))]
        accepted = time.monotonic() - began
        await stage.until(lambda: not _wrong(stage, opened), 240, "all is not right")
        right = time.monotonic() - began
        await told_everything(stage)
        told, asked = time.monotonic() - began, stage.gitlab.requests[before:]
        wrong = _wrong(stage, opened)
    taken = statuses.count(202)
    return (
        Figure(
            "burst: until all state is right", f"{right:.1f} s", note=f"accepted {accepted:.1f} s, told {told:.1f} s"
        ),
        Figure("burst: calls made", str(len(asked)), note=by_kind(asked)),
        Figure(
            "burst: none lost",
            f"{taken} of {len(bodies)} accepted, {len(opened) - len(wrong)} of {len(opened)} right",
            "every one",
            taken == len(bodies) and not wrong,
        ),
    )


def _step(stage: Stage, mr: MergeRequest, step: int, number: int) -> dict[str, object]:
    if step == 0:
        return webhook_body(stage, mr, "open")
    if step == 2:
        stage.gitlab.push(mr, {"new.txt": f"{number}"})
    elif step == 4 and number % 4 == 0:
        stage.gitlab.close(mr)
        return webhook_body(stage, mr, "close")
    else:
        stage.gitlab.retitle(mr, f"Change {number}.{step}")
    return webhook_body(stage, mr, "update")


def _wrong(stage: Stage, opened: list[MergeRequest]) -> list[int]:
    """The merge requests that ravebot does not know as they are, or whose sandbox is not as it should be."""
    known = {
        row["iid"]: (row["title"], row["head_sha"], row["state"])
        for row in rows(stage, "SELECT iid, title, head_sha, state FROM merge_requests")
    }
    of = rows(stage, "SELECT iid, sha FROM sandboxes WHERE state NOT IN ('ended', 'stopping')")
    live = {row["iid"]: row["sha"] for row in of}
    return [
        mr.iid
        for mr in opened
        if known.get(mr.iid) != (mr.title, mr.sha, mr.state)
        or live.get(mr.iid) != (mr.sha if mr.state == "opened" else None)
    ]
