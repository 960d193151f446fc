"""The pool when machines, guests and hosts misbehave in the middle of something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.access.rules import Connections
from ravebot.errors import GuestError, ProviderError, Unavailable
from ravebot.providers.base import MachineSpec, RunResult
from ravebot.sandboxes.model import EndReason, Observed, SandboxState
from ravebot.store import images, sandboxes
from tests.support.edges import Guests, Shelf
from tests.support.records import NOON, B, a_merge_request
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration
MR, SECOND, THIRD = a_merge_request(1), a_merge_request(2), a_merge_request(3)


class Machines(Shelf):
    """Whose `create` takes as long as a test wants, and goes on when nobody waits for it any more, as a thread does."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.resumes = True

    async def create(self, spec: MachineSpec) -> None:
        async def work() -> None:
            await self.gate.wait()
            await Shelf.create(self, spec)

        await asyncio.shield(asyncio.ensure_future(work()))

    async def resume(self, name: str) -> None:
        if self.resumes:
            await super().resume(name)


class Liar(Guests):
    """A guest that answers what a test says, to scripts that hold a mark."""

    def __init__(self, inner: Shelf) -> None:
        super().__init__(inner)
        self.says: dict[str, str] = {}
        self.baked_in: tuple[str, ...] = ()  # a host key that every machine has
        self.keys_come_at = 1  # the so many-th time they are asked for

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunResult:
        honest = await super().run(name, argv, timeout=timeout, environment=environment, stdin=stdin)
        said = next((text for mark, text in self.says.items() if mark in argv[2]), None)
        return honest if said is None else RunResult(0, said)

    async def host_keys(self, name: str) -> tuple[str, ...]:
        keys = await super().host_keys(name)
        if self.count("host_keys") < self.keys_come_at:
            raise GuestError("the guest has no SSH host keys in /etc/ssh")
        return self.baked_in or keys


@pytest.fixture
def shelf() -> Machines:
    return Machines()


@pytest.fixture
async def yard(tmp_path: Path, shelf: Machines) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, Liar(shelf)) as yard:
        yield yard


def liar(yard: Yard) -> Liar:
    assert isinstance(yard.provider, Liar)
    return yard.provider


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
    ("mark", "answer"),
    [('if [ -f "$1/status" ]', "²\nx\n"), ('if [ -f "$1/status" ]', "9" * 5000), ("n=$((n + 1))", "9" * 5000)],
)
async def test_a_guest_whose_answer_is_no_number_harms_only_itself(yard: Yard, mark: str, answer: str) -> None:
    liar(yard).says[mark] = answer
    await yard.told(MR)
    await loop_until(yard, lambda: yard.is_in(MR, "ended" if "status" in mark else "ready"))


async def test_what_set_up_printed_is_not_kept_for_good(yard: Yard) -> None:
    liar(yard).says['if [ -f "$1/status" ]'] = "3\n" + "secret " * 9000
    await yard.told(MR)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    (failed,) = await yard.log("stage.failed")
    assert len(str(failed["tail"])) <= 1500
    yard.pass_by(days=8)
    await yard.write(lambda tx: sandboxes.forget_output(tx, timedelta(days=7)))
    sandbox = await yard.latest(MR)
    assert not any(result.tail for result in await yard.read(lambda tx: sandboxes.results(tx, sandbox)))


async def test_a_guest_that_does_not_take_the_code_is_given_up_in_time(tmp_path: Path, shelf: Machines) -> None:
    async with a_yard(tmp_path, Liar(shelf), sandbox={"timeouts": {"copy": "1s"}}) as yard:
        liar(yard).hold["copy_in"] = asyncio.Event()
        await yard.told(MR)
        await yard.until(lambda: yard.is_in(MR, "ended"))
        assert "did not take the code" in (await yard.latest(MR)).end_detail


async def test_a_sandbox_whose_machine_is_restarted_again_expires_all_the_same(yard: Yard, shelf: Machines) -> None:
    await yard.make_ready(MR)
    shelf.set(await name_of(yard), Observed.OFF)
    liar(yard).hold["copy_in"] = asyncio.Event()
    await passes(yard, 12, seconds=900)
    ending = await yard.latest(MR)
    assert ending.end_reason is EndReason.EXPIRED
    assert await yard.log("sandbox.warned")


# Machines that go away in the middle of something.


async def test_a_machine_that_goes_off_while_the_code_is_copied_is_restarted_and_its_sandbox_goes_on(
    yard: Yard, shelf: Machines
) -> None:
    hold = liar(yard).hold["copy_in"] = asyncio.Event()
    await yard.told(MR)
    await passes(yard, 3)
    shelf.set(await name_of(yard), Observed.OFF)
    liar(yard).fails["copy_in"] = GuestError("guest-file-write failed in the guest: domain is not running")
    hold.set()
    await yard.land()
    liar(yard).fails.clear()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert len(await yard.log("machine.restarted")) == 1
    assert not await yard.log("stage.failed")


async def test_a_machine_that_crashes_while_it_boots_is_given_up_soon(yard: Yard, shelf: Machines) -> None:
    liar(yard).answering = False
    await yard.told(MR)
    await passes(yard, 1, seconds=11, wait=0.2)
    crashed = await yard.machine(MR)
    shelf.set(crashed.name, Observed.CRASHED)
    await passes(yard, 6, seconds=1, wait=0.1)
    assert (await yard.log("sandbox.requeued"))[0]["attempt"] == 2
    assert crashed.name not in shelf.machines


async def test_a_guest_that_came_up_while_nobody_looked_is_taken(yard: Yard) -> None:
    liar(yard).answering = False
    await yard.told(MR)
    await passes(yard, 1)
    first = await yard.machine(MR)
    yard.flights.cancel(first.id)  # as a crash does
    await yard.land()
    liar(yard).answering = True
    yard.pass_by(minutes=6)
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert (await yard.machine(MR)).id == first.id


async def test_machines_that_do_not_come_back_after_the_hosts_reboot_are_lost_and_the_image_is_not_held(
    tmp_path: Path, shelf: Machines
) -> None:
    async with a_yard(tmp_path, Liar(shelf), pool={"max_running": 3}) as yard:
        mrs = (MR, SECOND, THIRD)
        for mr in mrs:
            await yard.make_ready(mr)
        for name in list(shelf.machines):
            liar(yard).silent.add(name)
            shelf.set(name, Observed.OFF)
        await passes(yard, 60, seconds=11, wait=0.05)
        record = await yard.read(lambda tx: images.get(tx, str(yard.config.provider.image)))
        assert (record.failures, record.held) == (0, "")
        assert {(await yard.latest(mr)).end_reason for mr in mrs} == {EndReason.LOST}


async def test_a_machine_that_is_stopped_while_it_is_made_is_there_to_be_removed(yard: Yard, shelf: Machines) -> None:
    shelf.gate.clear()
    await yard.told(MR)
    await passes(yard, 1)
    name = await name_of(yard)
    await yard.told(replace(MR, state="closed"))
    await passes(yard, 3)
    assert not await yard.is_in(MR, "ended")
    shelf.gate.set()
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert name not in shelf.machines


# Silence, and what only looks like it.


async def test_one_missed_answer_before_a_downtime_restarts_nothing(yard: Yard) -> None:
    await yard.make_ready(MR)
    name = await name_of(yard)
    liar(yard).silent.add(name)
    yard.pass_by(seconds=21)
    await yard.go()
    yard.pass_by(minutes=10)
    await yard.go()  # still silent: seen for the first time again
    liar(yard).silent.clear()
    yard.pass_by(seconds=21)
    await yard.go()
    assert not await yard.log("machine.restarted")


async def test_silence_while_libvirt_is_away_restarts_nothing(yard: Yard) -> None:
    await yard.make_ready(MR)
    liar(yard).silent.add(await name_of(yard))
    yard.pass_by(seconds=21)
    await yard.go()
    liar(yard).silent.clear()
    liar(yard).fails["list"] = Unavailable("away")
    for _ in range(10):
        yard.pass_by(seconds=21)
        await yard.go()
    liar(yard).fails.clear()
    await yard.go()
    assert not await yard.log("machine.restarted")


async def test_a_clock_that_is_set_back_does_not_stop_the_looking(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.pass_by(seconds=30)
    await yard.go()
    before = liar(yard).count("ping")
    yard.clock.advance(timedelta(hours=-3))
    await yard.go()
    assert liar(yard).count("ping") > before


async def test_a_machine_that_pauses_again_and_again_is_told_of_once(yard: Yard, shelf: Machines) -> None:
    await yard.make_ready(MR)
    name = await name_of(yard)
    shelf.machines[name] = replace(shelf.machines[name], state=Observed.PAUSED, pause_reason="ioerror")
    shelf.resumes = False
    for _ in range(3):
        await yard.go()
    assert liar(yard).count("resume") == 3
    assert len(await yard.log("machine.disk_full")) == 1
    assert not await yard.log("machine.resumed")


async def test_a_machine_that_somebody_suspended_is_theirs_to_resume(yard: Yard, shelf: Machines) -> None:
    await yard.make_ready(MR)
    name = await name_of(yard)
    shelf.machines[name] = replace(shelf.machines[name], state=Observed.PAUSED, pause_reason="user")
    for _ in range(2):
        await yard.go()
    assert len(await yard.log("machine.suspended")) == 1
    assert not await yard.log("machine.disk_full")
    assert liar(yard).count("resume") == 0


# Builds.


async def test_host_keys_that_are_still_being_made_are_waited_for(yard: Yard) -> None:
    liar(yard).keys_come_at = 3
    await yard.told(MR)
    await loop_until(yard, lambda: yard.is_in(MR, "ready"))
    assert not await yard.log("stage.failed")


async def test_an_image_with_a_baked_in_key_is_held_after_three_machines(yard: Yard) -> None:
    await yard.make_ready(MR)
    copied = (await yard.machine(MR)).host_keys
    await yard.told(SECOND)
    liar(yard).baked_in = copied
    for _ in range(40):
        await passes(yard, 1, seconds=15, wait=0.005)
        await yard.land()
    assert len(await yard.log("build.held")) == 1
    assert len(await yard.log("sandbox.requeued")) == 3


async def test_what_libvirt_refuses_once_holds_no_image(yard: Yard) -> None:
    liar(yard).fails["create"] = ProviderError("libvirt refused: cannot allocate memory")
    await yard.told(MR)
    await yard.go()
    record = await yard.read(lambda tx: images.get(tx, str(yard.config.provider.image)))
    assert (record.failures, record.held) == (1, "")
    liar(yard).fails.clear()
    yard.pass_by(minutes=2)
    await yard.until(lambda: yard.is_in(MR, "ready"))


async def test_retry_ends_the_waiting_of_everybody(yard: Yard) -> None:
    liar(yard).answering = False
    for mr in (MR, SECOND, THIRD):
        await yard.told(mr)
    await passes(yard, 80, seconds=31, wait=0.02)
    assert await yard.log("build.held")
    liar(yard).answering = True
    known, sandbox = await yard.mr(MR), await yard.latest(MR)
    await yard.write(lambda tx: yard.intents.retry(tx, known, sandbox.requested_by))
    for mr in (MR, SECOND, THIRD):
        assert (await yard.latest(mr)).wait_reason == ""


async def test_a_step_that_libvirt_refuses_fails_its_sandbox_and_is_told(yard: Yard) -> None:
    liar(yard).fails["authorize_keys"] = ProviderError("this is too long for the guest agent")
    await yard.told(MR)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert "too long" in (await yard.latest(MR)).end_detail


# Code, ports, disks and what is left of them.


async def test_two_merge_requests_with_the_same_head_do_not_take_each_others_code(yard: Yard) -> None:
    hold = liar(yard).hold["copy_in"] = asyncio.Event()
    await yard.told(MR)
    await yard.told(SECOND)
    await passes(yard, 4)
    assert liar(yard).count("copy_in") == 2
    hold.set()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    await yard.until(lambda: yard.is_in(SECOND, "ready"))


async def test_no_code_stays_on_our_disk(yard: Yard, tmp_path: Path) -> None:
    hold = liar(yard).hold["copy_in"] = asyncio.Event()
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
    hold = liar(yard).hold["copy_in"] = asyncio.Event()
    await passes(yard, 3)
    opening = replace(await yard.latest(MR), stage=None, ports_open=True)
    assert opening.state is SandboxState.STARTING
    await yard.write(lambda tx: sandboxes.save(tx, opening))
    await yard.told(replace(MR, head_sha=B))
    await passes(yard, 2)
    assert yard.fence.ports == set()
    hold.set()


async def test_a_disk_that_is_just_being_made_counts_as_promised(yard: Yard) -> None:
    yard_host = liar(yard).host_usage
    liar(yard).host_usage = replace(yard_host, disk_free_bytes=100 * 1024**2)
    liar(yard).hold["create"] = asyncio.Event()
    await yard.told(MR)
    await passes(yard, 1)
    assert liar(yard).count("create") == 1
    await yard.told(SECOND)
    await passes(yard, 2)
    assert await yard.is_in(SECOND, "queued")
    liar(yard).hold["create"].set()


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
    yard: Yard, shelf: Machines
) -> None:
    shelf.put("rave-test-from-before")
    liar(yard).fails["list"] = Unavailable("libvirt is away")
    await yard.go()
    assert yard.fence.history == []


async def test_one_orphan_that_can_not_be_removed_keeps_no_other(yard: Yard, shelf: Machines) -> None:
    await yard.make_ready(MR)
    shelf.put("rave-test-stray", disk=False)
    shelf.addresses.add("52:54:00:00:00:99")
    liar(yard).fails["delete_address"] = ProviderError("refused")
    for _ in range(5):
        await yard.go()
        yard.pass_by(minutes=6)
    assert "rave-test-stray" not in shelf.machines


async def test_a_flush_is_told_once_in_a_room_however_many_sandboxes_it_has(yard: Yard) -> None:
    await yard.make_ready(MR)
    await yard.make_ready(SECOND)
    await yard.empty_outbox()
    yard.fence.flush()
    yard.core.guard.alarm()
    await yard.go()
    assert (await yard.told_kinds()).count("matrix say") == 1
    assert len(await yard.log("firewall.repaired")) == 2
