"""Each cell of the sandboxes' table over a real database: what follows does follow, and a dash changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.sandboxes import machine_life
from ravebot.sandboxes.decide import SANDBOXES, Happened, Then
from ravebot.sandboxes.lifecycle import Allocation
from ravebot.sandboxes.model import EndReason, Sandbox, SandboxState, Stage
from ravebot.store import sandboxes
from tests.support.records import BY_ALICE, NOON, B, World, a_machine, a_merge_request, a_world

pytestmark = pytest.mark.integration

MR = a_merge_request()
S = SandboxState
AFTER = {
    Then.BEGIN: S.STARTING,
    Then.TAKE_SHA: S.QUEUED,
    Then.END: S.ENDED,
    Then.RESTART_AT_COPY: S.STARTING,
    Then.STOP: S.STOPPING,
    Then.FAIL: S.STOPPING,
    Then.EXPIRE: S.STOPPING,
    Then.RETRY: S.QUEUED,
    Then.CHAIN_AGAIN: S.STARTING,
    Then.UPDATE: S.READY,
    Then.KEEP: S.READY,
    Then.END_LOST: S.STOPPING,
    Then.REBUILD: S.STOPPING,
    Then.NEW_BEHIND: S.STOPPING,
    Then.NEW: S.ENDED,
    Then.DROP_BACKOFF: S.QUEUED,
}
"""The state in which each answer leaves the sandbox that it is given for; any other answer changes no state."""
ANOTHER = {Then.REBUILD, Then.NEW_BEHIND, Then.NEW}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


async def one_in(world: World, state: SandboxState) -> Sandbox:
    """A sandbox that came to that state by what happened to it, its setup under way if it is starting."""
    if state is S.QUEUED:
        queued = replace(await world.queued(MR), not_before=NOON + timedelta(hours=1))
        await world.write(lambda tx: sandboxes.save(tx, queued))
        return queued
    if state is S.STARTING:
        claimed = replace(await world.claimed(MR), stage=Stage.SETUP, expires_at=NOON, warned=frozenset({1800, 600}))
        await world.write(lambda tx: sandboxes.save(tx, claimed))
        return claimed
    ready = await world.ready(MR)
    if state is S.READY:
        over = replace(ready, expires_at=NOON, warned=frozenset({1800, 600}))
        await world.write(lambda tx: sandboxes.save(tx, over))
        return over
    await world.happens(ready, Happened.END_ASKED)
    if state is S.ENDED:
        machine = await world.machine(MR)
        await world.write(lambda tx: machine_life.gone(tx, world.lifecycle, machine))
    return await world.latest(MR)


async def everything(world: World) -> tuple[object, ...]:
    rows = [await world.read(lambda tx, table=table: [tuple(row) for row in tx.all(f"SELECT * FROM {table}")])  # type: ignore[misc]
            for table in ("sandboxes", "machines", "warnings", "events", "outbox", "stage_results")]  # fmt: skip
    return tuple(rows)


KEPT_AFTER = {
    Happened.CODE_UPDATED: S.READY,
    Happened.END_ASKED: S.STOPPING,
    Happened.STAGE_TIMEOUT: S.READY,
    Happened.EXPIRED: S.STOPPING,
    Happened.MACHINE_LOST: S.STOPPING,
    Happened.RESTARTED: S.STARTING,
    Happened.STAGE_FAILED: S.READY,
    Happened.REBUILD: S.STOPPING,
    Happened.RETRY: S.READY,
}
"""The ready row, for one whose set-up failed and whose machine is kept; any other event changes nothing."""


@pytest.mark.parametrize("happened", Happened)
async def test_the_row_of_ready_ones_holds_for_one_that_is_kept(tmp_path: Path, happened: Happened) -> None:
    async with a_world(tmp_path, sandbox={"keep_failed": "15m"}) as world:
        starting = replace(await world.claimed(MR), stage=Stage.SETUP)
        assert await world.happens(starting, Happened.STAGE_FAILED, why="so it is", answers=True) is Then.FAIL
        kept = await world.latest(MR)
        assert kept.is_kept
        if happened is Happened.EXPIRED:
            kept = replace(kept, warned=frozenset({1800, 600}))
            world.pass_by(minutes=15)
        if happened in (Happened.STAGE_TIMEOUT, Happened.STAGE_FAILED):
            kept = replace(kept, stage=Stage.TEST)
        await world.write(lambda tx: sandboxes.save(tx, kept))
        before = await everything(world)
        then = await world.happens(kept, happened, by=BY_ALICE, why="so it is", sha=B, answers=True)
        after = await world.read(lambda tx: sandboxes.get(tx, kept.id))
        assert after
        if happened not in KEPT_AFTER:
            assert then is Then.NOTHING
            assert await everything(world) == before
            return
        assert after.state is KEPT_AFTER[happened]
        assert after.is_kept is (after.state is S.READY)
        lost = happened is Happened.MACHINE_LOST
        failed = EndReason.LOST if lost else EndReason.FAILED
        assert after.end_reason is (None if after.state is S.STARTING else failed)
        assert ((await world.latest(MR)).id != kept.id) is (then in ANOTHER)


@pytest.mark.parametrize("happened", Happened)
@pytest.mark.parametrize("state", S)
async def test_what_the_cell_says_follows_and_a_dash_changes_nothing(
    world: World, state: SandboxState, happened: Happened
) -> None:
    sandbox = await one_in(world, state)
    assert sandbox.state is state
    if (state, happened) == (S.READY, Happened.MACHINE_READY):
        sandbox = replace(sandbox, stage=Stage.COPY)
        await world.write(lambda tx: sandboxes.save(tx, sandbox))
    before = await everything(world)
    how: dict[str, Any] = {"by": BY_ALICE, "why": "so it is", "sha": B}
    if (state, happened) == (S.QUEUED, Happened.MACHINE_READY):
        how["allocation"] = Allocation(a_machine(9), 42209, 43009)
    if (state, happened) == (S.STOPPING, Happened.MACHINE_LOST):  # it is said when nothing is left of the machine
        machine = await world.machine(MR)
        await world.write(lambda tx: machine_life.gone(tx, world.lifecycle, machine))
        then = Then.END
    else:
        then = await world.happens(sandbox, happened, **how)
    assert then is SANDBOXES.get((state, happened), Then.NOTHING)
    after = await world.read(lambda tx: sandboxes.get(tx, sandbox.id))
    assert after
    if then is Then.NOTHING:
        assert await everything(world) == before
    else:
        assert await everything(world) != before
        assert after.state is AFTER.get(then, state)
        newest = await world.latest(MR)
        assert (newest.id != sandbox.id) is (then in ANOTHER)
        assert newest.state is (S.QUEUED if then in ANOTHER else after.state)
