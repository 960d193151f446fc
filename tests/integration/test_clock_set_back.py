"""The pool after the host's clock was set back by hours: nothing freezes, and nobody is ended for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.machine_life import BuildFailure
from ravebot.sandboxes.model import EndReason
from ravebot.sandboxes.pool.sweep import ADOPTED
from ravebot.store import images
from ravebot.store.database import set_meta
from tests.support.records import a_merge_request
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration
MR, SECOND = a_merge_request(1), a_merge_request(2)


@pytest.fixture
async def yard(tmp_path: Path, host: MemoryHost) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, MemoryProvider(host)) as yard:
        yield yard


async def looks(yard: Yard, count: int, **apart: float) -> None:
    """Passes that wait for nothing that flies."""
    for _ in range(count):
        yard.pass_by(**apart)
        await yard.core.pool.one_pass(yard.flights)
        await asyncio.sleep(0.13)  # a boot asks the clock every 0.1 s whether to let the pool look


async def test_a_guest_that_ignores_the_shutdown_is_switched_off_after_the_grace(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.provider.ignores.add("shutdown")
    await yard.told(replace(MR, state="merged"))
    await yard.go()
    yard.pass_by(hours=-3)
    for _ in range(2):
        await yard.go()
        yard.pass_by(seconds=14)
    assert yard.provider.count("destroy") == 0
    yard.pass_by(seconds=2)
    await yard.until(lambda: yard.is_in(MR, "ended"), passes=4)
    assert (await yard.latest(MR)).end_detail == "switched off after the grace"


async def test_a_build_that_never_answers_has_its_whole_time_again_and_then_fails(yard: Yard) -> None:
    yard.provider.answering = False
    await yard.told(MR)
    await looks(yard, 3, seconds=20)
    yard.pass_by(hours=-3)
    await looks(yard, 5, seconds=55)
    image = str(yard.config.provider.image)
    assert await yard.is_in(MR, "starting")
    assert (await yard.read(lambda tx: images.get(tx, image))).failures == 0
    for _ in range(20):
        if await yard.log("sandbox.requeued"):
            break
        await looks(yard, 1, seconds=30)
    assert [data["why"] for data in await yard.log("sandbox.requeued")] == [
        "the machine did not answer within 5 min of being created"
    ]


async def test_one_that_waits_after_a_failed_build_waits_no_longer_for_it(yard: Yard) -> None:
    await yard.started(MR)
    machine = await yard.machine(MR)
    await yard.write(
        lambda tx: machine_life.count_failure(tx, yard.lifecycle, machine, BuildFailure("it broke", "it broke"))
    )
    await yard.write(lambda tx: machine_life.gone(tx, yard.lifecycle, replace(machine, sandbox_id=None)))
    await yard.go()
    assert await yard.is_in(MR, "queued")
    yard.pass_by(hours=-3)
    await yard.until(lambda: yard.is_in(MR, "ready"), passes=5)


async def test_a_stage_has_no_more_time_than_it_may_take(yard: Yard) -> None:
    yard.provider.hold["copy_in"] = asyncio.Event()
    await yard.told(MR)
    async with asyncio.timeout(60):
        while (await yard.latest(MR)).stage != "copy":
            await looks(yard, 1)
    yard.flights.cancel((await yard.machine(MR)).id)  # a crash
    yard.pass_by(hours=-3)
    yard.provider.hold.clear()
    await yard.until(lambda: yard.is_in(MR, "ready"), passes=5)
    assert max(command.timeout for command in yard.provider.commands) <= yard.config.sandbox.timeouts.copy_in


async def test_a_sandbox_lives_its_lifetime_again_at_most_and_is_warned_before_its_end(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.pass_by(hours=1, minutes=50, seconds=30)
    await yard.go()
    assert (await yard.latest(MR)).warned == {600, 1800}
    yard.pass_by(days=-30)
    await yard.go()
    sandbox = await yard.latest(MR)
    assert sandbox.expires_at == yard.clock.now() + timedelta(hours=2)
    assert sandbox.ready_at == yard.clock.now()
    before = len(await yard.log("sandbox.warned"))
    yard.pass_by(hours=1, minutes=50, seconds=30)
    await yard.go()
    assert len(await yard.log("sandbox.warned")) == before + 1
    yard.pass_by(minutes=10)
    await yard.until(lambda: yard.is_in(MR, "ended"), passes=5)
    ended = await yard.latest(MR)
    assert ended.end_reason is EndReason.EXPIRED
    [account] = await yard.log("sandbox.ended")
    assert account["lived_seconds"] == pytest.approx(2 * 3600 + 30, abs=5)


async def test_a_step_back_that_is_shorter_than_what_was_lived_changes_nothing(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.pass_by(hours=1)
    await yard.go()
    before = await yard.latest(MR)
    yard.pass_by(minutes=-30)
    await yard.go()
    assert replace(await yard.latest(MR), refreshed_at=None) == replace(before, refreshed_at=None)


async def test_no_step_is_said_to_have_taken_less_than_no_time(yard: Yard) -> None:
    yard.provider.answering = False
    await yard.told(MR)
    await looks(yard, 3)
    yard.provider.answering, copied = True, asyncio.Event()
    yard.provider.hold["copy_in"] = copied
    yard.pass_by(hours=-3)
    async with asyncio.timeout(60):
        while not yard.provider.count("copy_in"):
            await asyncio.sleep(0.01)
    yard.pass_by(hours=-3)
    copied.set()
    await yard.land()
    assert await yard.is_in(MR, "ready")
    told = [(event.kind, event.data["seconds"]) for event in await yard.events() if "seconds" in event.data]
    assert {"machine.booted", "stage.done", "sandbox.ready"} <= {kind for kind, _ in told}
    assert [kind for kind, seconds in told if isinstance(seconds, float) and seconds < 0] == []


async def test_a_sandbox_never_lived_for_less_than_no_time(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.pass_by(hours=-3)
    await yard.told(replace(MR, state="merged"))
    machine = await yard.machine(MR)
    await yard.write(lambda tx: machine_life.gone(tx, yard.lifecycle, machine))
    assert [data["lived_seconds"] for data in await yard.log("sandbox.ended")] == [0]
    ended = await yard.latest(MR)
    assert ended.ready_at == ended.ended_at


async def test_what_has_no_row_is_removed_at_its_second_sighting(yard: Yard, host: MemoryHost) -> None:
    await yard.write(lambda tx: set_meta(tx, ADOPTED, "yes"))
    host.put("rave-test-stray")
    await yard.go()
    yard.pass_by(hours=-3)
    await yard.go()
    assert "rave-test-stray" in host.machines
    yard.pass_by(minutes=5)
    await yard.go()
    assert host.machines == {}
