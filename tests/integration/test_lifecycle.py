"""The steps of a sandbox's life, each with its event and what it changes, over a real database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from ravebot.operations.audit import report as audit
from ravebot.operations.reports import AuditQuery
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.machine_life import BuildFailure
from ravebot.sandboxes.model import Actor, EndReason, Machine, MachineState, SandboxState, Stage, StageResult
from ravebot.sandboxes.pool import trials
from ravebot.store import images, machines, outbox, sandboxes
from ravebot.store.database import Transaction
from ravebot.store.images import ImageRecord
from ravebot.store.signals import POOL
from tests.support.records import BY_ALICE, NOON, ROOM, A, World, a_merge_request, a_world

pytestmark = pytest.mark.integration

MR = a_merge_request()
S = SandboxState


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


async def gone(world: World, machine: Machine) -> None:
    await world.write(lambda tx: machine_life.gone(tx, world.lifecycle, machine))


async def build_fails(world: World, why: str = "it did not answer", *, for_good: bool = False) -> None:
    machine = await world.machine(MR)
    await world.write(
        lambda tx: machine_life.count_failure(tx, world.lifecycle, machine, BuildFailure(why, why, for_good))
    )
    await gone(world, machine)


async def record_of_image(world: World) -> ImageRecord:
    return await world.read(lambda tx: images.get(tx, str(world.config.provider.image)))


async def test_a_whole_life_leaves_one_event_for_each_step(world: World) -> None:
    await world.ready(MR)
    sandbox = await world.latest(MR)
    await world.happens(sandbox, Happened.END_ASKED, by=BY_ALICE)
    await gone(world, await world.machine(MR))
    assert await world.kinds() == [
        "sandbox.queued", "sandbox.starting", "machine.booted", "sandbox.ready", "sandbox.stopping", "sandbox.ended",
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["project_path = 'evil/app'", "iid = 4711"])
async def test_the_audit_finds_the_events_of_a_merge_request_whose_row_was_altered(world: World, change: str) -> None:
    await world.ready(MR)
    with closing(sqlite3.connect(world.database.path)) as connection:
        connection.execute(f"UPDATE merge_requests SET {change}")
        connection.commit()
    report = await audit.read(world.database, AuditQuery(ref=MR.full_ref))
    assert [line.kind for line in report.lines] == await world.kinds()


async def test_a_queued_one_wakes_the_pool_and_holds_nothing(world: World) -> None:
    sandbox = await world.queued(MR)
    assert await world.database.signals.wait(POOL, 1)
    assert (sandbox.state, sandbox.sha, sandbox.machine_id, sandbox.ssh_port) == (S.QUEUED, A, None, None)
    assert sandbox.requested_by == BY_ALICE


async def test_a_place_is_a_machine_and_ports_taken_in_one_transaction(world: World) -> None:
    sandbox = await world.started(MR)
    machine = await world.machine(MR)
    assert (sandbox.state, sandbox.ssh_port, sandbox.web_port) == (S.STARTING, 42200, 43000)
    assert (machine.state, machine.sandbox_id) == (MachineState.BUILDING, sandbox.id)
    assert sandbox.stage is None


async def test_the_chain_begins_when_the_machine_answers(world: World) -> None:
    await world.started(MR)
    world.pass_by(seconds=8)
    machine = await world.machine(MR)
    assert await world.write(lambda tx: machine_life.claim(tx, world.lifecycle, machine))
    sandbox = await world.latest(MR)
    assert (sandbox.stage, sandbox.stage_attempt) == (Stage.HOST_KEYS, 1)
    leased = await world.machine(MR)
    assert (leased.state, leased.booted_at) == (MachineState.LEASED, NOON + timedelta(seconds=8))
    assert (await world.events())[-1].data == {"seconds": 8.0}


async def test_a_machine_that_nobody_wants_any_more_is_taken_down_instead_of_claimed(world: World) -> None:
    sandbox = await world.started(MR)
    machine = await world.machine(MR)
    await world.happens(sandbox, Happened.MACHINE_LOST)
    assert not await world.write(lambda tx: machine_life.claim(tx, world.lifecycle, machine))
    found = await world.read(lambda tx: machines.get(tx, machine.id))
    assert found
    assert found.state is MachineState.STOPPING


async def test_a_claim_that_comes_after_the_stop_changes_nothing(world: World) -> None:
    sandbox = await world.started(MR)
    machine = await world.machine(MR)
    await world.happens(sandbox, Happened.END_ASKED)
    assert not await world.write(lambda tx: machine_life.claim(tx, world.lifecycle, machine))
    assert (await world.machine(MR)).state is MachineState.STOPPING
    assert (await world.latest(MR)).state is S.STOPPING


async def test_lifetime_starts_at_ready(world: World) -> None:
    await world.claimed(MR)
    world.pass_by(minutes=3)
    ready = await world.announced(await world.latest(MR))
    assert ready.ready_at == world.clock.now()
    assert ready.expires_at == world.clock.now() + timedelta(hours=2)
    assert (ready.running_sha, ready.stage, ready.warned) == (A, None, frozenset())
    assert (await world.events())[-1].data == {"seconds": 180.0, "sha": A}


async def test_a_restart_of_the_machine_does_not_start_the_lifetime_anew(world: World) -> None:
    ready = await world.ready(MR)
    world.pass_by(hours=1)
    again = replace(ready, state=S.STARTING, state_since=world.clock.now())
    await world.write(lambda tx: sandboxes.save(tx, again))
    world.pass_by(seconds=9)
    after = await world.announced(again)
    assert (after.ready_at, after.expires_at) == (ready.ready_at, ready.expires_at)
    assert (await world.events())[-1].data["seconds"] == 9.0


async def test_an_update_that_is_through_is_told_as_such_and_clears_the_notice(world: World) -> None:
    ready = await world.ready(MR)
    updating = replace(ready, sha="f" * 40, notice="the last update failed")
    after = await world.announced(updating)
    assert (after.state, after.running_sha, after.notice) == (S.READY, "f" * 40, "")
    assert (await world.kinds())[-1] == "sandbox.updated"


async def test_a_short_lifetime_does_not_begin_with_warnings(tmp_path: Path) -> None:
    async with a_world(tmp_path, pool={"lifetime": "20m"}) as world:
        assert (await world.ready(MR)).warned == frozenset({1800})


async def test_a_queued_one_ends_at_once(world: World) -> None:
    sandbox = await world.queued(MR)
    await world.happens(sandbox, Happened.END_ASKED, reason=EndReason.CLOSED, by=BY_ALICE)
    ended = await world.latest(MR)
    assert (ended.state, ended.end_reason, ended.ended_at) == (S.ENDED, EndReason.CLOSED, NOON)
    assert await world.kinds() == ["sandbox.queued", "sandbox.ended"]


@pytest.mark.parametrize("how_far", ["started", "claimed", "ready"])
async def test_one_with_a_machine_closes_its_ports_first_and_ends_when_the_machine_is_gone(
    world: World, how_far: str
) -> None:
    sandbox = await getattr(world, how_far)(MR)
    await world.happens(sandbox, Happened.END_ASKED, reason=EndReason.MERGED, by=BY_ALICE, why="done")
    stopping = await world.latest(MR)
    machine = await world.machine(MR)
    assert (stopping.state, stopping.ports_open, stopping.stage) == (S.STOPPING, False, None)
    assert machine.state is MachineState.STOPPING
    world.pass_by(seconds=5)
    await gone(world, machine)
    ended = await world.latest(MR)
    assert (ended.state, ended.end_reason, ended.end_detail) == (S.ENDED, EndReason.MERGED, "done")
    assert (await world.machine(MR)).state is MachineState.GONE


@pytest.mark.parametrize("how_far", ["queued", "started", "claimed", "ready"])
async def test_ending_twice_is_ending_once(world: World, how_far: str) -> None:
    sandbox = await getattr(world, how_far)(MR)
    for reason in (EndReason.STOPPED, EndReason.MERGED):
        await world.happens(await world.latest(MR), Happened.END_ASKED, reason=reason, by=BY_ALICE)
    ended = await world.latest(MR)
    assert ended.id == sandbox.id
    assert ended.end_reason is EndReason.STOPPED
    kinds = await world.kinds()
    assert kinds.count("sandbox.stopping") + kinds.count("sandbox.ended") == 1


async def test_the_end_gives_the_account_of_every_machine_that_the_sandbox_had(world: World) -> None:
    await world.started(MR)
    first = await world.machine(MR)
    await world.write(lambda tx: machines.save(tx, replace(first, cpu_seconds=10.0, memory_peak_bytes=500)))
    await build_fails(world)
    await world.begin(await world.latest(MR))
    second = await world.machine(MR)
    assert second.id != first.id
    await world.write(lambda tx: machine_life.claim(tx, world.lifecycle, second))
    await world.announced(await world.latest(MR))
    used = replace(await world.machine(MR), cpu_seconds=5.5, memory_peak_bytes=300)
    await world.write(lambda tx: machines.save(tx, used))
    world.pass_by(hours=2)
    await world.happens(await world.latest(MR), Happened.END_ASKED, reason=EndReason.EXPIRED)
    await gone(world, await world.machine(MR))
    assert (await world.events())[-1].data == {
        "reason": "expired", "detail": "", "lived_seconds": 7200.0, "cpu_seconds": 15.5, "memory_peak_bytes": 500,
        "up_seconds": 7200.0, "queued_seconds": 0.0, "machine_seconds": 7200.0, "disk_peak_bytes": 0,
        "memory_byte_seconds": 7200.0 * second.memory_bytes, "received_bytes": 0, "sent_bytes": 0, "visitor_bytes": 0,
    }  # fmt: skip


async def test_the_end_of_an_old_machine_does_not_end_a_sandbox_that_has_another_by_now(world: World) -> None:
    await world.started(MR)
    old = await world.machine(MR)
    await world.write(lambda tx: machine_life.lost(tx, world.lifecycle, old))
    waiting = await world.latest(MR)
    await world.begin(waiting)
    await world.happens(await world.latest(MR), Happened.END_ASKED)
    await gone(world, old)
    assert (await world.latest(MR)).state is S.STOPPING
    await gone(world, await world.machine(MR))
    assert (await world.latest(MR)).state is S.ENDED


async def test_a_machine_lost_while_starting_is_replaced_at_most_twice(world: World) -> None:
    await world.queued(MR)
    for attempt in (1, 2, 3):
        sandbox = await world.latest(MR)
        assert (sandbox.state, sandbox.attempt) == (S.QUEUED, attempt)
        assert (sandbox.machine_id, sandbox.ssh_port, sandbox.web_port) == (None, None, None)
        await world.begin(sandbox)
        machine = await world.machine(MR)
        await world.write(partial(machine_life.lost, life=world.lifecycle, machine=machine))
        assert (await world.read(lambda tx: machines.live(tx)))[-1].state is MachineState.STOPPING
    lost = await world.latest(MR)
    assert (lost.state, lost.end_reason, lost.end_detail) == (S.STOPPING, EndReason.LOST, "its machine is gone")
    await gone(world, await world.machine(MR))
    assert (await world.latest(MR)).state is S.ENDED
    assert (await world.kinds()).count("sandbox.requeued") == 2


async def test_a_machine_lost_under_a_ready_sandbox_ends_it(world: World) -> None:
    await world.ready(MR)
    machine = await world.machine(MR)
    await world.write(lambda tx: machine_life.lost(tx, world.lifecycle, machine))
    assert (await world.latest(MR)).end_reason is EndReason.LOST
    assert (await world.machine(MR)).state is MachineState.STOPPING


async def test_failed_builds_are_tried_again_after_longer_and_longer(world: World) -> None:
    await world.queued(MR)
    pauses = []
    for _ in range(2):
        await world.begin(await world.latest(MR))
        await build_fails(world)
        sandbox = await world.latest(MR)
        assert sandbox.state is S.QUEUED
        assert sandbox.not_before
        pauses.append((sandbox.not_before - world.clock.now()).total_seconds())
    assert pauses == [10, 30]
    assert (await record_of_image(world)).held == ""


async def test_three_failed_builds_in_a_row_hold_the_image_and_the_room_is_told_once(world: World) -> None:
    await world.queued(MR)
    for _ in range(3):
        await world.begin(await world.latest(MR))
        await build_fails(world, "it did not answer")
    record = await record_of_image(world)
    assert (record.failures, record.held, record.told) == (3, "it did not answer", "it did not answer")
    assert (await world.kinds()).count("build.held") == 1
    assert (await world.told_kinds()).count("matrix say") == 1


async def test_an_image_that_can_not_work_is_held_at_once(world: World) -> None:
    await world.started(MR)
    await build_fails(world, "the image is missing", for_good=True)
    assert (await record_of_image(world)).held == "the image is missing"


async def test_a_hold_is_not_lifted_by_the_next_failure_and_another_cause_is_told(world: World) -> None:
    await world.queued(MR)
    for why, told in (("the image is missing", 1), ("libvirt refused: busy", 2), ("libvirt refused: full", 2)):
        await world.begin(await world.latest(MR))
        await build_fails(world, why, for_good=why == "the image is missing")
        assert (await record_of_image(world)).held == why
        assert (await world.kinds()).count("build.held") == told


async def test_a_machine_that_does_not_come_back_from_its_restart_is_lost_and_no_fault_of_the_images(
    world: World,
) -> None:
    await world.queued(MR)
    await world.begin(await world.latest(MR))
    restarted = replace(await world.machine(MR), restarts=1)
    await world.write(lambda tx: machines.save(tx, restarted))
    await build_fails(world)
    ending = await world.latest(MR)
    assert (ending.state.value, ending.end_reason) == ("ended", EndReason.LOST)
    assert (await record_of_image(world)).failures == 0


async def test_a_hold_is_not_lifted_by_a_build_that_was_under_way_already(world: World) -> None:
    await world.started(MR)
    held = ImageRecord(str(world.config.provider.image), 3, "it did not answer")
    await world.write(lambda tx: images.save(tx, held))
    machine = await world.machine(MR)
    await world.write(lambda tx: machine_life.claim(tx, world.lifecycle, machine))
    assert (await record_of_image(world)).held == "it did not answer"


def test_after_very_many_trials_a_held_image_is_still_tried_every_few_hours() -> None:
    record = ImageRecord("/i", 500, "broken", "broken", built_from="x", tried_at=NOON, trials=10**9)
    assert not trials.may_try(record, "x", [], NOON + timedelta(hours=5, minutes=59))
    assert trials.may_try(record, "x", [], NOON + timedelta(hours=6))


async def test_the_build_failure_of_one_that_is_stopping_does_not_bring_it_back(world: World) -> None:
    sandbox = await world.started(MR)
    await world.happens(sandbox, Happened.END_ASKED)
    await build_fails(world)
    assert (await world.latest(MR)).state is S.ENDED


async def test_why_it_waits_is_told_once_however_the_figures_change(world: World) -> None:
    await world.queued(MR)
    for left in ("1.2", "1.1", "1.0"):
        waiting = await world.latest(MR)
        why = f"the host is short of memory: {left} GiB left, 4.0 GiB needed"
        await world.write(partial(world.lifecycle.wait, sandbox=waiting, reason=why))
    assert (await world.kinds()).count("sandbox.waiting") == 1
    waiting = await world.latest(MR)
    await world.write(lambda tx: world.lifecycle.wait(tx, waiting, "every port or address is taken"))
    assert (await world.kinds()).count("sandbox.waiting") == 2
    await world.begin(await world.latest(MR))
    assert (await world.latest(MR)).wait_reason == ""


@pytest.mark.parametrize("step", ["queue", "stop", "ready", "requeue"])
async def test_a_step_whose_transaction_fails_changes_nothing_and_tells_nobody(world: World, step: str) -> None:
    claimed = await world.claimed(MR)
    before = (await world.latest(MR), await world.machine(MR), await world.kinds(), await world.outbox())
    life = world.lifecycle

    def fails(tx: Transaction) -> None:
        if step == "queue":
            life.happened(tx, replace(claimed, state=S.ENDED), Happened.START_ASKED, sha="x")
        elif step == "stop":
            life.happened(tx, claimed, Happened.END_ASKED)
        elif step == "ready":
            life.happened(tx, replace(claimed, stage=Stage.ANNOUNCE), Happened.MACHINE_READY)
        else:
            life.happened(tx, claimed, Happened.MACHINE_LOST, why="why")
        raise ValueError("on purpose")

    with pytest.raises(Exception, match=r"on purpose|UNIQUE"):
        await world.write(fails)
    assert (await world.latest(MR), await world.machine(MR), await world.kinds(), await world.outbox()) == before


async def cards_of(world: World) -> list[tuple[int, str]]:
    rows = await world.read(lambda tx: tx.all("SELECT sandbox_id, event_id FROM cards"))
    return [(row["sandbox_id"], row["event_id"]) for row in rows]


@pytest.mark.parametrize(("reason", "goes_on"), [(EndReason.FAILED, True), (EndReason.EXPIRED, False)])
async def test_a_retry_after_a_failure_goes_on_in_the_old_card(world: World, reason: EndReason, goes_on: bool) -> None:
    failed = replace(await world.ready(MR), state=S.ENDED, end_reason=reason, machine_id=None)
    await world.write(lambda tx: sandboxes.save(tx, failed))
    await world.write(lambda tx: outbox.set_card(tx, failed.id, ROOM, outbox.Card("!dev", "$card")))
    assert (await world.write(lambda tx: world.intents.retry(tx, MR, BY_ALICE))).accepted
    again = await world.latest(MR)
    assert again.id != failed.id
    assert await cards_of(world) == [(again.id if goes_on else failed.id, "$card")]


async def test_what_an_answer_says_in_a_room_is_not_said_again_in_the_thread_there(tmp_path: Path) -> None:
    rooms = [{"room": "#a:x", "projects": ["group/app"]}, {"room": "#b:x", "projects": ["group/app"]}]
    async with a_world(tmp_path, matrix={"rooms": rooms}) as world:
        sandbox = await world.ready(MR)
        await world.empty_outbox()
        by = Actor("matrix", "@alice:x", place="#a:x")
        await world.write(lambda tx: world.intents.extend(tx, MR, by))
        lines = [(lane, json.loads(body)["text"]) for _, lane, kind, body in await world.outbox() if kind == "history"]
        assert lines == [("#b:x", "extended by 1 h by @alice:x (matrix), until 15:00 UTC")]
        assert (await world.events())[-1].actor == Actor("matrix", "@alice:x")
        assert sandbox.expires_at


async def test_warnings_that_an_extension_or_the_end_made_untrue_are_edited(world: World) -> None:
    sandbox = replace(await world.ready(MR), warned=frozenset({1800, 600}), expires_at=NOON + timedelta(minutes=5))
    await world.write(lambda tx: sandboxes.save(tx, sandbox))
    await world.empty_outbox()
    until = NOON + timedelta(minutes=20)
    await world.write(lambda tx: world.lifecycle.extend(tx, sandbox, until, timedelta(minutes=15), BY_ALICE))
    assert await over(world) == [600, 1800]  # also the one that will not be given again
    await world.empty_outbox()
    await world.happens(await world.latest(MR), Happened.END_ASKED, by=BY_ALICE)
    assert await over(world) == []
    await gone(world, await world.machine(MR))
    assert await over(world) == [1800]


async def over(world: World) -> list[int]:
    """The warnings that are to be edited, by their thresholds."""
    return [json.loads(body)["threshold"] for _, _, kind, body in await world.outbox() if kind == "over"]


@pytest.mark.parametrize("mentions", ["edit", "message", "none"])
async def test_the_first_ready_and_a_failure_call_the_owner_and_a_restart_does_not(
    tmp_path: Path, mentions: str
) -> None:
    async with a_world(tmp_path, matrix={"mentions": mentions}) as world:
        ready = await world.ready(MR)
        called = (await world.told_kinds()).count("matrix call")
        assert called == (1 if mentions == "edit" else 0)
        lines = [json.loads(body)["calls"] for _, _, kind, body in await world.outbox() if kind == "history"]
        assert lines == [True]
        await world.empty_outbox()
        world.pass_by(minutes=1)
        await world.announced(replace(ready, state=S.STARTING, stage=Stage.ANNOUNCE))
        assert "matrix call" not in await world.told_kinds()
        await world.empty_outbox()
        broken = replace(await world.latest(MR), state=S.STARTING, stage=Stage.SETUP)
        await world.happens(broken, Happened.STAGE_FAILED, why="`./.rave/setup` ended with code 3")
        assert (await world.told_kinds()).count("matrix call") == called


async def test_the_output_of_a_failed_run_is_still_there_after_a_retry(world: World) -> None:
    def printed(ok: bool, tail: str, attempt: int) -> StageResult:
        return StageResult(Stage.SETUP, ok, float(attempt), tail)

    first = replace(await world.ready(MR), state=S.ENDED, end_reason=EndReason.FAILED, machine_id=None)
    results = [printed(False, "older", 1), printed(False, "boom", 2)]
    for number, result in enumerate(results):
        run = replace(first, stage_attempt=number)
        await world.write(partial(sandboxes.add_result, sandbox=run, result=result))
    await world.write(lambda tx: sandboxes.save(tx, first))
    found = await world.read(lambda tx: sandboxes.printed(tx, MR.ref))
    assert [[(one.ok, one.tail) for one in run.results] for run in found] == [[(False, "boom")]]
    await world.write(lambda tx: world.intents.retry(tx, MR, BY_ALICE))
    again, fine = await world.latest(MR), printed(True, "fine", 3)
    await world.write(partial(sandboxes.add_result, sandbox=again, result=fine))
    await world.write(partial(sandboxes.add_result, sandbox=again, result=printed(True, "", 4)))
    found = await world.read(lambda tx: sandboxes.printed(tx, MR.ref))
    assert [[(one.ok, one.tail) for one in run.results] for run in found] == [[(True, "fine")], [(False, "boom")]]
    assert await world.read(lambda tx: sandboxes.printed(tx, a_merge_request(2).ref)) == ()
