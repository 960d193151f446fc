"""Cleanup beside the running bot and without it: what is meant is gone, what is not is untouched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.errors import ProviderError, Unavailable
from ravebot.operations.cleanup import Cleaner, Wish
from ravebot.providers.base import Usage
from ravebot.providers.memory import Disk, MemoryHost, MemoryLease, MemoryProvider
from ravebot.sandboxes.model import Actor, EndReason, MergeRequest
from ravebot.store import machines
from ravebot.store.signals import POOL
from ravebot.terminal import Output, show_cleanup
from tests.support.records import a_merge_request
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration
MR, SECOND = a_merge_request(1), a_merge_request(2)
OPS = Actor("shell", "root")
ALL = Wish(None, everything=True, force=True, adopt=False, actor=OPS)
GRACE = timedelta(seconds=1)


@pytest.fixture
async def yard(tmp_path: Path, host: MemoryHost) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, MemoryProvider(host)) as yard:
        yield yard


def cleaner(yard: Yard) -> Cleaner:
    return Cleaner(yard.database, yard.core, yard.provider)


@asynccontextmanager
async def running(yard: Yard) -> AsyncIterator[None]:
    loop = asyncio.create_task(yard.core.pool.run())
    try:
        yield
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


async def test_everything_goes_with_the_bot_down_strangers_too(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    await yard.told(SECOND)
    name = (await yard.machine(MR)).name
    host.put("rave-test-stray")
    host.volumes["rave-test-lonely.qcow2"] = Disk()
    said: list[str] = []
    report = await cleaner(yard).alone(ALL, GRACE, said.append)
    assert sorted(report.ended) == ["group/app!1", "group/app!2"]
    assert sorted(report.machines) == sorted([name, "rave-test-stray"])
    assert report.failed == ()
    assert (host.machines, host.volumes) == ({}, {})
    assert yard.fence.rules.guests == frozenset()
    assert [(await yard.latest(mr)).state.value for mr in (MR, SECOND)] == ["ended", "ended"]
    assert (await yard.latest(MR)).end_reason is EndReason.STOPPED
    assert any(name in line for line in said)


async def test_a_dhcp_entry_that_was_removed_is_called_one(
    yard: Yard, host: MemoryHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.volumes["rave-test-lonely.qcow2"] = Disk()
    host.addresses["52:54:00:aa:bb:cc"] = MemoryLease()
    report = await cleaner(yard).alone(ALL, GRACE, lambda _line: None)
    capsys.readouterr()
    show_cleanup(Output(), report)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "disk removed\trave-test-lonely.qcow2",
        "DHCP entry removed\t52:54:00:aa:bb:cc",
    ]
    assert dict(asdict(report)).get("addresses") == ("52:54:00:aa:bb:cc",)


async def test_what_it_used_while_the_bot_was_down_is_accounted_for_too(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.provider.used = Usage(cpu_seconds=99.0, memory_peak_bytes=77 * 1024**2, disk_bytes=0)
    await cleaner(yard).alone(ALL, GRACE, lambda _line: None)
    [ended] = await yard.log("sandbox.ended")
    assert (ended["cpu_seconds"], ended["memory_peak_bytes"]) == (99.0, 77 * 1024**2)


async def test_a_machine_that_was_never_made_is_cleaned_away_without_a_complaint(
    tmp_path: Path, host: MemoryHost
) -> None:
    async with a_yard(tmp_path, MemoryProvider(host)) as yard:
        await yard.started(MR)
        assert host.machines == {}
        report = await cleaner(yard).alone(replace(ALL, force=False), GRACE, lambda _line: None)
        assert report.failed == ()
        assert await yard.is_in(MR, "ended")
        assert await yard.read(machines.live) == ()


async def test_only_what_is_old_enough_goes(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    yard.pass_by(hours=1)
    await yard.make_ready(SECOND)
    host.put("rave-test-stray")
    wish = Wish(timedelta(minutes=50), everything=False, force=True, adopt=False, actor=OPS)
    report = await cleaner(yard).alone(wish, GRACE, lambda _line: None)
    assert report.ended == ("group/app!1",)
    assert set(host.machines) == {(await yard.machine(SECOND)).name, "rave-test-stray"}
    assert await yard.is_in(SECOND, "ready")


async def test_without_force_guests_are_asked_first_and_switched_off_after_the_grace(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.provider.ignores.add("shutdown")
    yard.provider.calls.clear()
    await cleaner(yard).alone(replace(ALL, force=False), timedelta(milliseconds=300), lambda _line: None)
    calls = [call for call, _ in yard.provider.calls if call in ("shutdown", "destroy", "delete")]
    assert calls == ["shutdown", "destroy", "delete"]


async def test_with_force_guests_are_not_asked(yard: Yard) -> None:
    await yard.make_ready(MR)
    await cleaner(yard).alone(ALL, GRACE, lambda _line: None)
    assert yard.provider.count("shutdown") == 0


async def test_what_could_not_be_removed_is_reported_and_gone_the_next_time(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    yard.provider.fails["delete"] = Unavailable("libvirt is away")
    report = await cleaner(yard).alone(ALL, GRACE, lambda _line: None)
    assert report.machines == ()
    assert "libvirt is away" in report.failed[0]
    assert await yard.is_in(MR, "stopping")
    yard.provider.fails.clear()
    again = await cleaner(yard).alone(ALL, GRACE, lambda _line: None)
    assert again.failed == ()
    assert host.machines == {}
    assert await yard.is_in(MR, "ended")


async def test_an_empty_database_adopts_what_it_is_told_to_and_removes_it(yard: Yard, host: MemoryHost) -> None:
    host.put("rave-test-from-before")
    wish = Wish(None, everything=False, force=False, adopt=True, actor=OPS)
    await yard.go()
    assert yard.core.pool.blocked
    report = await cleaner(yard).beside_bot(wish, GRACE)
    assert report.machines == ("rave-test-from-before",)
    await yard.go()
    assert not yard.core.pool.blocked


@pytest.mark.parametrize("call", ["list", "delete"])
async def test_an_adopting_that_failed_is_not_taken_for_a_persons_word(yard: Yard, host: MemoryHost, call: str) -> None:
    host.put("rave-test-from-before")
    wish = Wish(None, everything=False, force=False, adopt=True, actor=OPS)
    yard.provider.fails[call] = Unavailable("libvirt is away")
    with suppress(Unavailable):
        assert (await cleaner(yard).beside_bot(wish, GRACE)).failed
    yard.provider.fails.clear()
    await yard.go()
    yard.pass_by(hours=1)
    await yard.go()
    assert yard.core.pool.blocked
    assert set(host.machines) == {"rave-test-from-before"}
    assert (await cleaner(yard).beside_bot(wish, GRACE)).machines == ("rave-test-from-before",)
    await yard.go()
    assert not yard.core.pool.blocked


async def test_beside_the_bot_the_pool_takes_the_machines_down(yard: Yard, host: MemoryHost) -> None:
    async with running(yard):
        await yard.told(MR)
        async with asyncio.timeout(60):
            while not await yard.is_in(MR, "ready"):
                await asyncio.sleep(0.01)
        name = (await yard.machine(MR)).name
        report = await cleaner(yard).beside_bot(ALL, timedelta(seconds=5))
        assert (report.ended, report.machines, report.kept) == (("group/app!1",), (name,), ())
        assert host.machines == {}
        assert await yard.is_in(MR, "ended")


async def test_all_beside_the_bot_takes_away_what_machines_share_until_one_is_built_again(yard: Yard) -> None:
    guests = yard.provider

    async def ready(mr: MergeRequest) -> None:
        await yard.told(mr)
        async with asyncio.timeout(60):
            while not await yard.is_in(mr, "ready"):
                await asyncio.sleep(0.01)

    async with running(yard):
        await ready(MR)
        assert yard.fence.there
        report = await cleaner(yard).beside_bot(ALL, timedelta(seconds=5))
        assert report.failed == ()
        assert (guests.count("remove"), yard.fence.there) == (1, False)
        passes = guests.count("list")
        async with asyncio.timeout(60):
            while guests.count("list") < passes + 3:
                yard.core.guard.alarm()
                yard.database.signals.wake(POOL)
                await asyncio.sleep(0.01)
        assert not yard.fence.there, "a pass that wants nothing made it again"
        assert yard.core.guard.problem == ""
        await ready(SECOND)
        assert yard.fence.there
        assert len(yard.fence.ports) == 2


async def test_beside_the_bot_what_machines_share_stays_while_one_is_left(yard: Yard) -> None:
    await yard.make_ready(MR)
    report = await cleaner(yard).beside_bot(ALL, timedelta(0))
    assert (yard.provider.count("remove"), yard.fence.there) == (0, True)
    assert len(report.kept) == 2
    assert "run it again" in report.kept[1]


async def test_all_waits_for_a_machine_too_that_its_sandbox_has_left(yard: Yard) -> None:
    guests = yard.provider
    guests.fails |= {"start": ProviderError("no"), "delete": Unavailable("libvirt is away")}
    await yard.told(MR)
    await yard.until(lambda: guests.count("delete"))
    [machine] = await yard.read(machines.live)
    assert (await yard.latest(MR)).machine_id is None
    report = await cleaner(yard).beside_bot(ALL, timedelta(0))
    assert (report.failed, report.kept[:1]) == ((), (f"{machine.name} is still being taken down",))
    guests.fails.clear()
    assert (await cleaner(yard).alone(ALL, GRACE, lambda _line: None)).machines == (machine.name,)
    assert not yard.fence.there


async def test_beside_the_bot_what_takes_too_long_is_said_to_be_under_way(yard: Yard) -> None:
    await yard.make_ready(MR)
    name = (await yard.machine(MR)).name
    report = await cleaner(yard).beside_bot(replace(ALL, everything=False, older_than=timedelta(0)), timedelta(0))
    assert report.kept == (f"{name} is still being taken down",)


async def test_beside_the_bot_a_provider_that_is_away_does_not_lose_the_wish(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.provider.fails["destroy"] = Unavailable("libvirt is away")
    wish = replace(ALL, everything=False, older_than=timedelta(0))
    report = await cleaner(yard).beside_bot(wish, timedelta(0))
    assert report.ended == ("group/app!1",)
    assert any("libvirt is away" in line for line in report.failed)
    assert await yard.is_in(MR, "stopping")
