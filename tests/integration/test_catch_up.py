"""What ravebot missed while it was away ends as if every webhook had come, in few requests."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ravebot.store import merge_requests, sandboxes
from ravebot.store.database import Transaction
from tests.integration.test_intake_gitlab import Desk, a_desk
from tests.support.gitlab import MergeRequest

pytestmark = pytest.mark.integration
STEPS, MOST_MERGE_REQUESTS = 24, 5
ACTS = ("open", "push", "push", "title", "label", "unlabel", "close", "reopen", "merge", "command", "talk", "move")


@dataclass(frozen=True)
class EndState:
    merge_requests: frozenset[tuple[object, ...]]
    live: frozenset[tuple[object, ...]]


async def replay(folder: Path, seed: int, *, told: bool) -> tuple[EndState, int, int]:
    """The end state, how many requests the catching up took, and how many merge requests there were."""
    folder.mkdir()
    chance = random.Random(seed)
    async with a_desk(folder) as desk:
        await desk.poller.look()
        before, opened = len(desk.server.requests), list[MergeRequest]()
        for number in range(STEPS):
            await _step(desk, chance, opened, number, told=told)
        if not told:
            desk.world.pass_by(minutes=10)
            before = len(desk.server.requests)
            await desk.poller.look()
            await desk.work()
        asked = len(desk.server.requests) - before
        return await end_state(desk), asked, len(opened)


async def end_state(desk: Desk) -> EndState:
    return EndState(await desk.world.read(_known), await desk.world.read(_live))


async def _step(desk: Desk, chance: random.Random, opened: list[MergeRequest], number: int, *, told: bool) -> None:
    act = chance.choice(ACTS)
    if act == "open" or not opened:
        if len(opened) == MOST_MERGE_REQUESTS:
            return
        act, mr = "open", desk.open(f"branch-{number}")
        opened.append(mr)
    else:
        mr = chance.choice(opened)
    action = {"open": "open", "close": "close", "reopen": "reopen", "merge": "merge"}.get(act, "update")
    if act in ("close", "merge", "push", "command") and mr.state != "opened":
        return
    if act == "reopen" and mr.state != "closed":
        return
    if act in ("command", "talk"):
        await desk.say(mr, desk.alice, "/sandbox start" if act == "command" else "Looks good", webhook=told)
    elif act == "push":
        desk.server.push(mr, {f"{number}.txt": "new"})
    elif act == "title":
        desk.server.retitle(mr, f"Title {number}")
    elif act in ("label", "unlabel"):
        desk.server.label(mr, *(["sandbox::large", "bug"] if act == "label" else []))
    elif act == "move":
        desk.server.move(desk.project, f"group/app-{number}")
    elif act != "open":
        getattr(desk.server, act)(mr)
    if told and act != "move":
        if act not in ("command", "talk"):
            await desk.tell(mr, action)
        await desk.work()


def _known(tx: Transaction) -> frozenset[tuple[object, ...]]:
    """Of those that are open; how a merged one was called is told nowhere any more."""
    return frozenset((one.ref.iid, one.title, one.head_sha, one.labels) for one in merge_requests.opened(tx))


def _live(tx: Transaction) -> frozenset[tuple[object, ...]]:
    return frozenset((one.mr.iid, one.state.value, one.sha) for one in sandboxes.live(tx))


@pytest.mark.parametrize("seed", [0, 1, 2, 5, 7, 11])
async def test_one_poll_after_a_time_away_ends_as_if_every_webhook_had_come(tmp_path: Path, seed: int) -> None:
    told, _, _ = await replay(tmp_path / "told", seed, told=True)
    away, asked, opened = await replay(tmp_path / "away", seed, told=False)
    assert told.live
    # Ids and hashes are the same in both, since both GitLabs were made alike.
    assert away.live == told.live
    assert away.merge_requests == told.merge_requests
    assert asked <= 2 + 6 * opened, "in bounded requests: for each merge request its comments, file and people"


async def burst(folder: Path, count: int, *, alone: bool = False) -> tuple[EndState, list[str], float, int]:
    """Five webhooks about each of so many merge requests: all at once, or each worked off before the next comes."""
    folder.mkdir()
    async with a_desk(folder) as desk:
        opened = [desk.open(f"branch-{number}", files={}) for number in range(count)]
        asked, began = len(desk.server.requests), time.monotonic()
        for step in range(5):
            for number, mr in enumerate(opened):
                action = "open" if step == 0 else "update"
                if step == 2:
                    desk.server.push(mr, {"new.txt": f"{number}"})
                elif step == 4 and number % 4 == 0:
                    desk.server.close(mr)
                    action = "close"
                elif step:
                    desk.server.retitle(mr, f"Change {number}.{step}")
                await desk.tell(mr, action)
                if alone:
                    await desk.work()
        await desk.work(seconds=60)
        taken, asked = time.monotonic() - began, len(desk.server.requests) - asked
        return await end_state(desk), await desk.outcomes(), taken, asked


async def test_a_burst_of_webhooks_ends_as_if_each_had_come_alone_and_none_is_lost(tmp_path: Path) -> None:
    state, outcomes, taken, asked = await burst(tmp_path / "burst", 100)
    assert len(outcomes) == 500
    assert len(state.live) == 75
    assert {title for _, title, _, _ in state.merge_requests} == {f"Change {n}.4" for n in range(100) if n % 4}
    assert asked <= 200, "of each commit its .rave.yml"
    assert taken < 30
    few, _, _, _ = await burst(tmp_path / "few", 12)
    alone, _, _, _ = await burst(tmp_path / "alone", 12, alone=True)
    assert few == alone
