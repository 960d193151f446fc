"""The pool when a part it depends on is away, lies low, or says what can't be: nothing is concluded in haste."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ravebot.access.rules import Connections
from ravebot.errors import ProviderError, RavebotError, Unavailable
from ravebot.sandboxes.model import EndReason, Observed
from ravebot.sandboxes.pool.sweep import ADOPTED
from ravebot.store import machines
from ravebot.store.database import set_meta
from tests.integration.provider_contract import plain_image
from tests.support.edges import GIB, Guests, Shelf
from tests.support.records import NOON, a_merge_request
from tests.support.yard import Yard, a_yard, talking_guests

pytestmark = pytest.mark.integration
MR, SECOND = a_merge_request(1), a_merge_request(2)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def yard(tmp_path: Path, shelf: Shelf) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, Guests(shelf)) as yard:
        yield yard


def guests(yard: Yard) -> Guests:
    assert isinstance(yard.provider, Guests)
    return yard.provider


@pytest.mark.parametrize("error", [Unavailable("libvirt is away"), ProviderError("libvirt says no")])
async def test_a_listing_that_failed_makes_nothing_absent(yard: Yard, shelf: Shelf, error: RavebotError) -> None:
    await yard.make_ready(MR)
    shelf.put("rave-test-stray")
    await yard.go()
    guests(yard).fails["list"] = error
    before = (await yard.kinds(), dict(shelf.machines), guests(yard).count("delete"))
    for _ in range(5):
        yard.pass_by(minutes=6)
        await yard.go()
        await yard.write(lambda tx: tx.execute("UPDATE sandboxes SET expires_at = expires_at + 360000000"))
    kinds, shelved, deleted = before
    assert (dict(shelf.machines), guests(yard).count("delete")) == (shelved, deleted)
    assert await yard.kinds() == kinds
    assert await yard.is_in(MR, "ready")


async def test_while_the_provider_is_away_nobody_is_let_in_and_then_goes_on(yard: Yard) -> None:
    guests(yard).fails["open"] = Unavailable("libvirt is away")
    await yard.told(MR)
    await yard.go()
    assert await yard.is_in(MR, "queued")
    guests(yard).fails.clear()
    await yard.until(lambda: yard.is_in(MR, "ready"))


async def test_a_host_that_does_not_say_what_it_has_lets_nobody_in(yard: Yard) -> None:
    guests(yard).fails["host"] = Unavailable("libvirt is away")
    await yard.told(MR)
    await yard.go()
    assert await yard.is_in(MR, "queued")


async def test_no_machine_starts_before_the_firewall_is_verified(yard: Yard, shelf: Shelf) -> None:
    yard.fence.away = True
    await yard.told(MR)
    await yard.go()
    assert guests(yard).count("start") == 0
    assert {machine.state for machine in shelf.machines.values()} <= {Observed.OFF}
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
    calls = [call for call, _ in guests(yard).calls]
    assert calls.index("host_keys") < calls.index("authorize_keys") < calls.index("copy_in")


async def test_an_empty_database_that_meets_its_own_machines_touches_nothing_until_they_are_adopted(
    yard: Yard, shelf: Shelf
) -> None:
    shelf.put("rave-test-from-before")
    await yard.told(MR)
    for _ in range(4):
        await yard.go()
        yard.pass_by(minutes=6)
    assert yard.core.pool.blocked
    assert "rave-test-from-before" in shelf.machines
    assert guests(yard).count("create") == 0
    assert yard.fence.history == []
    await yard.write(lambda tx: set_meta(tx, ADOPTED, "yes"))
    await yard.go()
    assert not yard.core.pool.blocked
    assert "rave-test-from-before" in shelf.machines
    yard.pass_by(minutes=6)
    await yard.go()
    assert "rave-test-from-before" not in shelf.machines


async def test_two_instances_on_one_libvirt_never_touch_each_other(tmp_path: Path) -> None:
    plain_image(tmp_path / "image.qcow2", "16M")
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        plain_image(folder / "image.qcow2", "16M")
    async with (
        talking_guests(one) as first, talking_guests(other) as second,
        a_yard(one, first) as here, a_yard(other, second) as there,
    ):  # fmt: skip
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


async def test_a_crashed_machine_is_restarted_once_and_then_counts_as_lost(yard: Yard, shelf: Shelf) -> None:
    await yard.make_ready(MR)
    name = (await yard.machine(MR)).name
    shelf.set(name, Observed.CRASHED)
    await yard.go()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    shelf.set(name, Observed.CRASHED)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert (await yard.latest(MR)).end_reason is EndReason.LOST
    assert len(await yard.log("machine.restarted")) == 1


async def test_a_full_disk_is_told_once_and_the_machine_goes_on_when_there_is_room(yard: Yard, shelf: Shelf) -> None:
    await yard.make_ready(MR)
    name = (await yard.machine(MR)).name
    full = guests(yard).host_usage
    guests(yard).host_usage = replace(full, disk_free_bytes=0)
    shelf.machines[name] = replace(shelf.machines[name], state=Observed.PAUSED, pause_reason="ioerror")
    for _ in range(2):
        await yard.go()
    assert len(await yard.log("machine.disk_full")) == 1
    assert guests(yard).count("resume") == 0
    guests(yard).host_usage = replace(full, disk_free_bytes=GIB)
    await yard.go()
    yard.pass_by(seconds=21)
    await yard.go()
    assert shelf.machines[name].state is Observed.AGENT_SILENT
    assert len(await yard.log("machine.resumed")) == 1
    assert await yard.log("machine.restarted") == []


async def test_a_guest_that_falls_silent_is_told_then_restarted_once(yard: Yard) -> None:
    await yard.make_ready(MR)
    name = (await yard.machine(MR)).name
    guests(yard).silent.add(name)
    for _ in range(5):
        yard.pass_by(seconds=21)
        await yard.go()
    assert len(await yard.log("machine.unhealthy")) == 1
    guests(yard).silent.clear()
    yard.pass_by(seconds=21)
    await yard.go()
    assert len(await yard.log("machine.healthy")) == 1
    guests(yard).silent.add(name)
    for _ in range(12):
        yard.pass_by(seconds=21)
        await yard.core.pool.one_pass(yard.flights)
        await asyncio.sleep(0.02)
        if await yard.log("machine.restarted"):
            break
    guests(yard).silent.clear()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert len(await yard.log("machine.restarted")) == 1


async def test_two_machines_with_one_host_key_fail_the_second_build(yard: Yard) -> None:
    await yard.make_ready(MR)
    copied = (await yard.machine(MR)).host_keys
    first = (await yard.machine(MR)).id
    await yard.told(SECOND)
    hold = guests(yard).hold["host_keys"] = asyncio.Event()
    await yard.core.pool.one_pass(yard.flights)
    await asyncio.sleep(0.05)
    second = await yard.machine(SECOND)
    assert second.id != first
    guests(yard).keys_of[second.name] = copied
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
        await wait_for(lambda: guests(yard).count("authorize_keys") > 0)
        await asyncio.sleep(0.1)
        assert not loop.done()
        yard.code.disk_full = False
        async with asyncio.timeout(5):
            while not await yard.is_in(MR, "ready"):
                await asyncio.sleep(0.01)
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


@pytest.mark.parametrize("call", ["create", "start", "ping", "host_keys", "authorize_keys", "run", "copy_in"])
async def test_the_loop_survives_an_outage_at_any_call_and_finishes_when_it_is_over(yard: Yard, call: str) -> None:
    guests(yard).fails[call] = Unavailable("libvirt is away")
    loop = asyncio.create_task(yard.core.pool.run())
    try:
        await yard.told(MR)
        await wait_for(lambda: guests(yard).count(call) > 0)
        guests(yard).fails.clear()
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
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)
