"""Sandboxes, machines and merge requests: whole rows come back as they were, and what must be unique is."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravebot.sandboxes.model import (
    Actor,
    EndReason,
    Machine,
    MachineId,
    MachineState,
    MergeRequest,
    MergeRequestRef,
    Person,
    Sandbox,
    SandboxId,
    SandboxState,
    Stage,
    StageResult,
)
from ravebot.store import images, machines, merge_requests, sandboxes
from ravebot.store.images import ImageRecord
from tests.support.records import ALICE, BY_ALICE, NOON, A, B, World, a_machine, a_merge_request, a_world

pytestmark = pytest.mark.integration

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
MOMENT = st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive
COUNT = st.integers(0, 2**62)
SANDBOXES = st.builds(
    Sandbox, id=st.just(SandboxId(1)), mr=st.just(MergeRequestRef(7, 1)), state=st.sampled_from(SandboxState),
    requested_by=st.builds(Actor, TEXT, TEXT), created_at=MOMENT, state_since=MOMENT, sha=TEXT, wait_reason=TEXT,
    not_before=st.none() | MOMENT, notice=TEXT, running_sha=st.none() | TEXT, machine_id=st.sampled_from([None, 1]),
    stage=st.none() | st.sampled_from(Stage), stage_started_at=st.none() | MOMENT, attempt=COUNT, stage_attempt=COUNT,
    ssh_port=st.none() | COUNT, web_port=st.none() | COUNT, web_scheme=st.none() | TEXT, ports_open=st.booleans(),
    ready_at=st.none() | MOMENT, expires_at=st.none() | MOMENT, end_reason=st.none() | st.sampled_from(EndReason),
    end_detail=TEXT, ended_at=st.none() | MOMENT, warned=st.frozensets(COUNT, max_size=4),
    refreshed_at=st.none() | MOMENT,
)  # fmt: skip
MACHINES = st.builds(
    Machine, id=st.just(MachineId(1)), name=TEXT, uuid=TEXT, state=st.sampled_from(MachineState), image=TEXT,
    address=TEXT, mac=TEXT, tap=TEXT, created_at=MOMENT, state_since=MOMENT, sandbox_id=st.none() | COUNT,
    host_keys=st.lists(TEXT, max_size=3).map(tuple), restarts=COUNT,
    booted_at=st.none() | MOMENT, cpu_seconds=st.floats(0, 1e9), memory_peak_bytes=COUNT, memory_bytes=COUNT,
    disk_bytes=COUNT, vcpus=COUNT, cpu_before_restart=st.floats(0, 1e9), disk_peak_bytes=COUNT, received_bytes=COUNT,
    sent_bytes=COUNT, received_before_restart=COUNT, sent_before_restart=COUNT,
    memory_used_bytes=COUNT, disk_used_bytes=COUNT, open_files=COUNT,
    measured_at=st.none() | MOMENT, busy_since=st.none() | MOMENT,
    measured_cpu_seconds=st.floats(0, 1e9), silent_since=st.none() | MOMENT,
    silent_seen_at=st.none() | MOMENT, paused_since=st.none() | MOMENT,
    unhealthy_told=st.booleans(), paused_by_us=st.booleans(),
)  # fmt: skip
PEOPLE = st.builds(Person, st.integers(1, 2**62), TEXT)
MERGE_REQUESTS = st.builds(
    MergeRequest, ref=st.just(MergeRequestRef(7, 1)), project_path=TEXT, title=TEXT, web_url=TEXT, source_branch=TEXT,
    source_project_id=COUNT, head_sha=TEXT, author=PEOPLE, people=st.lists(PEOPLE, max_size=3).map(tuple),
    draft=st.booleans(), state=st.sampled_from(["opened", "closed", "merged", "locked"]), updated_at=st.none() | MOMENT,
    approved_sha=st.none(), note_id=st.none(), target_branch=TEXT, labels=st.lists(TEXT, max_size=3).map(tuple),
)  # fmt: skip


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


def in_a_world(step: Callable[[World], Awaitable[None]]) -> None:
    """Run an async test of one example in a world of its own (hypothesis calls plain functions)."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with a_world(Path(folder)) as world:
                await step(world)

    asyncio.run(run())


def test_the_strategies_fill_every_field() -> None:
    """A field that is added to the model and forgotten here would not be tested."""
    for kind, filled in ((Sandbox, 27), (Machine, 36), (MergeRequest, 16)):
        assert len(dataclasses.fields(kind)) == filled


@settings(max_examples=5, deadline=None)
@given(rows=st.lists(SANDBOXES, min_size=8, max_size=8))
def test_a_sandbox_comes_back_as_it_was_saved(rows: list[Sandbox]) -> None:
    async def step(world: World) -> None:
        await world.started(a_merge_request())
        for row in rows:
            await world.write(partial(sandboxes.save, sandbox=row))
            assert await world.read(lambda tx: sandboxes.get(tx, SandboxId(1))) == row

    in_a_world(step)


@settings(max_examples=5, deadline=None)
@given(rows=st.lists(MACHINES, min_size=8, max_size=8))
def test_a_machine_comes_back_as_it_was_saved(rows: list[Machine]) -> None:
    async def step(world: World) -> None:
        await world.started(a_merge_request())
        for row in rows:
            await world.write(partial(machines.save, machine=row))
            assert await world.read(lambda tx: machines.get(tx, MachineId(1))) == row

    in_a_world(step)


@settings(max_examples=20, deadline=None)
@given(told=MERGE_REQUESTS)
def test_a_merge_request_comes_back_as_it_was_told(told: MergeRequest) -> None:
    async def step(world: World) -> None:
        before, after = await world.write(lambda tx: merge_requests.observe(tx, told))
        assert before is None
        assert after == told
        assert await world.mr(told) == told

    in_a_world(step)


async def test_a_merge_request_has_one_sandbox_that_is_not_on_its_way_out(world: World) -> None:
    mr = a_merge_request()
    first = await world.queued(mr)
    with pytest.raises(sqlite3.IntegrityError):
        await world.write(lambda tx: sandboxes.insert(tx, mr.ref, A, BY_ALICE))
    for state in (SandboxState.STARTING, SandboxState.READY):
        changed = replace(first, state=state)
        await world.write(partial(sandboxes.save, sandbox=changed))
        with pytest.raises(sqlite3.IntegrityError):
            await world.write(lambda tx: sandboxes.insert(tx, mr.ref, A, BY_ALICE))
    await world.write(lambda tx: sandboxes.save(tx, replace(first, state=SandboxState.STOPPING)))
    second = await world.write(lambda tx: sandboxes.insert(tx, mr.ref, B, BY_ALICE))
    assert await world.read(lambda tx: sandboxes.current(tx, mr.ref)) == second
    assert await world.latest(mr) == second
    assert [one.id for one in await world.read(sandboxes.live)] == [first.id, second.id]


@pytest.mark.parametrize("port", ["ssh_port", "web_port"])
async def test_two_live_sandboxes_never_have_one_port(world: World, port: str) -> None:
    taken: dict[str, Any] = {port: 2200}
    first, second = await world.queued(a_merge_request(1)), await world.queued(a_merge_request(2))
    await world.write(lambda tx: sandboxes.save(tx, replace(first, **taken)))
    with pytest.raises(sqlite3.IntegrityError):
        await world.write(lambda tx: sandboxes.save(tx, replace(second, **taken)))
    stopping = replace(first, **taken, state=SandboxState.STOPPING)
    await world.write(lambda tx: sandboxes.save(tx, stopping))
    with pytest.raises(sqlite3.IntegrityError):
        await world.write(lambda tx: sandboxes.save(tx, replace(second, **taken)))
    await world.write(lambda tx: sandboxes.save(tx, replace(stopping, state=SandboxState.ENDED)))
    await world.write(lambda tx: sandboxes.save(tx, replace(second, **taken)))
    assert await world.read(sandboxes.last_use_of_ports) == {2200: second.id}


async def test_names_are_never_used_twice_and_addresses_only_after_the_machine_is_gone(world: World) -> None:
    first = await world.write(lambda tx: machines.insert(tx, a_machine(1)))
    for clash in (a_machine(2, name=first.name), a_machine(2, uuid=first.uuid), a_machine(2, address=first.address),
                  a_machine(2, tap=first.tap)):  # fmt: skip
        with pytest.raises(sqlite3.IntegrityError):
            await world.write(partial(machines.insert, machine=clash))
    await world.write(lambda tx: machines.save(tx, replace(first, state=MachineState.GONE)))
    with pytest.raises(sqlite3.IntegrityError):
        await world.write(lambda tx: machines.insert(tx, a_machine(2, name=first.name)))
    await world.write(lambda tx: machines.insert(tx, a_machine(2, address=first.address)))
    assert [machine.name for machine in await world.read(machines.live)] == [a_machine(2).name]
    assert await world.read(machines.last_address) == first.address
    assert await world.read(machines.any_ever)


async def test_the_same_host_key_on_another_live_machine_is_found(world: World) -> None:
    first = await world.write(lambda tx: machines.insert(tx, a_machine(1, host_keys=("k1", "k2"))))
    second = await world.write(lambda tx: machines.insert(tx, a_machine(2)))
    assert await world.read(lambda tx: machines.with_host_key(tx, "k2", second.id)) == first
    assert await world.read(lambda tx: machines.with_host_key(tx, "k2", first.id)) is None
    assert await world.read(lambda tx: machines.with_host_key(tx, "k", second.id)) is None
    await world.write(lambda tx: machines.save(tx, replace(first, state=MachineState.GONE)))
    assert await world.read(lambda tx: machines.with_host_key(tx, "k2", second.id)) is None


async def test_a_sighting_remembers_when_it_was_first(world: World) -> None:
    async def sight() -> datetime | None:
        return await world.write(lambda tx: machines.sighted(tx, "machine", "x"))

    assert await sight() is None
    world.pass_by(minutes=5)
    assert await sight() == NOON
    assert await world.read(machines.sightings) == {("machine", "x")}
    await world.write(lambda tx: machines.forget_sighting(tx, "machine", "x"))
    assert await sight() is None


async def test_older_news_than_what_is_known_changes_nothing(world: World) -> None:
    mr = a_merge_request()
    await world.write(lambda tx: merge_requests.observe(tx, mr))
    stale = replace(mr, head_sha=B, updated_at=NOON - timedelta(seconds=1))
    assert await world.write(lambda tx: merge_requests.observe(tx, stale)) == (mr, mr)
    assert (await world.mr(mr)).head_sha == A
    same_second = replace(mr, head_sha=B)
    assert (await world.write(lambda tx: merge_requests.observe(tx, same_second)))[1].head_sha == B


async def test_what_we_keep_about_a_merge_request_survives_news_of_it(world: World) -> None:
    mr = a_merge_request()
    await world.write(lambda tx: merge_requests.observe(tx, mr))
    await world.write(lambda tx: merge_requests.approve(tx, mr.ref, A))
    await world.write(lambda tx: merge_requests.set_note(tx, mr.ref, 55))
    await world.write(lambda tx: merge_requests.set_last_comment(tx, mr.ref, 99))
    nameless = replace(mr, title="New", author=Person(ALICE.id, ""), updated_at=None)
    _, after = await world.write(lambda tx: merge_requests.observe(tx, nameless))
    assert after == replace(mr, title="New", approved_sha=A, note_id=55)
    assert await world.mr(mr) == after
    assert await world.read(lambda tx: merge_requests.last_comment(tx, mr.ref)) == 99


async def test_a_merge_request_is_found_by_what_people_write(world: World) -> None:
    await world.write(lambda tx: merge_requests.observe(tx, a_merge_request(5)))
    found = await world.read(lambda tx: merge_requests.find(tx, "group/app", 5))
    assert found
    assert found.full_ref == "group/app!5"
    for path, iid in (("group/app", 6), ("group/ap", 5), ("group/app", 10**30)):
        assert await world.read(partial(merge_requests.find, project_path=path, iid=iid)) is None
    assert await world.read(merge_requests.project_paths) == ("group/app",)


async def test_a_path_belongs_to_the_project_that_was_seen_there_last(world: World) -> None:
    """Project 7 moved away, and project 8 took its path; what was said of 7 under that path is older."""
    later = NOON + timedelta(days=1)
    for mr in (
        a_merge_request(1), a_merge_request(2),
        a_merge_request(1, ref=MergeRequestRef(8, 1), source_project_id=8, title="Another", updated_at=later),
        a_merge_request(3, ref=MergeRequestRef(8, 3), source_project_id=8, updated_at=later),
        a_merge_request(4, updated_at=None),
    ):  # fmt: skip
        await world.write(partial(merge_requests.observe, reported=mr))
    found = {
        iid: await world.read(partial(merge_requests.find, project_path="group/app", iid=iid)) for iid in (1, 2, 3)
    }
    assert {iid: mr and mr.ref for iid, mr in found.items()} == {
        1: MergeRequestRef(8, 1), 2: None, 3: MergeRequestRef(8, 3),
    }  # fmt: skip


async def test_the_results_shown_are_those_of_the_latest_run_of_the_chain(world: World) -> None:
    sandbox = await world.queued(a_merge_request())
    for attempt, stage, ok in ((1, Stage.COPY, True), (1, Stage.SETUP, False), (2, Stage.COPY, True)):
        row = replace(sandbox, stage_attempt=attempt)
        result = StageResult(stage, ok, 1.5, "tail")
        await world.write(partial(sandboxes.add_result, sandbox=row, result=result))
    assert await world.read(lambda tx: sandboxes.results(tx, sandbox)) == (
        StageResult(Stage.COPY, True, 1.5, "tail", world.clock.now()),
    )


async def test_an_image_that_never_failed_has_a_clean_record(world: World) -> None:
    assert await world.read(lambda tx: images.get(tx, "/x")) == ImageRecord("/x", 0, "")
    await world.write(lambda tx: images.save(tx, ImageRecord("/x", 2, "why")))
    assert await world.read(lambda tx: images.get(tx, "/x")) == ImageRecord("/x", 2, "why")
