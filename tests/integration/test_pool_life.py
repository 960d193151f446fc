"""The pool over machines in memory: lives from queue to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from ravebot.errors import GuestTimeout, ImageError, ProviderError, Unavailable
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.model import EndReason, MachineState, Observed, Person, SandboxState
from ravebot.sandboxes.pool import trials
from ravebot.store import machines, sandboxes
from tests.support.records import ALICE, ROOM, B, a_merge_request, make_config
from tests.support.yard import HOW_A_JOB_GOES, Yard, a_yard, job_ended

pytestmark = pytest.mark.integration
GIB = 1024**3
OURS = "ssh-ed25519 AAAAcontrol"

MR, SECOND, THIRD = a_merge_request(1), a_merge_request(2), a_merge_request(3)


@pytest.fixture
async def yard(tmp_path: Path, host: MemoryHost) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, MemoryProvider(host), own_keys=(OURS,)) as yard:
        yield yard


async def test_a_merge_request_becomes_a_ready_sandbox_with_keys_ours_too_ports_and_results(
    yard: Yard, host: MemoryHost
) -> None:
    yard.code.keys = {ALICE.id: ("ssh-ed25519 AAAAalice",)}
    await yard.make_ready(MR)
    sandbox, machine = await yard.latest(MR), await yard.machine(MR)
    assert machine.state is MachineState.LEASED
    assert list(host.machines) == [machine.name]
    assert host.machines[machine.name].authorized == {"agent": ("ssh-ed25519 AAAAalice", OURS)}
    assert yard.fence.ports == {sandbox.ssh_port, sandbox.web_port}
    assert sandbox.running_sha == MR.head_sha
    assert [data["stage"] for data in await yard.log("stage.done")] == [
        "host keys", "authorize", "copy", "setup", "open ports",
    ]  # fmt: skip
    view = await yard.read(lambda tx: yard.views.one(tx, sandbox.id))
    assert view
    assert view.access
    assert view.access.host_keys == machine.host_keys != ()
    assert [result.tail for result in view.stages if result.stage.value == "setup"] == ["its output\n"]


async def test_a_stopped_one_leaves_nothing_behind(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    assert (await yard.told(replace(MR, state="merged"))) == "ending: merged"
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert host.machines == {}
    assert host.volumes == {}
    assert yard.fence.rules.guests == frozenset()
    assert yard.fence.ports == set()
    assert await yard.read(machines.live) == ()
    [account] = await yard.log("sandbox.ended")
    assert account["cpu_seconds"] == 1.5
    assert not await yard.log("machine.forced")


async def test_ports_are_closed_before_the_machine_is_gone_and_given_out_again_only_after(yard: Yard) -> None:
    await yard.make_ready(MR)
    ready = await yard.latest(MR)
    await yard.told(replace(MR, state="merged"))
    yard.provider.fails["delete"] = Unavailable("libvirt is away")
    await yard.told(SECOND)
    for _ in range(4):
        await yard.go()
        yard.pass_by(seconds=1)
    other = await yard.latest(SECOND)
    assert yard.fence.ports.isdisjoint({ready.ssh_port, ready.web_port})
    assert other.ssh_port not in (None, ready.ssh_port)
    assert (await yard.latest(MR)).ssh_port == ready.ssh_port


async def test_a_guest_that_ignores_the_shutdown_is_switched_off_after_the_grace_and_it_is_told(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.provider.ignores.add("shutdown")
    await yard.told(replace(MR, state="merged"))
    for _ in range(3):
        await yard.go()
        yard.pass_by(seconds=5)
    assert yard.provider.count("destroy") == 0
    yard.pass_by(seconds=30)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert (await yard.latest(MR)).end_detail == "switched off after the grace"
    assert len(await yard.log("machine.forced")) == 1


async def test_the_third_waits_for_its_place_and_gets_it_when_one_is_free(yard: Yard, host: MemoryHost) -> None:
    for mr in (MR, SECOND, THIRD):
        await yard.told(mr)
    await yard.until(lambda: yard.is_in(SECOND, "ready"))
    assert await yard.is_in(MR, "ready")
    assert await yard.is_in(THIRD, "queued")
    assert len(host.machines) == 2
    waiting = await yard.latest(THIRD)
    view = await yard.read(lambda tx: yard.views.one(tx, waiting.id))
    assert view
    assert view.queue_position == 1
    assert view.queue_wait
    assert timedelta(hours=1, minutes=59) < view.queue_wait <= timedelta(hours=2)
    await yard.told(replace(MR, state="closed"))
    await yard.until(lambda: yard.is_in(THIRD, "ready"))
    assert len(host.machines) == 2


async def test_new_code_is_copied_in_and_set_up_again_on_the_same_machine(yard: Yard) -> None:
    await yard.make_ready(MR)
    before, machine = await yard.latest(MR), await yard.machine(MR)
    await yard.told(replace(MR, head_sha=B))
    await yard.until(lambda: bool(yard.provider.count("copy_in") == 2))
    after = await yard.latest(MR)
    assert (after.state, after.running_sha, after.machine_id) == (before.state, B, machine.id)
    assert (after.ssh_port, after.expires_at) == (before.ssh_port, before.expires_at)
    assert yard.code.fetched == [MR.head_sha, B]
    assert (await yard.log("sandbox.updated"))[0]["sha"] == B


async def test_a_set_up_that_fails_ends_a_starting_one_with_its_output(yard: Yard, host: MemoryHost) -> None:
    yard.provider.answers[HOW_A_JOB_GOES] = job_ended(3)
    await yard.told(MR)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    ended = await yard.latest(MR)
    assert ended.end_reason is EndReason.FAILED
    assert ended.end_detail == "set-up failed: `./.rave/setup` ended with code 3"
    assert (await yard.log("stage.failed"))[0]["tail"] == "its output"
    assert host.machines == {}


async def test_a_set_up_that_fails_after_new_code_is_told_and_the_sandbox_kept(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.provider.answers[HOW_A_JOB_GOES] = job_ended(3)
    await yard.told(replace(MR, head_sha=B))
    await yard.until(lambda: bool(yard.provider.count("copy_in") == 2))
    kept = await yard.latest(MR)
    assert (kept.state.value, kept.stage, kept.ports_open) == ("ready", None, True)
    assert kept.running_sha == B  # what is in the machine, whole or not
    assert kept.notice == (
        "commit bbbbbbbb is in the machine, but its set-up failed: `./.rave/setup` ended with code 3"
    )
    assert len(await yard.log("sandbox.update_failed")) == 1
    await yard.go()
    assert yard.provider.count("copy_in") == 2


async def test_a_stage_that_takes_too_long_fails(yard: Yard) -> None:
    yard.provider.fails["copy_in"] = GuestTimeout("the guest did not answer in time")
    await yard.told(MR)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert (await yard.latest(MR)).end_detail == "copy of the code failed: the guest did not answer in time"


async def test_while_gitlab_is_away_the_stage_waits_and_goes_on(yard: Yard) -> None:
    yard.code.error = Unavailable("GitLab is away")
    await yard.told(MR)
    for _ in range(3):
        await yard.go()
    assert (await yard.latest(MR)).stage == "authorize"
    yard.code.error = None
    await asyncio.sleep(1.1)  # how long a machine is left alone after a failure, by the loop's own clock
    await yard.until(lambda: yard.is_in(MR, "ready"))


async def test_an_image_that_can_not_work_is_held_told_once_and_tried_again_on_retry(
    yard: Yard, capsys: pytest.CaptureFixture[str]
) -> None:
    yard.provider.fails["create"] = ImageError("the image is missing")
    await yard.told(MR)
    for _ in range(5):
        await yard.go()
        yard.pass_by(seconds=60)
    waiting = await yard.latest(MR)
    assert waiting.state is SandboxState.QUEUED
    assert yard.provider.count("create") == 1
    logged = [line for line in capsys.readouterr().out.splitlines() if "build failed" in line]
    assert len(logged) == 1
    assert "the image is missing" in logged[0]
    assert "say" in logged[0]
    assert "retry" in logged[0]
    assert len(await yard.log("build.held")) == 1
    assert (await yard.told_kinds()).count("matrix say") == 1
    yard.provider.fails.clear()
    known = await yard.mr(MR)
    await yard.write(lambda tx: yard.intents.retry(tx, known, waiting.requested_by))
    await yard.until(lambda: yard.is_in(MR, "ready"))


@pytest.mark.parametrize(
    ("operations", "told"), [("#ops:example.org", "operators were told"), (None, "operators find the cause in its log")]
)
async def test_only_operators_are_told_where_an_unusable_image_lies(
    tmp_path: Path, operations: str | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_yard(tmp_path, matrix={"operations_room": operations}) as yard:
        yard.provider.fails["create"] = ImageError("the image /srv/secret/base.qcow2 can't be read")
        await yard.told(MR)
        await yard.go()
        said = [(lane, body) for target, lane, kind, body in await yard.outbox() if kind == "say"]
        developers = [body for lane, body in said if lane == ROOM]
        assert len(developers) == 1
        assert told in developers[0]
        assert "/srv/secret" not in developers[0] + (await yard.latest(MR)).wait_reason
        assert ["/srv/secret/base.qcow2" in body for lane, body in said if lane == operations] == [True] * bool(
            operations
        )
        assert "/srv/secret/base.qcow2" in capsys.readouterr().out


async def held_and_mended(yard: Yard) -> None:
    """The image of MR and SECOND was missing, and is there again."""
    yard.provider.fails["create"] = ImageError("the image is missing")
    for mr in (MR, SECOND):
        await yard.told(mr)
        for _ in range(3):
            await yard.go()
            yard.pass_by(seconds=60)
    assert yard.provider.count("create") == 1
    yard.config.provider.image.write_text("an image, at last")
    yard.provider.fails.clear()


async def test_a_held_image_is_tried_again_when_its_file_changed(yard: Yard) -> None:
    await held_and_mended(yard)
    for mr in (MR, SECOND):
        await yard.until(partial(yard.is_in, mr, "ready"))
    assert len(await yard.log("build.resumed")) == 1


async def a_trial_is_under_way(yard: Yard) -> None:
    """A machine for MR boots from the mended image."""
    await held_and_mended(yard)
    yard.provider.answering = False
    await yard.core.pool.one_pass(yard.flights)
    await asyncio.sleep(0.05)
    assert await yard.is_in(MR, "starting")
    yard.provider.answering = True


async def test_a_trial_whose_sandbox_is_stopped_says_nothing_of_the_image_and_the_next_follows(yard: Yard) -> None:
    await a_trial_is_under_way(yard)
    await yard.told(replace(MR, state="merged"))
    for mr, state in ((SECOND, "ready"), (MR, "ended")):
        await yard.until(partial(yard.is_in, mr, state))


async def test_a_trial_whose_sandbox_is_rebuilt_is_followed_by_one_for_the_new_one(yard: Yard) -> None:
    await a_trial_is_under_way(yard)
    known, sandbox = await yard.mr(MR), await yard.latest(MR)
    await yard.write(lambda tx: yard.intents.rebuild(tx, known, sandbox.requested_by))
    await yard.until(partial(yard.is_in, MR, "ready"))


async def test_a_clock_that_is_set_back_during_a_trial_changes_nothing(yard: Yard) -> None:
    await a_trial_is_under_way(yard)
    yard.pass_by(hours=-3)
    for mr in (MR, SECOND):
        await yard.until(partial(yard.is_in, mr, "ready"))


async def test_an_image_that_changes_all_the_time_is_not_tried_all_the_time(yard: Yard) -> None:
    yard.provider.fails["create"] = ImageError("the image is missing")
    await yard.told(MR)
    for second in range(120):
        yard.config.provider.image.write_text("x" * second)
        await yard.go()
        yard.pass_by(seconds=1)
    assert yard.provider.count("create") <= 1 + 120 / 20


def test_a_file_that_is_being_written_is_looked_at_later(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.provider.image.write_text("half of it")
    written = datetime.fromtimestamp(config.provider.image.stat().st_mtime, UTC)
    assert trials.fingerprint(config, written + timedelta(seconds=9)) == ""
    whole = trials.fingerprint(config, written + timedelta(seconds=11))
    assert whole
    assert trials.fingerprint(config, written - timedelta(days=1)) == whole, "the clock was set back"
    config.provider.image.unlink()
    assert trials.fingerprint(config, written) not in ("", whole)


async def test_a_build_that_fails_while_its_sandbox_is_stopped_is_not_counted(yard: Yard) -> None:
    release = yard.provider.hold["create"] = asyncio.Event()
    yard.provider.fails["create"] = ImageError("the image is missing")
    await yard.told(MR)
    await yard.core.pool.one_pass(yard.flights)
    await asyncio.sleep(0.02)
    await yard.told(replace(MR, state="merged"))
    release.set()
    await yard.land()
    await yard.until(partial(yard.is_in, MR, "ended"))
    await yard.told(SECOND)
    await yard.until(lambda: yard.log("build.held"))
    assert len(await yard.log("build.held")) == 1, "the first that is not stopped is told of"


@pytest.mark.parametrize("call", ["create", "start"])
async def test_rooms_and_notes_name_no_file_of_the_host(tmp_path: Path, call: str) -> None:
    async with a_yard(tmp_path, matrix={"operations_room": "#ops:example.org"}) as yard:
        yard.provider.fails[call] = ProviderError(
            "libvirt refused: Cannot access backing file '/srv/secret/base.qcow2' of storage file"
            " '/var/lib/ravebot/disks/rave-x.qcow2' (as uid:64055, gid:108): Permission denied"
        )
        await yard.told(MR)
        for _ in range(12):
            await yard.go()
            yard.pass_by(seconds=60)
        rooms = "".join(body for _, lane, _, body in await yard.outbox() if lane == ROOM)
        reason = (await yard.latest(MR)).wait_reason
        assert "'…' (as uid:64055, gid:108): Permission denied" in reason
        assert "/srv" not in rooms + reason
        assert "Permission denied" in rooms
        assert "/srv/secret" in "".join(body for _, lane, _, body in await yard.outbox() if lane == "#ops:example.org")


async def test_a_held_image_is_tried_with_one_machine_after_pauses_that_grow(yard: Yard) -> None:
    yard.provider.fails["create"] = ProviderError("libvirt refused: it is broken")
    for mr in (MR, SECOND):
        await yard.told(mr)
    tried: list[int] = []
    for minute in range(200):
        before = yard.provider.count("create")
        await yard.go()
        tried += [minute] * (yard.provider.count("create") - before)
        yard.pass_by(seconds=60)
    *_, held, first, second, third, fourth = tried
    assert [later - earlier for earlier, later in pairwise((held, first, second, third, fourth))] == [
        pytest.approx(pause, abs=2) for pause in (10, 20, 40, 80)
    ]
    assert len(await yard.log("build.held")) == 1
    yard.provider.fails.clear()
    yard.pass_by(hours=3)
    await yard.until(lambda: yard.is_in(SECOND, "ready"))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert len(await yard.log("build.resumed")) == 1


async def test_a_guest_that_never_answers_is_given_up_three_times_and_then_held(yard: Yard, host: MemoryHost) -> None:
    yard.provider.answering = False
    yard.provider.printed = "one\ntwo https://u:p@ssw0rd-long@host\n\x1b[1mKernel panic\x1b[0m - not syncing\r\n\n"
    await yard.told(MR)
    while not await yard.log("build.held"):
        if not yard.flights.any():
            await yard.core.pool.one_pass(yard.flights)
        yard.pass_by(minutes=5)  # again and again: a busy machine may begin to wait only after the clock was moved
        await asyncio.sleep(0.02)
    await yard.land()
    await yard.until(lambda: not host.machines)
    assert len(await yard.log("sandbox.requeued")) == 3
    [held] = await yard.log("build.held")
    assert str(held["why"]).endswith(": its console ends with “Kernel panic - not syncing”")
    assert "it printed “one / two https://[masked]@host / Kernel panic - not syncing”" in str(held["for_operators"])
    assert str(held["for_operators"]).endswith("'s console in memory")
    assert yard.provider.count("create") == 3
    assert await yard.is_in(MR, "queued")
    assert host.machines == {}


@pytest.mark.parametrize("printed", ["", "Kernel panic: {}"])
async def test_trials_that_fail_for_the_same_cause_on_other_machines_are_told_of_once(yard: Yard, printed: str) -> None:
    """Each machine's console lies elsewhere, and says something else."""
    yard.provider.answering = False
    await yard.told(MR)
    for number in range(40):
        yard.provider.printed = printed.format(number)
        await yard.core.pool.one_pass(yard.flights)
        yard.pass_by(minutes=5)
        while yard.flights.any():
            await asyncio.sleep(0.02)
            yard.pass_by(minutes=5)
    assert yard.provider.count("create") > 4
    assert len(await yard.log("build.held")) == 1


async def test_a_host_that_is_short_of_memory_keeps_it_waiting_for_a_reason_that_is_told_once(yard: Yard) -> None:
    plenty = yard.provider.host_usage
    await yard.told(MR)
    for left in (100, 90, 80):
        yard.provider.host_usage = replace(plenty, memory_available_bytes=left * 1024**2)
        await yard.go()
    assert await yard.is_in(MR, "queued")
    assert len(await yard.log("sandbox.waiting")) == 1
    yard.provider.host_usage = replace(plenty, disk_free_bytes=GIB, disk_promised_bytes=GIB)
    await yard.go()
    assert "short of disk" in (await yard.latest(MR)).wait_reason
    yard.provider.host_usage = plenty
    await yard.until(lambda: yard.is_in(MR, "ready"))


async def test_it_warns_twice_and_ends_at_its_time(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.pass_by(hours=1, minutes=31)
    await yard.go()
    yard.pass_by(minutes=19)
    await yard.go()
    await yard.go()
    assert len(await yard.log("sandbox.warned")) == 2
    yard.pass_by(minutes=11)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert (await yard.latest(MR)).end_reason is EndReason.EXPIRED


async def test_after_a_day_of_downtime_it_is_warned_and_has_ten_minutes(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.pass_by(days=1)
    await yard.go()
    sandbox = await yard.latest(MR)
    assert sandbox.state.value == "ready"
    assert sandbox.expires_at == yard.clock.now() + timedelta(minutes=10)
    assert len(await yard.log("sandbox.warned")) == 1


async def test_a_machine_that_somebody_deleted_ends_its_sandbox_as_lost(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    machine = await yard.machine(MR)
    host.undefine(machine.name)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert (await yard.latest(MR)).end_reason is EndReason.LOST
    assert await yard.read(machines.live) == ()


async def test_a_machine_that_went_off_is_restarted_once_and_its_chain_runs_again(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    machine = await yard.machine(MR)
    host.set(machine.name, Observed.OFF)
    await yard.go()
    assert len(await yard.log("machine.restarted")) == 1
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert (await yard.machine(MR)).name == machine.name
    assert yard.provider.count("copy_in") == 2
    host.set(machine.name, Observed.OFF)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert (await yard.latest(MR)).end_reason is EndReason.LOST


async def test_a_machine_lost_while_starting_is_replaced(yard: Yard, host: MemoryHost) -> None:
    yard.provider.hold["copy_in"] = asyncio.Event()
    await yard.told(MR)
    for _ in range(3):
        await yard.core.pool.one_pass(yard.flights)
        await asyncio.sleep(0.1)
    first = await yard.machine(MR)
    assert (await yard.latest(MR)).stage == "copy"
    yard.flights.cancel(first.id)
    host.undefine(first.name)
    yard.provider.hold.clear()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert (await yard.machine(MR)).name != first.name
    assert (await yard.latest(MR)).attempt == 2


async def test_new_people_are_let_in_at_the_next_look(yard: Yard, host: MemoryHost) -> None:
    yard.code.keys = {ALICE.id: ("ssh-ed25519 AAAAalice",), 7: ("ssh-ed25519 AAAAcarol",)}
    await yard.make_ready(MR)
    await yard.told(replace(MR, people=(Person(7, "carol"),)))
    yard.pass_by(seconds=20)
    await yard.go()
    let_in = host.machines[(await yard.machine(MR)).name].authorized["agent"]
    assert let_in == ("ssh-ed25519 AAAAalice", "ssh-ed25519 AAAAcarol", OURS)


async def test_stopping_does_not_wait_for_a_guest_that_never_comes_back(yard: Yard, host: MemoryHost) -> None:
    yard.provider.hold["copy_in"] = asyncio.Event()
    await yard.told(MR)
    for _ in range(3):
        await yard.core.pool.one_pass(yard.flights)
        await asyncio.sleep(0.1)
    assert (await yard.latest(MR)).stage == "copy"
    await yard.told(replace(MR, state="closed"))
    await yard.core.pool.one_pass(yard.flights)
    await asyncio.sleep(0.05)
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert host.machines == {}


async def test_new_code_while_the_old_is_copied_in_gives_the_old_up(yard: Yard) -> None:
    hold = yard.provider.hold["copy_in"] = asyncio.Event()
    await yard.told(MR)
    for _ in range(3):
        await yard.core.pool.one_pass(yard.flights)
        await asyncio.sleep(0.1)
    await yard.told(replace(MR, head_sha=B))
    await yard.core.pool.one_pass(yard.flights)
    await asyncio.sleep(0.05)
    hold.set()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert (await yard.latest(MR)).running_sha == B
    assert len(await yard.read(sandboxes.live)) == 1


async def rewritten(yard: Yard) -> bool:
    """Whether card and note are to be rewritten since this was asked last."""
    kinds = await yard.told_kinds()
    await yard.empty_outbox()
    return "matrix card" in kinds or "matrix call" in kinds


async def test_a_start_is_shown_every_ten_seconds_and_only_while_it_gets_on(yard: Yard, host: MemoryHost) -> None:
    hold = yard.provider.hold["create"] = asyncio.Event()
    await yard.told(MR)
    await rewritten(yard)
    for seconds, shown in ((1, False), (5, False), (5, True), (5, False), (60, False)):
        yard.pass_by(seconds=seconds)
        await yard.core.pool.one_pass(yard.flights)
        assert await rewritten(yard) is shown, f"after {seconds} s"
    hold.set()
    await yard.land()


async def test_new_code_is_shown_only_when_a_step_takes_ten_seconds(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.pass_by(minutes=5)
    await yard.go()  # a check, which tells that nobody has a key
    await rewritten(yard)
    yard.provider.hold["copy_in"] = asyncio.Event()
    await yard.told(replace(MR, head_sha=B))
    for seconds, shown in ((1, False), (5, False), (5, True), (30, False)):
        yard.pass_by(seconds=seconds)
        await yard.core.pool.one_pass(yard.flights)
        assert await rewritten(yard) is shown, f"after {seconds} s"
