"""Slow actions beside the loop: one a machine, given up when told, and left alone for a while after they failed."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from ravebot.errors import Unavailable
from ravebot.sandboxes.decide import Do
from ravebot.sandboxes.model import MachineId
from ravebot.sandboxes.pool.flights import Flights

pytestmark = pytest.mark.integration
ONE, OTHER = MachineId(1), MachineId(2)


async def test_a_machine_has_one_action_at_a_time_and_others_do_not_wait() -> None:
    ended: list[bool] = []
    go = asyncio.Event()

    async def wait() -> None:
        await go.wait()

    async with asyncio.TaskGroup() as group:
        flights = Flights(group, lambda: ended.append(True))
        flights.start(ONE, Do.CREATE, wait())
        assert flights.busy(ONE) is Do.CREATE
        assert not flights.may_start(ONE)
        assert flights.may_start(OTHER)
        assert flights.any()
        go.set()
        await asyncio.sleep(0.01)
        assert flights.busy(ONE) is None
        assert flights.may_start(ONE)
        assert ended == [True]


async def test_a_cancelled_flight_makes_room_at_once_and_ends_nothing_else() -> None:
    async with asyncio.TaskGroup() as group:
        flights = Flights(group, lambda: None)
        flights.start(ONE, Do.CREATE, asyncio.sleep(60))
        flights.start(OTHER, Do.CREATE, asyncio.sleep(0.03))
        flights.cancel(ONE)
        flights.cancel(MachineId(3))
        await asyncio.sleep(0.01)
        assert flights.may_start(ONE)
        assert flights.busy(OTHER) is Do.CREATE


async def test_one_that_is_cancelled_before_it_ran_leaves_nothing_behind() -> None:
    async with asyncio.TaskGroup() as group:
        flights = Flights(group, lambda: None)
        flights.start(ONE, Do.CREATE, asyncio.sleep(60))
        flights.cancel(ONE)
        await asyncio.sleep(0.01)
        assert not flights.any()
        assert flights.may_start(ONE)


async def test_after_a_failure_a_machine_is_left_alone_unless_it_is_wanted_otherwise() -> None:
    async def fails() -> None:
        raise Unavailable("libvirt does not answer")

    async with asyncio.TaskGroup() as group:
        flights = Flights(group, lambda: None)
        flights.start(ONE, Do.CREATE, fails())
        await asyncio.sleep(0.01)
        assert not flights.any()
        assert not flights.may_start(ONE)
        flights.cancel(ONE)
        assert flights.may_start(ONE)


async def test_thousands_of_failures_in_a_row_do_not_end_the_loop() -> None:
    async def fails() -> None:
        raise Unavailable("libvirt does not answer")

    async with asyncio.TaskGroup() as group:
        flights = Flights(group, lambda: None)
        for _ in range(1200):
            flights.start(ONE, Do.CREATE, fails())
            while flights.any():
                await asyncio.sleep(0)
        assert not flights.any()


async def test_what_nobody_thought_of_is_logged_ends_nothing_and_is_tried_again() -> None:
    async def breaks() -> None:
        raise ValueError("a bug")

    with capture_logs() as logs:
        async with asyncio.TaskGroup() as group:
            flights = Flights(group, lambda: None)
            flights.start(ONE, Do.CREATE, breaks())
            await asyncio.sleep(0.01)
            assert not flights.may_start(ONE)
            flights.start(MachineId(2), Do.CREATE, asyncio.sleep(0))
    assert [(log["log_level"], log["machine"]) for log in logs] == [("error", ONE)]
    assert "bug" in logs[0]["event"]
