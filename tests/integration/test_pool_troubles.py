"""The pool when a part it depends on is away, lies low, or says what can't be: nothing is concluded in haste."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from ravebot.access.rules import Connections
from ravebot.errors import ProviderError, RavebotError, Unavailable
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.model import EndReason, Observed
from ravebot.sandboxes.pool.sweep import ADOPTED
from ravebot.store import machines
from ravebot.store.database import set_meta
from tests.support.records import NOON, a_merge_request
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration
GIB = 1024**3
MR, SECOND = a_merge_request(1), a_merge_request(2)


@pytest.fixture
async def yard(tmp_path: Path, host: MemoryHost) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, MemoryProvider(host)) as yard:
        yield yard


@pytest.mark.parametrize("error", [Unavailable("libvirt is away"), ProviderError("libvirt says no")])
async def test_a_listing_that_failed_makes_nothing_absent(yard: Yard, host: MemoryHost, error: RavebotError) -> None:
    await yard.make_ready(MR)
    host.put("rave-test-stray")
    await yard.go()
    yard.provider.fails["list"] = error
    before = (await yard.kinds(), deepcopy(host.machines), yard.provider.count("delete"))
    for _ in range(5):
        yard.pass_by(minutes=6)
        await yard.go()
        await yard.write(lambda tx: tx.execute("UPDATE sandboxes SET expires_at = expires_at + 360000000"))
    kinds, shelved, deleted = before
    assert (host.machines, yard.provider.count("delete")) == (shelved, deleted)
    assert await yard.kinds() == kinds
    assert await yard.is_in(MR, "ready")


async def test_while_the_provider_is_away_nobody_is_let_in_and_then_goes_on(yard: Yard) -> None:
    yard.provider.fails["open"] = Unavailable("libvirt is away")
    await yard.told(MR)
    await yard.go()
    assert await yard.is_in(MR, "queued")
    yard.provider.fails.clear()
    await yard.until(lambda: yard.is_in(MR, "ready"))


async def test_a_host_that_does_not_say_what_it_has_lets_nobody_in(yard: Yard) -> None:
    yard.provider.fails["host"] = Unavailable("libvirt is away")
    await yard.told(MR)
    await yard.go()
    assert await yard.is_in(MR, "queued")


async def test_no_machine_starts_before_the_firewall_is_verified(yard: Yard, host: MemoryHost) -> None:
    yard.fence.away = True
    await yard.told(MR)
    await yard.go()
    assert yard.provider.count("start") == 0
    assert {machine.state for machine in host.machines.values()} <= {Observed.OFF}
    yard.fence.away = False
    await asyncio.sleep(1.1)  # how long a machine is left alone after a failure, by the loop's own clock
    await yard.until(lambda: yard.is_in(MR, "ready"))


async def test_rules_that_somebody_flushed_are_back_after_one_pass_and_it_is_told(yard: Yard) -> None:
    await yard.make_ready(MR)
    ports = yard.fence.ports
    yard.fence.flush()
    yard.core.guard.alarm()  # nft's monitor saw it
    await yard.go()
    assert yard.fence.ports == ports
    assert len(await yard.log("firewall.repaired")) == 1
    await yard.go()
    assert len(await yard.log("firewall.repaired")) == 1


async def test_the_machine_is_in_the_firewall_before_it_starts_and_its_ports_only_after_its_set_up(yard: Yard) -> None:
    await yard.make_ready(MR)
    with_guest = [rules for rules in yard.fence.history if rules.guests]
    assert with_guest[0].forwards == frozenset()
    calls = [call for call, _ in yard.provider.calls]
    assert calls.index("host_keys") < calls.index("authorize_keys") < calls.index("copy_in")


async def test_an_empty_database_that_meets_its_own_machines_touches_nothing_until_they_are_adopted(
    yard: Yard, host: MemoryHost
) -> None:
    host.put("rave-test-from-before")
    await yard.told(MR)
    for _ in range(4):
        await yard.go()
        yard.pass_by(minutes=6)
    assert yard.core.pool.blocked
    assert "rave-test-from-before" in host.machines
    assert yard.provider.count("create") == 0
    assert yard.fence.history == []
    await yard.write(lambda tx: set_meta(tx, ADOPTED, "yes"))
    await yard.go()
    assert not yard.core.pool.blocked
    assert "rave-test-from-before" in host.machines
    yard.pass_by(minutes=6)
    await yard.go()
    assert "rave-test-from-before" not in host.machines


async def test_two_instances_on_one_host_never_touch_each_other(tmp_path: Path, host: MemoryHost) -> None:
    second = MemoryProvider(host, instance_id="second")
    async with a_yard(tmp_path / "one", MemoryProvider(host)) as here, a_yard(tmp_path / "two", second) as there:
        await here.make_ready(MR)
        await there.make_ready(MR)
        mine = (await there.machine(MR)).name
        await here.told(replace(MR, state="merged"))
        await here.until(lambda: here.is_in(MR, "ended"))
        for _ in range(3):
            here.pass_by(minutes=6)
            await here.go()
        await there.go()
        assert [machine.name for machine in (await second.list()).machines] == [mine]
        assert await there.is_in(MR, "ready")
        assert await here.log("orphan.removed") == []


async def test_a_crashed_machine_is_restarted_once_and_then_counts_as_lost(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    name = (await yard.machine(MR)).name
    host.set(name, Observed.CRASHED)
    await yard.go()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    host.set(name, Observed.CRASHED)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert (await yard.latest(MR)).end_reason is EndReason.LOST
    assert len(await yard.log("machine.restarted")) == 1


async def test_a_full_disk_is_told_once_and_the_machine_goes_on_when_there_is_room(
    yard: Yard, host: MemoryHost
) -> None:
    await yard.make_ready(MR)
    name = (await yard.machine(MR)).name
    full = yard.provider.host_usage
    yard.provider.host_usage = replace(full, disk_free_bytes=0)
    host.set(name, Observed.PAUSED, "ioerror")
    for _ in range(2):
        await yard.go()
    assert len(await yard.log("machine.disk_full")) == 1
    assert yard.provider.count("resume") == 0
    yard.provider.host_usage = replace(full, disk_free_bytes=GIB)
    await yard.go()
    yard.pass_by(seconds=21)
    await yard.go()
    assert host.machines[name].state is Observed.AGENT_SILENT
    assert len(await yard.log("machine.resumed")) == 1
    assert await yard.log("machine.restarted") == []


async def test_a_guest_that_falls_silent_is_told_then_restarted_once(yard: Yard) -> None:
    await yard.make_ready(MR)
    name = (await yard.machine(MR)).name
    yard.provider.silent.add(name)
    for _ in range(5):
        yard.pass_by(seconds=21)
        await yard.go()
    assert len(await yard.log("machine.unhealthy")) == 1
    yard.provider.silent.clear()
    yard.pass_by(seconds=21)
    await yard.go()
    assert len(await yard.log("machine.healthy")) == 1
    yard.provider.silent.add(name)
    for _ in range(12):
        yard.pass_by(seconds=21)
        await yard.core.pool.one_pass(yard.flights)
        await asyncio.sleep(0.1)
        if await yard.log("machine.restarted"):
            break
    yard.provider.silent.clear()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert len(await yard.log("machine.restarted")) == 1


async def test_two_machines_with_one_host_key_fail_the_second_build(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    copied = (await yard.machine(MR)).host_keys
    first = (await yard.machine(MR)).id
    await yard.told(SECOND)
    hold = yard.provider.hold["host_keys"] = asyncio.Event()
    await yard.core.pool.one_pass(yard.flights)
    await asyncio.sleep(0.05)
    second = await yard.machine(SECOND)
    assert second.id != first
    host.machines[second.name].host_keys = copied
    hold.set()
    await yard.land()
    assert await yard.is_in(SECOND, "queued")
    assert "baked in" in str((await yard.log("sandbox.requeued"))[0]["why"])


async def test_who_connected_is_kept_by_source_and_the_first_time_is_an_event(yard: Yard) -> None:
    await yard.make_ready(MR)
    sandbox = await yard.latest(MR)
    assert sandbox.ssh_port
    seen = Connections("192.0.2.9", sandbox.ssh_port, 2, 1, 900, NOON, NOON)
    for _ in range(2):
        yard.fence.counted = (seen, replace(seen, port=9))
        yard.pass_by(seconds=6)
        await yard.go()
    [known] = await yard.visits()
    assert known | {"source": "192.0.2.9", "service": "ssh", "count": 4, "dropped": 2, "bytes": 1800} == known
    assert await yard.log("access.first") == [{"service": "ssh", "source": "192.0.2.9"}]


async def test_a_disk_of_ours_that_is_full_holds_the_code_up_and_ends_nothing(yard: Yard) -> None:
    loop = asyncio.create_task(yard.core.pool.run())
    try:
        yard.code.disk_full = True
        await yard.told(MR)
        await wait_for(lambda: yard.provider.count("authorize_keys") > 0)
        await asyncio.sleep(0.1)
        assert not loop.done()
        yard.code.disk_full = False
        async with asyncio.timeout(60):
            while not await yard.is_in(MR, "ready"):
                await asyncio.sleep(0.01)
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


@pytest.mark.parametrize("call", ["create", "start", "ping", "host_keys", "authorize_keys", "run", "copy_in"])
async def test_the_loop_survives_an_outage_at_any_call_and_finishes_when_it_is_over(yard: Yard, call: str) -> None:
    yard.provider.fails[call] = Unavailable("libvirt is away")
    loop = asyncio.create_task(yard.core.pool.run())
    try:
        await yard.told(MR)
        await wait_for(lambda: yard.provider.count(call) > 0)
        yard.provider.fails.clear()
        async with asyncio.timeout(10):
            while not await yard.is_in(MR, "ready"):
                await asyncio.sleep(0.01)
        assert not loop.done()
        assert len(await yard.read(machines.live)) == 1
        assert await yard.log("sandbox.requeued") == []
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)
