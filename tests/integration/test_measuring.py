"""What is measured of machines, the queue, requests and ravebot's own loop; a scrape asks nobody."""

from __future__ import annotations

import asyncio
import time
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ravebot.access.rules import Attempts, Connections, Service
from ravebot.errors import Unavailable
from ravebot.operations.measuring import Measuring
from ravebot.providers.base import Usage
from ravebot.store import figures, inbox
from ravebot.store.targets import TARGETS
from tests.support.agent_yard import an_agent, an_agent_yard
from tests.support.prometheus import program
from tests.support.records import a_merge_request
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration
MR, SECOND, THIRD = a_merge_request(1), a_merge_request(2), a_merge_request(3)
GIB = 1024**3


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path / "state") as yard:
        yield yard


def measuring(yard: Yard) -> Measuring:
    return Measuring(yard.config, yard.clock, yard.database, yard.provider, yard.metrics, TARGETS)


def shown(yard: Yard) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(yard.metrics.exposition().decode())
    return {(one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples}


@asynccontextmanager
async def at_work(loop: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(loop)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def measured(yard: Yard, seen: Callable[[dict[tuple[str, ...], float]], bool]) -> dict[tuple[str, ...], float]:
    """The metrics as soon as they are as wanted."""
    async with at_work(measuring(yard).run()), asyncio.timeout(60):
        while not seen(shown(yard)):
            await asyncio.sleep(0.01)
    return shown(yard)


async def test_a_machine_a_project_the_queue_and_ports_are_measured(yard: Yard) -> None:
    yard.provider.used = Usage(100.0, GIB, 3 * GIB, received_bytes=700, sent_bytes=300)
    for mr in (MR, SECOND):
        await yard.make_ready(mr)
    await yard.told(THIRD)
    await yard.until(lambda: yard.provider.count("usage") >= 4)
    yard.pass_by(minutes=10)
    found = await measured(yard, lambda found: ("ravebot_database_bytes", "database") in found)  # measured last but one
    assert found["ravebot_queue_oldest_seconds",] > 600
    name = (await yard.machine(MR)).name
    labels = sorted(("group/app", "group/app!1", name))
    assert found["ravebot_machine_cpu_seconds_total", *labels] == 100
    assert found["ravebot_machine_sent_bytes_total", *labels] == 300
    assert found["ravebot_machine_memory_limit_bytes", *labels] == yard.config.sandbox.memory
    assert found["ravebot_project_sandboxes", "group/app"] == 2
    assert found["ravebot_project_disk_bytes", "group/app"] == 6 * GIB
    assert found["ravebot_project_cpu_seconds_total", "group/app"] == 200  # each counts once, however often it is seen
    assert found["ravebot_project_received_bytes_total", "group/app"] == 1400
    assert found["ravebot_project_sandboxes_ready_total", "group/app"] == 2
    assert (found["ravebot_ports_used", "ssh"], found["ravebot_ports_used", "web"]) == (2, 2)
    assert found["ravebot_queue_wait_seconds_count",] == 2
    assert found["ravebot_database_bytes", "database"] > 0


async def test_prometheus_own_checker_finds_no_fault(yard: Yard) -> None:
    await yard.make_ready(MR)
    await measured(yard, lambda found: found.get(("ravebot_project_sandboxes", "group/app")) == 1)
    checker = await asyncio.create_subprocess_exec(
        program("promtool"), "check", "metrics", stdin=PIPE, stdout=PIPE, stderr=STDOUT
    )
    said, _ = await checker.communicate(yard.metrics.exposition())
    assert (checker.returncode, said.decode()) == (0, "")


async def test_who_was_connected_last_is_known_with_the_machine(yard: Yard) -> None:
    for mr in (MR, SECOND):
        await yard.make_ready(mr)
    sandbox = await yard.latest(MR)
    assert sandbox.ssh_port
    for address in ("192.0.2.1", "192.0.2.2"):
        yard.pass_by(minutes=2)
        yard.fence.counted = (Connections(address, sandbox.ssh_port, 1, 0, 9, yard.clock.now(), yard.clock.now()),)
        await yard.core.guard.audit()
    last = yard.clock.now()
    assert [one.visited_at for one in await yard.database.read(figures.running)] == [last, None]


async def test_requests_that_wait_are_counted_by_source(yard: Yard) -> None:
    await yard.write(lambda tx: inbox.add(tx, source="matrix", key="k", lane="room", kind="command", body="{}"))
    yard.pass_by(seconds=90)
    found = await measured(yard, lambda found: found.get(("ravebot_inbox_pending", "matrix")) == 1)
    assert found["ravebot_inbox_oldest_seconds", "matrix"] == 90
    assert found["ravebot_inbox_pending", "gitlab"] == 0


async def test_the_first_connection_to_a_service_is_timed_and_all_are_counted(yard: Yard) -> None:
    await yard.make_ready(MR)
    sandbox = await yard.latest(MR)
    assert sandbox.ready_at
    assert sandbox.ssh_port
    yard.pass_by(minutes=2)
    for source, dropped in (("192.0.2.1", 0), ("192.0.2.2", 3)):
        seen = Connections(source, sandbox.ssh_port, 4, dropped, 99, yard.clock.now(), yard.clock.now())
        yard.fence.counted = (seen,)
        yard.fence.tried = {Service.SSH: Attempts(passed=5, refused=2)}
        await yard.core.guard.audit()
    found = shown(yard)
    assert found["ravebot_connection_attempts_total", "ssh"] == 10
    assert found["ravebot_connections_refused_total", "ssh"] == 4
    assert found["ravebot_connections_refused_total", "web"] == 0
    assert found["ravebot_connections_total", "ssh"] == 8
    assert found["ravebot_connections_dropped_total", "ssh"] == 3
    assert found["ravebot_first_access_seconds_count", "ssh"] == 1
    assert 120 <= found["ravebot_first_access_seconds_sum", "ssh"] < 125


async def test_who_connected_before_a_sandbox_was_ready_does_not_spoil_when_it_was_used_first(yard: Yard) -> None:
    await yard.make_ready(MR)
    sandbox = await yard.latest(MR)
    assert sandbox.ready_at
    assert sandbox.ssh_port
    scan = sandbox.ready_at - timedelta(seconds=3)
    yard.fence.counted = (Connections("192.0.2.9", sandbox.ssh_port, 1, 0, 60, scan, scan),)
    await yard.core.guard.audit()
    assert shown(yard)["ravebot_first_access_seconds_count", "ssh"] == 0
    for source in ("192.0.2.9", "192.0.2.1"):
        yard.pass_by(minutes=5)
        now = yard.clock.now()
        yard.fence.counted = (Connections(source, sandbox.ssh_port, 1, 0, 99, now, now),)
        await yard.core.guard.audit()
    found = shown(yard)
    assert found["ravebot_first_access_seconds_count", "ssh"] == 1
    assert 300 <= found["ravebot_first_access_seconds_sum", "ssh"] < 305


async def test_a_guest_that_uses_all_its_processors_is_busy_since_then_and_one_that_pauses_is_not(yard: Yard) -> None:
    await yard.make_ready(MR)
    vcpus = (await yard.machine(MR)).vcpus

    async def works(seconds: float, share: float) -> None:
        for _ in range(round(seconds / 15)):
            yard.pass_by(seconds=15)
            grown = yard.provider.used.cpu_seconds + 15 * share * vcpus
            yard.provider.used = replace(yard.provider.used, cpu_seconds=grown)
            await yard.go()

    await works(60, 0.5)
    assert (await yard.machine(MR)).busy_since is None
    began = yard.clock.now()
    await works(300, 1.0)
    busy_since = (await yard.machine(MR)).busy_since
    assert busy_since
    assert abs((busy_since - began).total_seconds()) <= 60
    await works(60, 0.2)
    assert (await yard.machine(MR)).busy_since is None


async def test_a_loop_that_is_held_up_is_seen_as_such(yard: Yard) -> None:
    async with at_work(replace(measuring(yard), every_seconds=0.8).watch_loop()):
        await asyncio.sleep(0.1)
        time.sleep(0.7)
        async with asyncio.timeout(60):
            while not shown(yard)["ravebot_event_loop_lag_seconds",]:
                await asyncio.sleep(0.05)
    assert 0.2 < shown(yard)["ravebot_event_loop_lag_seconds",] < 5


async def test_a_scrape_asks_nobody(tmp_path: Path) -> None:
    """It shows what was measured, also when the database is closed and the provider is away."""
    async with a_yard(tmp_path / "state") as yard:
        await yard.make_ready(MR)
        await measured(yard, lambda found: found.get(("ravebot_project_sandboxes", "group/app")) == 1)
    yard.provider.fails |= dict.fromkeys(("list", "usage", "host"), Unavailable("libvirt is away"))
    asked = len(yard.provider.calls)
    assert b"ravebot_machine_vcpus{" in yard.metrics.exposition()
    assert len(yard.provider.calls) == asked


async def test_how_long_an_agent_worked_today_and_its_part_of_the_budget_are_measured(tmp_path: Path) -> None:
    async with an_agent_yard(tmp_path / "state", an_agent(limits={"messages_per_day": 4})) as world:
        await world.ready()
        await world.given(await world.taken())
        world.yard.pass_by(seconds=90)
        measure = replace(measuring(world.yard), config=world.config)
        async with at_work(measure.run()), asyncio.timeout(60):
            while (found := shown(world.yard)).get(("ravebot_agent_worked_today_seconds", "coder")) != 90:
                await asyncio.sleep(0.01)
        assert found["ravebot_agent_budget_used_ratio", "coder", "messages"] == 0.25
