"""What ravebot missed while it was away ends as if every webhook had come, in few requests."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ravebot.notify.environments.loop import EnvironmentLoop
from ravebot.notify.environments.steps import EnvironmentSteps
from ravebot.notify.environments.stops import EnvironmentStops
from ravebot.sandboxes.model import SandboxState
from ravebot.store import merge_requests, sandboxes
from ravebot.store.database import Transaction
from tests.integration.test_intake_gitlab import Desk, a_desk
from tests.support.environment_show import settle
from tests.support.gitlab import MergeRequest

pytestmark = pytest.mark.integration
STEPS, MOST_MERGE_REQUESTS = 24, 5
ACTS = (
    *("open", "push", "push", "title", "label", "unlabel", "close", "reopen", "merge", "command", "talk", "move"),
    "target",
)


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
    elif act == "target":
        desk.server.retarget(mr, f"release-{number}")
    elif act == "move":
        desk.server.move(desk.project, f"group/app-{number}")
    elif act != "open":
        getattr(desk.server, act)(mr)
    if told and act == "move":  # no webhook tells of it, but polling does
        await desk.poller.look()
    elif told:
        if act not in ("command", "talk"):
            await desk.tell(mr, action)
        await desk.work()


def _known(tx: Transaction) -> frozenset[tuple[object, ...]]:
    """Of those that are open; how a merged one was called is told nowhere any more."""
    return frozenset(
        (
            one.ref.iid,
            one.title,
            one.head_sha,
            one.labels,
            one.target_branch,
            one.project_path,
            urlsplit(one.web_url).path,
        )
        for one in merge_requests.opened(tx)
    )


def _live(tx: Transaction) -> frozenset[tuple[object, ...]]:
    alive = (one for one in sandboxes.live(tx) if one.state is not SandboxState.STOPPING)
    return frozenset((one.mr.iid, one.state.value, one.sha) for one in alive)


@pytest.mark.parametrize("seed", [0, 1, 2, 5, 7, 11])
async def test_one_poll_after_a_time_away_ends_as_if_every_webhook_had_come(tmp_path: Path, seed: int) -> None:
    told, _, _ = await replay(tmp_path / "told", seed, told=True)
    away, asked, opened = await replay(tmp_path / "away", seed, told=False)
    assert told.live
    # Ids and hashes are the same in both, since both GitLabs were made alike.
    assert away.live == told.live
    assert away.merge_requests == told.merge_requests
    assert asked <= 2 + 6 * opened, "in bounded requests: for each merge request its comments, file and people"


HISTORIES = (
    ("stop",),
    ("stop", "push"),
    ("push", "stop"),
    ("target", "label", "stop"),
    ("title", "move", "stop", "title"),
    ("stop", "merge"),
    ("stop", "delete", "push"),
    ("push", "target", "title"),
    ("unlabel", "title", "move"),
)


@dataclass(frozen=True)
class AfterStops:
    """As EndState, with whether a commit is the newest; and the environments that are available at GitLab."""

    merge_requests: frozenset[tuple[object, ...]]
    live: frozenset[tuple[object, ...]]
    environments: frozenset[tuple[str, str]]


async def stops(folder: Path, away: tuple[str, ...]) -> AfterStops:
    """What is in the end of merge requests whose sandboxes had environments; without `away` each step was seen at once,
    else what is named there came after all of them."""
    folder.mkdir()
    async with a_desk(folder) as desk:
        world, calls = desk.world, desk.gitlab.environments
        loop = EnvironmentLoop(
            world.database, world.views, world.lifecycle, EnvironmentSteps(world.config, calls), gather_seconds=0
        )
        looks = EnvironmentStops(world.config, world.database, calls, world.lifecycle, world.clock)
        await desk.poller.look()
        opened = [desk.open(f"branch-{number}") for number in range(len(HISTORIES))]
        for mr in opened:
            await desk.tell(mr)
        await desk.work()
        for sandbox in await world.read(sandboxes.live):
            await world.begin(sandbox)
        await settle(world, loop)
        for number, acts in enumerate(zip_longest(*HISTORIES)):
            for mr, act in zip(opened, acts, strict=True):
                world.pass_by(seconds=1)
                _do(desk, mr, act, number)
                if away or not act:
                    continue
                if act == "move":
                    await desk.poller.look()
                elif act in ("stop", "delete"):
                    await looks.look_at(desk.project.id)
                else:
                    await desk.tell(mr, "merge" if act == "merge" else "update")
                    await desk.work()
                await settle(world, loop)
        world.pass_by(minutes=10)
        for part in away:
            await (desk.poller.look() if part == "poll" else looks.look_at(desk.project.id))
            await settle(world, loop)
        await desk.work()
        await settle(world, loop)
        heads: dict[object, str] = {mr.iid: mr.sha for mr in opened}
        left = frozenset(
            (one.name, urlsplit(one.external_url).path)
            for one in desk.project.environments.values()
            if one.state == "available"
        )
        state = await end_state(desk)
        return AfterStops(
            frozenset((iid, title, sha == heads.get(iid), *more) for iid, title, sha, *more in state.merge_requests),
            frozenset((iid, sha == heads.get(iid)) for iid, _, sha in state.live),
            left,
        )


def _do(desk: Desk, mr: MergeRequest, act: str | None, number: int) -> None:
    environment = desk.server.environment(desk.project, f"review/mr-{mr.iid}")
    match act:
        case "stop":
            assert environment
            desk.server.stop_environment(environment)
        case "delete":
            if environment:  # who sees the stop deletes it at once
                desk.server.delete_environment(environment)
        case "push":
            desk.server.push(mr, {f"{number}.txt": "new"})
        case "title":
            desk.server.retitle(mr, f"Title {number}")
        case "target":
            desk.server.retarget(mr, f"release-{number}")
        case "label" | "unlabel":
            desk.server.label(mr, *(["sandbox::large", "bug"] if act == "label" else []))
        case "move":
            desk.server.move(desk.project, f"group/sub/app-{mr.iid}")
        case "merge":
            desk.server.merge(mr)


async def test_stops_in_gitlab_end_the_same_sandboxes_whether_they_are_seen_at_once_or_after_a_time_away(
    tmp_path: Path,
) -> None:
    told = await stops(tmp_path / "told", ())
    page = "/group/sub/app-9/-/merge_requests"
    assert told.live == {(8, True), (9, True)}
    assert told.environments == {("review/mr-8", f"{page}/8"), ("review/mr-9", f"{page}/9")}
    assert {path for *_, path, _ in told.merge_requests} == {"group/sub/app-9"}
    assert await stops(tmp_path / "poll first", ("poll", "look")) == told
    assert await stops(tmp_path / "look first", ("look", "poll")) == told


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
    assert {title for _, title, *_ in state.merge_requests} == {f"Change {n}.4" for n in range(100) if n % 4}
    assert asked <= 200, "of each commit its .rave.yml"
    assert taken < 30
    few, _, _, _ = await burst(tmp_path / "few", 12)
    alone, _, _, _ = await burst(tmp_path / "alone", 12, alone=True)
    assert few == alone
