"""A set-up that fails with `sandbox.keep_failed`: the machine stays for a while, open for SSH, and ends afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ravebot.errors import GuestTimeout
from ravebot.providers.base import RunResult
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.providers.memory.script import GuestCommand
from ravebot.sandboxes.model import EndReason, Sandbox
from tests.support.records import BY_ALICE, B, a_merge_request
from tests.support.yard import HOW_A_JOB_GOES, Yard, a_yard, job_ended

pytestmark = pytest.mark.integration
MR, SECOND = a_merge_request(1), a_merge_request(2)
KEEP = timedelta(minutes=15)
KEEPS: dict[str, Any] = {"sandbox": {"keep_failed": "15m"}, "pool": {"max_running": 1, "max_lifetime": "2h"}}


@pytest.fixture
async def yard(tmp_path: Path, host: MemoryHost) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, MemoryProvider(host), **KEEPS) as yard:
        yield yard


def sets_up(yard: Yard, code: int) -> None:
    yard.provider.answers[HOW_A_JOB_GOES] = job_ended(code)


async def is_kept(yard: Yard) -> bool:
    return (await yard.latest(MR)).is_kept


async def keep(yard: Yard) -> Sandbox:
    sets_up(yard, 3)
    await yard.told(MR)
    await yard.until(lambda: is_kept(yard))
    return await yard.latest(MR)


def value(yard: Yard, name: str, **labels: str) -> float | None:
    return yard.metrics.registry.get_sample_value(f"ravebot_{name}", labels)


async def test_a_failed_set_up_keeps_its_machine_with_the_ssh_port_open_and_is_told_once(yard: Yard) -> None:
    kept = await keep(yard)
    assert yard.fence.ports == {kept.ssh_port}  # already, before the next pass
    for _ in range(3):
        await yard.go()
    assert yard.fence.ports == {kept.ssh_port}
    assert kept.end_detail == "set-up failed: `./.rave/setup` ended with code 3"
    assert kept.expires_at
    assert kept.expires_at - kept.state_since == KEEP
    assert kept.ready_at is None
    [told] = await yard.log("sandbox.kept")
    assert told["why"] == kept.end_detail
    assert (await yard.told_kinds()).count("matrix history") == 1
    view = await yard.read(lambda tx: yard.views.one(tx, kept.id))
    assert view
    assert view.access
    assert view.access.host_keys
    assert view.access.web_port is None
    assert not await yard.log("sandbox.ready")
    assert value(yard, "sandboxes_ready_total") == 0
    assert (value(yard, "sandboxes", state="kept"), value(yard, "sandboxes", state="ready")) == (1, 0)


async def test_its_place_is_taken_until_it_ends_as_failed_when_the_time_is_up(yard: Yard, host: MemoryHost) -> None:
    await keep(yard)
    sets_up(yard, 0)
    await yard.told(SECOND)
    yard.pass_by(minutes=5)
    await yard.go()
    assert await yard.is_in(SECOND, "queued")
    assert [data["threshold"] for data in await yard.log("sandbox.warned")] == [600]
    yard.pass_by(minutes=9, seconds=50)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    ended = await yard.latest(MR)
    assert ended.end_reason is EndReason.FAILED
    assert ended.end_detail == "set-up failed: `./.rave/setup` ended with code 3"
    assert (await yard.log("sandbox.stopping"))[0]["kept"] == "expired"
    assert (await yard.told_kinds()).count("matrix history") == 2  # that it is kept, and that it is not any longer
    assert value(yard, "sandboxes_ended_total", reason="failed") == 1
    await yard.until(lambda: yard.is_in(SECOND, "ready"))
    assert len(host.machines) == 1


async def test_a_retry_that_works_makes_it_an_ordinary_ready_sandbox_with_its_whole_lifetime(yard: Yard) -> None:
    kept = await keep(yard)
    yard.pass_by(minutes=12)
    await yard.go()
    sets_up(yard, 0)
    mr = await yard.mr(MR)
    done = await yard.write(lambda tx: yard.intents.retry(tx, mr, BY_ALICE))
    assert done.accepted
    assert yard.fence.ports == {kept.ssh_port}
    await yard.until(lambda: value(yard, "sandboxes_ready_total"))
    ready = await yard.latest(MR)
    assert (ready.state.value, ready.is_kept, ready.end_reason, ready.end_detail) == ("ready", False, None, "")
    assert ready.machine_id == kept.machine_id
    assert yard.fence.ports == {kept.ssh_port, kept.web_port}
    assert ready.ready_at
    assert ready.expires_at
    assert ready.expires_at - ready.ready_at == yard.config.pool.lifetime
    assert ready.warned == frozenset()
    assert "matrix over" in await yard.told_kinds()  # the warning of before


async def test_a_push_that_fails_again_keeps_it_anew_and_says_so(yard: Yard) -> None:
    first = await keep(yard)
    yard.pass_by(minutes=10)
    await yard.told(replace(MR, head_sha=B))
    await yard.until(lambda: bool(yard.provider.count("copy_in") == 2))
    again = await yard.latest(MR)
    assert again.is_kept
    assert (again.running_sha, again.machine_id, again.state_since) == (B, first.machine_id, first.state_since)
    assert first.expires_at
    assert again.expires_at
    assert again.expires_at > first.expires_at + timedelta(minutes=9)
    assert [data["sha"] for data in await yard.log("sandbox.kept")] == [MR.head_sha, B]
    assert not await yard.log("sandbox.update_failed")
    assert yard.fence.ports == {again.ssh_port}


async def test_it_is_extended_up_to_the_longest_lifetime(yard: Yard) -> None:
    kept = await keep(yard)
    mr = await yard.mr(MR)
    extended = await yard.write(lambda tx: yard.intents.extend(tx, mr, BY_ALICE, timedelta(hours=9)))
    assert extended.accepted
    assert (await yard.latest(MR)).expires_at == kept.state_since + timedelta(hours=2)


async def test_it_is_kept_across_a_crash_and_a_clock_that_is_set_back(tmp_path: Path, host: MemoryHost) -> None:
    async with a_yard(tmp_path, MemoryProvider(host), **KEEPS) as yard:
        kept = await keep(yard)
    async with a_yard(tmp_path, MemoryProvider(host), **KEEPS) as next_run:
        next_run.clock.advance(yard.clock.now() - next_run.clock.now())
        for _ in range(3):
            await next_run.go()
        assert replace(await next_run.latest(MR), notice="", refreshed_at=None) == replace(kept, refreshed_at=None)
        assert next_run.fence.ports == {kept.ssh_port}
        assert len(await next_run.log("sandbox.kept")) == 1
        next_run.pass_by(hours=-5)
        await next_run.go()
        back = await next_run.latest(MR)
        assert back.expires_at == next_run.clock.now() + KEEP
        assert back.ready_at is None


@pytest.mark.parametrize("end", ["stop", "close", "rebuild"])
async def test_whatever_ends_it_early_it_had_failed(yard: Yard, end: str) -> None:
    kept = await keep(yard)
    mr = await yard.mr(MR)
    if end == "close":
        await yard.told(replace(MR, state="closed"))
    else:
        asked = yard.intents.stop if end == "stop" else yard.intents.rebuild
        assert (await yard.write(lambda tx: asked(tx, mr, BY_ALICE))).accepted
    sets_up(yard, 0)
    await yard.until(lambda: bool(value(yard, "sandboxes_ended_total", reason="failed")))
    newest = await yard.latest(MR)
    assert (newest.id == kept.id) is (end != "rebuild")


def silenced(yard: Yard, command: GuestCommand) -> RunResult:
    """The set-up has failed, and the agent does not answer any more."""
    yard.provider.silent.add(command.machine)
    return job_ended(3)


@pytest.mark.parametrize("why", ["off", "the agent is silent", "before its people were let in"])
async def test_a_machine_that_nobody_could_look_into_is_not_kept(tmp_path: Path, host: MemoryHost, why: str) -> None:
    settings = {} if why == "off" else KEEPS
    async with a_yard(tmp_path, MemoryProvider(host), **settings) as yard:
        sets_up(yard, 3)
        if why == "before its people were let in":
            yard.provider.fails["authorize_keys"] = GuestTimeout("the guest did not answer in time")
        elif why == "the agent is silent":
            yard.provider.answers[HOW_A_JOB_GOES] = partial(silenced, yard)
        await yard.told(MR)
        await yard.until(lambda: yard.is_in(MR, "ended"))
        assert (await yard.latest(MR)).end_reason is EndReason.FAILED
        assert not await yard.log("sandbox.kept")
        assert host.machines == {}
