"""Who is let in, with what: places, ports and addresses taken in one transaction, whatever is asked for at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravebot.providers.memory import MemoryProvider
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.model import SandboxState
from ravebot.sandboxes.observation import wanted
from ravebot.sandboxes.pool.admission import Admission
from ravebot.store import machines, sandboxes
from tests.support.records import BY_ALICE, World, a_merge_request, a_world

pytestmark = pytest.mark.integration
LIVE = (SandboxState.STARTING, SandboxState.READY, SandboxState.STOPPING)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


def admission(world: World, busy: frozenset[int] = frozenset()) -> Admission:
    async def ports() -> frozenset[int]:
        return busy

    return Admission(
        world.config, world.clock, world.database, MemoryProvider(), world.lifecycle, world.metrics, ports
    )  # fmt: skip


async def let_in(world: World, busy: frozenset[int] = frozenset()) -> bool:
    state = await world.read(wanted)
    return await admission(world, busy).run(state)


async def test_the_first_get_machines_with_names_addresses_and_ports_of_their_own(world: World) -> None:
    for iid in (1, 2, 3):
        await world.queued(a_merge_request(iid))
    assert await let_in(world)
    first, second, third = await world.read(sandboxes.live)
    assert [one.state.value for one in (first, second, third)] == ["starting", "starting", "queued"]
    assert (first.ssh_port, first.web_port, second.ssh_port, second.web_port) == (42200, 43000, 42201, 43001)
    one, other = await world.read(machines.live)
    assert (one.address, other.address) == ("10.80.0.2", "10.80.0.3")
    assert one.name != other.name
    assert (one.memory_bytes, one.disk_bytes) == (64 * 1024**2, 64 * 1024**2)
    assert not await let_in(world)


async def test_a_port_that_the_host_listens_on_itself_is_not_given_out(world: World) -> None:
    await world.queued(a_merge_request())
    await let_in(world, frozenset({42200, 43000, 43001}))
    [sandbox] = await world.read(sandboxes.live)
    assert (sandbox.ssh_port, sandbox.web_port) == (42201, 43002)


async def test_with_every_port_taken_it_waits_and_is_told_why(world: World) -> None:
    await world.queued(a_merge_request())
    assert not await let_in(world, frozenset(range(42200, 42210)))
    [sandbox] = await world.read(sandboxes.live)
    assert (sandbox.state.value, sandbox.wait_reason) == ("queued", "every port or address is taken")
    assert await world.read(machines.live) == ()
    assert await let_in(world)


async def test_with_every_address_taken_it_waits(tmp_path: Path) -> None:
    bridge = {"bridge": {"name": "ravebot0", "subnet": "10.80.0.0/29"}}
    async with a_world(tmp_path, provider=bridge, pool={"max_running": 10}) as world:
        for iid in range(1, 8):
            await world.queued(a_merge_request(iid))
        await let_in(world)
        assert len(await world.read(machines.live)) == 5
        assert (await world.read(sandboxes.live))[5].wait_reason == "every port or address is taken"


async def test_nobody_passes_one_that_waits_for_the_host(world: World) -> None:
    for iid in (1, 2):
        await world.queued(a_merge_request(iid))
    await let_in(world, frozenset(range(42200, 42210)))
    assert [one.wait_reason for one in await world.read(sandboxes.live)] == ["every port or address is taken", ""]


async def test_disk_that_is_promised_in_the_same_pass_counts(tmp_path: Path) -> None:
    async with a_world(tmp_path, sandbox={"disk": "400GiB"}) as world:
        for iid in (1, 2):
            await world.queued(a_merge_request(iid))
        await let_in(world)
        first, second = await world.read(sandboxes.live)
        assert first.state.value == "starting"
        assert second.wait_reason.startswith("the host is short of disk: 240.0 GiB not promised yet")


async def test_two_passes_at_once_let_nobody_in_twice(world: World) -> None:
    for iid in range(1, 6):
        await world.queued(a_merge_request(iid))
    state = await world.read(wanted)
    await asyncio.gather(*(admission(world).run(state) for _ in range(5)))
    assert len(await world.read(machines.live)) == 2


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["ask", "stop", "gone", "pass"]), st.integers(0, 9)), max_size=40))
def test_however_they_come_and_go_no_place_port_or_address_is_given_out_twice(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    async def run(folder: Path) -> None:
        async with a_world(folder) as world:
            for step, number in steps:
                await take(world, step, number)
                live = [one for one in await world.read(sandboxes.live) if one.state in LIVE]
                running = await world.read(machines.live)
                assert len(running) <= world.config.pool.max_running
                ports = [port for one in live for port in (one.ssh_port, one.web_port)]
                assert len(set(ports)) == len(ports)
                assert len({machine.address for machine in running}) == len(running)

    asyncio.run(run(tmp_path_factory.mktemp("world")))


async def take(world: World, step: str, number: int) -> None:
    mr = a_merge_request(number + 1)
    if step == "pass":
        await let_in(world)
        return
    if step == "gone":
        for machine in (await world.read(machines.live))[: number % 3]:
            if machine.state.value == "stopping":
                await world.write(partial(machine_life.gone, life=world.lifecycle, machine=machine))
        return
    await world.told(mr, may_start=False)
    known = await world.mr(mr)
    wish = world.intents.start if step == "ask" else world.intents.stop
    await world.write(lambda tx: wish(tx, known, BY_ALICE))
