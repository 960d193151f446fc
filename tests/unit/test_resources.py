"""What uses more than it should is named, with what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ravebot.operations.resources import BUSY_FOR, OwnProcess, troubles
from ravebot.web.metrics import Metrics
from tests.support.records import NOON
from tests.unit.test_web_metrics import GIB, a_running_machine, shown

FINE = OwnProcess(memory_bytes=100 * 1024**2, files=50, most_files=1024)


def test_nothing_is_said_of_what_is_within_bounds() -> None:
    hard_working = a_running_machine(busy_since=NOON - timedelta(minutes=29), memory_used_bytes=5 * GIB)
    clock_was_set_back = a_running_machine(busy_since=NOON + timedelta(days=1))
    assert troubles(FINE, [hard_working, clock_was_set_back]) == []


@pytest.mark.parametrize(("minutes", "told"), [(None, True), (31, True), (30, True), (29, False), (-1, False)])
def test_a_guest_spins_only_while_nobody_is_connected(minutes: int | None, told: bool) -> None:
    visited_at = None if minutes is None else NOON - timedelta(minutes=minutes)
    busy = a_running_machine(busy_since=NOON - timedelta(hours=2), visited_at=visited_at)
    assert bool(troubles(FINE, [busy])) is told
    metrics = Metrics()
    metrics.running_seen([busy], 0, 0)
    [spinning] = [value for key, value in shown(metrics).items() if key[0] == "ravebot_machine_spinning_seconds"]
    assert (spinning >= BUSY_FOR.total_seconds()) is told  # as the alert asks
    assert spinning >= 0


def test_a_machine_that_is_not_measured_any_more_does_not_grow_busier() -> None:
    """While it is paused, or libvirt is away."""
    [paused_at, before] = NOON - timedelta(hours=5), NOON - timedelta(hours=5, minutes=20)
    assert troubles(FINE, [a_running_machine(busy_since=before, measured_at=paused_at)]) == []


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (replace(FINE, memory_bytes=2 * GIB), "ravebot uses 2.0 GiB of memory: restart it"),
        (replace(FINE, files=900), "ravebot has 900 of 1024 files open"),
    ],
)
def test_ravebot_s_own_process_is_looked_at(own: OwnProcess, says: str) -> None:
    [found] = troubles(own, [])
    assert says in found


def test_a_guest_that_computes_without_end_and_a_qemu_that_grows_are_named() -> None:
    spinning = a_running_machine(busy_since=NOON - timedelta(minutes=45))
    grown = a_running_machine(2, memory_used_bytes=6 * GIB)
    leaking = a_running_machine(3, open_files=1001)
    assert troubles(FINE, [spinning, grown, leaking]) == [
        "group/app!1 has used all its processors for 45 min while nobody was connected: ask its people, or stop it",
        "QEMU uses 6.0 GiB for group/app!2, whose machine has 4.0 GiB: rebuild it",
        "QEMU has 1001 files open for group/app!3: rebuild it",
    ]


def test_this_process_is_read_from_the_system() -> None:
    own = OwnProcess.now()
    assert 0 < own.files < own.most_files
    assert own.memory_bytes > 1024**2
