"""The pool when machines, guests and hosts misbehave in the middle of something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.access.rules import Connections
from ravebot.errors import GuestError, ProviderError, Unavailable
from ravebot.providers.base import MachineSpec, RunResult
from ravebot.providers.memory import MemoryHost, MemoryLease, MemoryProvider
from ravebot.sandboxes.model import EndReason, Observed, SandboxState
from ravebot.store import images, sandboxes
from tests.support.records import NOON, B, a_merge_request
from tests.support.yard import HOW_A_JOB_GOES, WHICH_ARE_THERE, Yard, a_yard, job_ended

pytestmark = pytest.mark.integration
MR, SECOND, THIRD = a_merge_request(1), a_merge_request(2), a_merge_request(3)


class Threaded(MemoryProvider):
    """Whose `create` goes on when nobody waits for it any more, as a call in a thread does."""

    async def create(self, spec: MachineSpec) -> None:
        await asyncio.shield(asyncio.ensure_future(super().create(spec)))


@pytest.fixture
async def yard(tmp_path: Path, host: MemoryHost) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, MemoryProvider(host)) as yard:
        yield yard


async def passes(yard: Yard, count: int, seconds: float = 0, wait: float = 0.03) -> None:
    """Passes that wait for nothing that flies."""
    for _ in range(count):
        await yard.core.pool.one_pass(yard.flights)
        await asyncio.sleep(wait)
        yard.pass_by(seconds=seconds)


async def loop_until(yard: Yard, condition: Callable[[], Coroutine[Any, Any, bool]], seconds: float = 5) -> None:
    """The pool's own loop, which must live through it."""
    loop = asyncio.create_task(yard.core.pool.run())
    try:
        async with asyncio.timeout(seconds):
            while not await condition():
                assert not loop.done(), loop
                await asyncio.sleep(0.01)
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


async def name_of(yard: Yard) -> str:
    return (await yard.machine(MR)).name


# Guests that lie.


@pytest.mark.parametrize(
    ("asked", "answer"),
    [(HOW_A_JOB_GOES, "²\nx\n"), (HOW_A_JOB_GOES, "9" * 5000), (WHICH_ARE_THERE, "9" * 5000)],
)
async def test_a_guest_whose_answer_is_no_number_harms_only_itself(yard: Yard, asked: str, answer: str) -> None:
    yard.provider.answers[asked] = RunResult(0, answer)
    await yard.told(MR)
    await loop_until(yard, lambda: yard.is_in(MR, "ended" if asked == HOW_A_JOB_GOES else "ready"))


async def test_what_set_up_printed_is_not_kept_for_good(yard: Yard) -> None:
    yard.provider.answers[HOW_A_JOB_GOES] = job_ended(3, "secret " * 9000)
    await yard.told(MR)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    (failed,) = await yard.log("stage.failed")
    assert len(str(failed["tail"])) <= 1500
    yard.pass_by(days=8)
    await yard.write(lambda tx: sandboxes.forget_output(tx, timedelta(days=7)))
    sandbox = await yard.latest(MR)
    assert not any(result.tail for result in await yard.read(lambda tx: sandboxes.results(tx, sandbox)))


async def test_a_guest_that_does_not_take_the_code_is_given_up_in_time(tmp_path: Path, host: MemoryHost) -> None:
    async with a_yard(tmp_path, MemoryProvider(host), sandbox={"timeouts": {"copy": "1s"}}) as yard:
        yard.provider.hold["copy_in"] = asyncio.Event()
        await yard.told(MR)
        await yard.until(lambda: yard.is_in(MR, "ended"))
        assert "did not take the code" in (await yard.latest(MR)).end_detail


async def test_a_sandbox_whose_machine_is_restarted_again_expires_all_the_same(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    host.set(await name_of(yard), Observed.OFF)
    yard.provider.hold["copy_in"] = asyncio.Event()
    await passes(yard, 3)  # it is restarted, and its code is copied again
    await passes(yard, 12, seconds=900)
    ending = await yard.latest(MR)
    assert ending.end_reason is EndReason.EXPIRED
    assert await yard.log("sandbox.warned")


# Machines that go away in the middle of something.


async def test_a_machine_that_goes_off_while_the_code_is_copied_is_restarted_and_its_sandbox_goes_on(
    yard: Yard, host: MemoryHost
) -> None:
    hold = yard.provider.hold["copy_in"] = asyncio.Event()
    await yard.told(MR)
    await passes(yard, 3)
    host.set(await name_of(yard), Observed.OFF)
    yard.provider.fails["copy_in"] = GuestError("guest-file-write failed in the guest: domain is not running")
    hold.set()
    await yard.land()
    yard.provider.fails.clear()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert len(await yard.log("machine.restarted")) == 1
    assert not await yard.log("stage.failed")


async def test_a_machine_that_crashes_while_it_boots_is_given_up_soon(yard: Yard, host: MemoryHost) -> None:
    yard.provider.answering = False
    await yard.told(MR)
    await passes(yard, 1, seconds=11, wait=0.2)
    crashed = await yard.machine(MR)
    host.set(crashed.name, Observed.CRASHED)
    await passes(yard, 6, seconds=1, wait=0.1)
    assert (await yard.log("sandbox.requeued"))[0]["attempt"] == 2
    assert crashed.name not in host.machines


async def test_a_guest_that_came_up_while_nobody_looked_is_taken(yard: Yard) -> None:
    yard.provider.answering = False
    await yard.told(MR)
    await passes(yard, 1)
    first = await yard.machine(MR)
    yard.flights.cancel(first.id)  # as a crash does
    await yard.land()
    yard.provider.answering = True
    yard.pass_by(minutes=6)
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert (await yard.machine(MR)).id == first.id


async def test_machines_that_do_not_come_back_after_the_hosts_reboot_are_lost_and_the_image_is_not_held(
    tmp_path: Path, host: MemoryHost
) -> None:
    async with a_yard(tmp_path, MemoryProvider(host), pool={"max_running": 3}) as yard:
        mrs = (MR, SECOND, THIRD)
        for mr in mrs:
            await yard.make_ready(mr)
        for name in list(host.machines):
            yard.provider.silent.add(name)
            host.set(name, Observed.OFF)
        await passes(yard, 60, seconds=11, wait=0.05)
        record = await yard.read(lambda tx: images.get(tx, str(yard.config.provider.image)))
        assert (record.failures, record.held) == (0, "")
        assert {(await yard.latest(mr)).end_reason for mr in mrs} == {EndReason.LOST}


async def test_a_machine_that_is_stopped_while_it_is_made_is_there_to_be_removed(
    tmp_path: Path, host: MemoryHost
) -> None:
    async with a_yard(tmp_path, Threaded(host)) as yard:
        made = yard.provider.hold["create"] = asyncio.Event()
        await yard.told(MR)
        await passes(yard, 1)
        name = await name_of(yard)
        await yard.told(replace(MR, state="closed"))
        await passes(yard, 3)
        assert not await yard.is_in(MR, "ended")
        made.set()
        await yard.until(lambda: yard.is_in(MR, "ended"))
        assert name not in host.machines


# Silence, and what only looks like it.


async def test_one_missed_answer_before_a_downtime_restarts_nothing(yard: Yard) -> None:
    await yard.make_ready(MR)
    name = await name_of(yard)
    yard.provider.silent.add(name)
    yard.pass_by(seconds=21)
    await yard.go()
    yard.pass_by(minutes=10)
    await yard.go()  # still silent: seen for the first time again
    yard.provider.silent.clear()
    yard.pass_by(seconds=21)
    await yard.go()
    assert not await yard.log("machine.restarted")


async def test_silence_while_libvirt_is_away_restarts_nothing(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.provider.silent.add(await name_of(yard))
    yard.pass_by(seconds=21)
    await yard.go()
    yard.provider.silent.clear()
    yard.provider.fails["list"] = Unavailable("away")
    for _ in range(10):
        yard.pass_by(seconds=21)
        await yard.go()
    yard.provider.fails.clear()
    await yard.go()
    assert not await yard.log("machine.restarted")


async def test_a_clock_that_is_set_back_does_not_stop_the_looking(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.pass_by(seconds=30)
    await yard.go()
    before = yard.provider.count("ping")
    yard.clock.advance(timedelta(hours=-3))
    await yard.go()
    assert yard.provider.count("ping") > before


async def test_a_machine_that_pauses_again_and_again_is_told_of_once(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    name = await name_of(yard)
    host.set(name, Observed.PAUSED, "ioerror")
    yard.provider.ignores.add("resume")
    for _ in range(3):
        await yard.go()
    assert yard.provider.count("resume") == 3
    assert len(await yard.log("machine.disk_full")) == 1
    assert not await yard.log("machine.resumed")


async def test_a_machine_that_somebody_suspended_is_theirs_to_resume(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    name = await name_of(yard)
    host.set(name, Observed.PAUSED, "user")
    for _ in range(2):
        await yard.go()
    assert len(await yard.log("machine.suspended")) == 1
    assert not await yard.log("machine.disk_full")
    assert yard.provider.count("resume") == 0


# Builds.


async def test_host_keys_that_are_still_being_made_are_waited_for(yard: Yard) -> None:
    yard.provider.fails["host_keys"] = [GuestError("the guest has no SSH host keys in /etc/ssh")] * 2
    await yard.told(MR)
    await loop_until(yard, lambda: yard.is_in(MR, "ready"))
    assert not await yard.log("stage.failed")


async def test_an_image_with_a_baked_in_key_is_held_after_three_machines(
    yard: Yard, capsys: pytest.CaptureFixture[str]
) -> None:
    await yard.make_ready(MR)
    copied = (await yard.machine(MR)).host_keys
    await yard.told(SECOND)
    yard.provider.baked_in_keys = copied
    for _ in range(40):
        await passes(yard, 1, seconds=15, wait=0.005)
        await yard.land()
    assert len(await yard.log("build.held")) == 1
    assert len(await yard.log("sandbox.requeued")) == 3
    logged = [line for line in capsys.readouterr().out.splitlines() if "build failed" in line]
    assert len(logged) == 3
    assert "no machines are built from the image" in logged[-1]


async def test_what_libvirt_refuses_once_holds_no_image(yard: Yard) -> None:
    yard.provider.fails["create"] = ProviderError("libvirt refused: cannot allocate memory")
    await yard.told(MR)
    await yard.go()
    record = await yard.read(lambda tx: images.get(tx, str(yard.config.provider.image)))
    assert (record.failures, record.held) == (1, "")
    yard.provider.fails.clear()
    yard.pass_by(minutes=2)
    await yard.until(lambda: yard.is_in(MR, "ready"))


async def test_retry_ends_the_waiting_of_everybody(yard: Yard) -> None:
    yard.provider.answering = False
    for mr in (MR, SECOND, THIRD):
        await yard.told(mr)
    await passes(yard, 80, seconds=31, wait=0.02)
    assert await yard.log("build.held")
    yard.provider.answering = True
    known, sandbox = await yard.mr(MR), await yard.latest(MR)
    await yard.write(lambda tx: yard.intents.retry(tx, known, sandbox.requested_by))
    for mr in (MR, SECOND, THIRD):
        assert (await yard.latest(mr)).wait_reason == ""


async def test_a_step_that_libvirt_refuses_fails_its_sandbox_and_is_told(yard: Yard) -> None:
    yard.provider.fails["authorize_keys"] = ProviderError("this is too long for the guest agent")
    await yard.told(MR)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert "too long" in (await yard.latest(MR)).end_detail


# Code, ports, disks and what is left of them.


async def test_two_merge_requests_with_the_same_head_do_not_take_each_others_code(yard: Yard) -> None:
    hold = yard.provider.hold["copy_in"] = asyncio.Event()
    await yard.told(MR)
    await yard.told(SECOND)
    await passes(yard, 4)
    assert yard.provider.count("copy_in") == 2
    hold.set()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    await yard.until(lambda: yard.is_in(SECOND, "ready"))


async def test_no_code_stays_on_our_disk(yard: Yard, tmp_path: Path) -> None:
    hold = yard.provider.hold["copy_in"] = asyncio.Event()
    await yard.told(MR)
    await passes(yard, 3)
    for sha in "bcdef":
        await yard.told(replace(MR, head_sha=sha * 40))
        await passes(yard, 3)
    assert len(list((tmp_path / "sources").iterdir())) == 1
    await yard.told(replace(MR, head_sha="f" * 40, state="closed"))
    hold.set()
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert list((tmp_path / "sources").iterdir()) == []


async def test_new_code_before_the_announcement_closes_the_ports_again(yard: Yard) -> None:
    await yard.told(MR)
    hold = yard.provider.hold["copy_in"] = asyncio.Event()
    await passes(yard, 3)
    opening = replace(await yard.latest(MR), stage=None, ports_open=True)
    assert opening.state is SandboxState.STARTING
    await yard.write(lambda tx: sandboxes.save(tx, opening))
    await yard.told(replace(MR, head_sha=B))
    await passes(yard, 2)
    assert yard.fence.ports == set()
    hold.set()


async def test_a_disk_that_is_just_being_made_counts_as_promised(yard: Yard) -> None:
    yard_host = yard.provider.host_usage
    yard.provider.host_usage = replace(yard_host, disk_free_bytes=100 * 1024**2)
    yard.provider.hold["create"] = asyncio.Event()
    await yard.told(MR)
    await passes(yard, 1)
    assert yard.provider.count("create") == 1
    await yard.told(SECOND)
    await passes(yard, 2)
    assert await yard.is_in(SECOND, "queued")
    yard.provider.hold["create"].set()


async def test_who_connected_last_is_in_the_audit_too(yard: Yard) -> None:
    await yard.make_ready(MR)
    sandbox = await yard.latest(MR)
    assert sandbox.ssh_port
    yard.pass_by(seconds=6)
    await yard.go()
    yard.fence.counted = (Connections("192.0.2.9", sandbox.ssh_port, 2, 0, 900, NOON, NOON),)
    await yard.told(replace(MR, state="merged"))
    await yard.until(lambda: yard.is_in(MR, "ended"))
    (seen,) = await yard.visits()
    assert (seen["source"], seen["count"]) == ("192.0.2.9", 2)


async def test_an_empty_database_takes_no_rules_away_while_libvirt_can_not_be_asked(
    yard: Yard, host: MemoryHost
) -> None:
    host.put("rave-test-from-before")
    yard.provider.fails["list"] = Unavailable("libvirt is away")
    await yard.go()
    assert yard.fence.history == []


async def test_one_orphan_that_can_not_be_removed_keeps_no_other(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    host.put("rave-test-stray", disk=False)
    host.addresses["52:54:00:00:00:99"] = MemoryLease()
    yard.provider.fails["delete_address"] = ProviderError("refused")
    for _ in range(5):
        await yard.go()
        yard.pass_by(minutes=6)
    assert "rave-test-stray" not in host.machines


async def test_a_flush_is_told_once_in_a_room_however_many_sandboxes_it_has(yard: Yard) -> None:
    await yard.make_ready(MR)
    await yard.make_ready(SECOND)
    await yard.empty_outbox()
    yard.fence.flush()
    yard.core.guard.alarm()
    await yard.go()
    assert (await yard.told_kinds()).count("matrix say") == 1
    assert len(await yard.log("firewall.repaired")) == 2
