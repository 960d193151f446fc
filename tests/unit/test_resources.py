"""What uses more than it should is named, with what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ravebot.operations.resources import OwnProcess, troubles
from tests.support.records import NOON
from tests.unit.test_web_metrics import GIB, a_running_machine

FINE = OwnProcess(memory_bytes=100 * 1024**2, files=50, most_files=1024)


def test_nothing_is_said_of_what_is_within_bounds() -> None:
    hard_working = a_running_machine(busy_since=NOON - timedelta(minutes=29), memory_used_bytes=5 * GIB)
    assert troubles(FINE, [hard_working], NOON) == []
    assert (
        troubles(FINE, [a_running_machine(busy_since=NOON + timedelta(days=1))], NOON) == []
    )  # the clock was set back


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (replace(FINE, memory_bytes=2 * GIB), "ravebot uses 2.0 GiB of memory: restart it"),
        (replace(FINE, files=900), "ravebot has 900 of 1024 files open"),
    ],
)
def test_ravebot_s_own_process_is_looked_at(own: OwnProcess, says: str) -> None:
    [found] = troubles(own, [], NOON)
    assert says in found


def test_a_guest_that_computes_without_end_and_a_qemu_that_grows_are_named() -> None:
    spinning = a_running_machine(busy_since=NOON - timedelta(minutes=45))
    grown = a_running_machine(2, memory_used_bytes=6 * GIB)
    assert troubles(FINE, [spinning, grown], NOON) == [
        "group/app!1 has used all its processors for 45 min: ask its people, or stop it",
        "QEMU uses 6.0 GiB for group/app!2, whose machine has 4.0 GiB: rebuild it",
    ]


def test_this_process_is_read_from_the_system() -> None:
    own = OwnProcess.now()
    assert 0 < own.files < own.most_files
    assert own.memory_bytes > 1024**2
