"""What carries our tag and has no row goes at its second sighting, and never sooner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.errors import Unavailable
from ravebot.providers.memory import Disk, MemoryHost, MemoryLease, MemoryProvider
from ravebot.sandboxes.pool.sweep import ADOPTED
from ravebot.store import machines
from ravebot.store.database import set_meta
from tests.support.records import a_machine, a_merge_request
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration
MR = a_merge_request()


@pytest.fixture
async def yard(tmp_path: Path, host: MemoryHost) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, MemoryProvider(host)) as yard:
        await yard.write(lambda tx: set_meta(tx, ADOPTED, "yes"))
        yield yard


async def test_a_stranger_is_left_alone_at_its_first_sighting_and_removed_at_the_second(
    yard: Yard, host: MemoryHost
) -> None:
    host.put("rave-test-stray")
    await yard.go()
    for _ in range(5):
        yard.pass_by(seconds=50)
        await yard.go()
    assert "rave-test-stray" in host.machines
    yard.pass_by(seconds=50)
    await yard.go()
    assert host.machines == {}
    assert host.volumes == {}
    assert await yard.log("orphan.removed") == [{"kind": "machine", "name": "rave-test-stray"}]
    assert await yard.read(machines.sightings) == frozenset()


async def test_disks_and_addresses_that_belong_to_nothing_go_the_same_way(yard: Yard, host: MemoryHost) -> None:
    host.volumes["rave-test-lonely.qcow2"] = Disk()
    host.addresses["52:54:00:aa:bb:cc"] = MemoryLease()
    await yard.go()
    assert host.volumes
    assert host.addresses
    yard.pass_by(minutes=5)
    await yard.go()
    assert host.volumes == {}
    assert host.addresses == {}
    assert sorted(str(data["kind"]) for data in await yard.log("orphan.removed")) == ["address", "volume"]


async def test_one_that_was_gone_in_between_is_sighted_anew(yard: Yard, host: MemoryHost) -> None:
    host.put("rave-test-stray")
    await yard.go()
    del host.machines["rave-test-stray"]
    host.volumes.clear()
    yard.pass_by(minutes=5)
    await yard.go()
    host.put("rave-test-stray")
    yard.pass_by(minutes=5)
    await yard.go()
    assert "rave-test-stray" in host.machines


async def test_what_has_a_row_is_never_a_stranger(yard: Yard, host: MemoryHost) -> None:
    machine = a_machine(1)
    await yard.write(lambda tx: machines.insert(tx, machine))
    host.put(machine.name)
    host.addresses[machine.mac] = MemoryLease()
    for _ in range(3):
        listing = await yard.provider.list()
        await yard.core.pool.sweep.run(listing)
        yard.pass_by(minutes=5)
    assert machine.name in host.machines
    assert set(host.addresses) == {machine.mac}


async def test_a_sweep_a_moment_early_does_not_put_it_off_for_a_whole_period(yard: Yard, host: MemoryHost) -> None:
    host.put("rave-test-stray")
    sweep = yard.core.pool.sweep
    yard.pass_by(seconds=1)  # the sighting is noted a little after the sweep began
    await sweep.run(await yard.provider.list())
    yard.clock.advance(timedelta(minutes=5) - timedelta(milliseconds=5))
    await sweep.run(await yard.provider.list())
    assert host.machines == {}


async def test_a_sighting_outlives_the_process_and_a_restart_does_not_make_a_second_one(
    tmp_path: Path, host: MemoryHost
) -> None:
    host.put("rave-test-stray")
    for _ in range(3):
        async with a_yard(tmp_path, MemoryProvider(host)) as yard:
            await yard.write(lambda tx: set_meta(tx, ADOPTED, "yes"))
            await yard.go()
    assert "rave-test-stray" in host.machines
    async with a_yard(tmp_path, MemoryProvider(host)) as yard:
        yard.pass_by(minutes=5)
        await yard.go()
    assert host.machines == {}


async def test_a_removal_that_fails_is_tried_again(yard: Yard, host: MemoryHost) -> None:
    host.put("rave-test-stray")
    await yard.go()
    yard.provider.fails["delete"] = Unavailable("libvirt is away")
    yard.pass_by(minutes=5)
    await yard.go()
    assert "rave-test-stray" in host.machines
    assert await yard.log("orphan.removed") == []
    yard.provider.fails.clear()
    yard.pass_by(minutes=5)
    await yard.core.pool.sweep.run(await yard.provider.list())
    assert host.machines == {}
