"""Places, memory, promised disk, ports, addresses, and the queue that people are told of."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from ravebot.providers.base import HostUsage
from ravebot.sandboxes.model import MachineState, MergeRequestRef, Sandbox, SandboxState
from ravebot.sandboxes.pool.plan import (
    MEMORY_RESERVE_BYTES,
    admit,
    pick_address,
    pick_port,
    queue,
    shortage,
)
from tests.support.records import NOON, a_machine, a_sandbox

GIB = 1024**3
S = SandboxState
TWO_HOURS = timedelta(hours=2)


def ids(found: list[Sandbox]) -> list[int]:
    return [sandbox.id for sandbox in found]


def test_the_oldest_of_the_queue_get_the_free_places() -> None:
    waiting = [a_sandbox(number) for number in (1, 2, 3)]
    assert ids(admit(waiting, [], 2, NOON)) == [1, 2]
    assert ids(admit(waiting, [a_machine(9)], 2, NOON)) == [1]
    assert admit(waiting, [a_machine(8), a_machine(9)], 2, NOON) == []


def test_a_machine_takes_its_place_until_it_is_gone_whatever_became_of_its_sandbox() -> None:
    stopping = a_machine(9, state=MachineState.STOPPING)
    assert admit([a_sandbox(1)], [stopping], 1, NOON) == []


def test_more_machines_than_places_after_a_change_of_configuration_let_nobody_in() -> None:
    assert admit([a_sandbox(1)], [a_machine(8), a_machine(9)], 1, NOON) == []


def test_only_queued_sandboxes_are_let_in() -> None:
    others = [a_sandbox(number, state) for number, state in enumerate(S, 1) if state is not S.QUEUED]
    assert admit(others, [], 9, NOON) == []


def test_one_that_waits_for_its_predecessor_lets_others_pass() -> None:
    ref = MergeRequestRef(7, 1)
    everything = [a_sandbox(1, S.STOPPING, mr=ref), a_sandbox(2, mr=ref), a_sandbox(3)]
    assert ids(admit(everything, [], 2, NOON)) == [3]


def test_one_that_waits_after_a_failed_build_lets_others_pass_until_its_time_has_come() -> None:
    later = a_sandbox(1, not_before=NOON + timedelta(seconds=10))
    assert ids(admit([later, a_sandbox(2)], [], 1, NOON)) == [2]
    assert ids(admit([later, a_sandbox(2)], [], 1, NOON + timedelta(seconds=10))) == [1]


def test_one_that_waits_after_a_failed_build_is_let_in_when_the_clock_was_set_back_to_before_it() -> None:
    later = a_sandbox(1, not_before=NOON + timedelta(seconds=10))
    assert ids(admit([later], [], 1, NOON - timedelta(seconds=1))) == [1]


def test_memory_that_running_machines_may_still_grow_into_is_not_given_out_again() -> None:
    need = (4 * GIB, 20 * GIB)
    grown = a_machine(1, memory_bytes=4 * GIB, memory_peak_bytes=4 * GIB)
    fresh = a_machine(2, memory_bytes=4 * GIB, memory_peak_bytes=GIB)
    exactly = 4 * GIB + 3 * GIB + MEMORY_RESERVE_BYTES
    assert shortage(HostUsage(exactly, 99 * GIB, 0), [grown, fresh], *need) == ""
    short = shortage(HostUsage(exactly - 1, 99 * GIB, 0), [grown, fresh], *need)
    assert short == "the host is short of memory: 4.0 GiB left, 4.0 GiB needed"


def test_disk_that_is_promised_to_overlays_is_not_given_out_again() -> None:
    need = (GIB, 20 * GIB)
    assert shortage(HostUsage(99 * GIB, 50 * GIB, 30 * GIB), [], *need) == ""
    short = shortage(HostUsage(99 * GIB, 50 * GIB, 35 * GIB), [], *need)
    assert short == "the host is short of disk: 15.0 GiB not promised yet, 20.0 GiB needed"


def test_what_is_left_is_never_told_as_less_than_nothing() -> None:
    assert "0.0 GiB left" in shortage(HostUsage(0, 0, 0), [], GIB, GIB)


def test_the_first_in_the_queue_waits_for_the_first_that_expires() -> None:
    running = [
        a_sandbox(1, S.READY, expires_at=NOON + timedelta(minutes=50)),
        a_sandbox(2, S.READY, expires_at=NOON + timedelta(minutes=20)),
    ]
    places = queue([*running, a_sandbox(3), a_sandbox(4), a_sandbox(5)], 2, TWO_HOURS, NOON)
    assert [(number, place.position, place.wait) for number, place in places.items()] == [
        (3, 1, timedelta(minutes=20)),
        (4, 2, timedelta(minutes=50)),
        (5, 3, timedelta(minutes=20) + TWO_HOURS),
    ]


def test_one_that_only_starts_is_expected_to_live_a_whole_lifetime() -> None:
    places = queue([a_sandbox(1, S.STARTING), a_sandbox(2)], 1, TWO_HOURS, NOON)
    assert places[2].wait == TWO_HOURS


def test_a_place_that_is_free_or_being_freed_is_no_wait() -> None:
    assert queue([a_sandbox(1)], 1, TWO_HOURS, NOON)[1].wait == timedelta(0)
    assert queue([a_sandbox(1, S.STOPPING), a_sandbox(2)], 1, TWO_HOURS, NOON)[2].wait == timedelta(0)


def test_one_that_is_overdue_makes_no_negative_wait() -> None:
    overdue = a_sandbox(1, S.READY, expires_at=NOON - timedelta(hours=1))
    assert queue([overdue, a_sandbox(2)], 1, TWO_HOURS, NOON)[2].wait == timedelta(0)


def test_with_more_running_than_there_are_places_several_must_end_first() -> None:
    running = [a_sandbox(n, S.READY, expires_at=NOON + timedelta(minutes=10 * n)) for n in (1, 2, 3)]
    assert queue([*running, a_sandbox(4)], 2, TWO_HOURS, NOON)[4].wait == timedelta(minutes=20)


@given(states=st.lists(st.sampled_from(list(S)), max_size=20), places=st.integers(1, 5))
def test_positions_are_the_order_of_asking_and_waits_never_shrink_along_the_queue(states: list[S], places: int) -> None:
    everything = [a_sandbox(number, state) for number, state in enumerate(states, 1)]
    found = queue(everything, places, TWO_HOURS, NOON)
    assert list(found) == [sandbox.id for sandbox in everything if sandbox.state is S.QUEUED]
    assert [place.position for place in found.values()] == list(range(1, len(found) + 1))
    waits = [place.wait for place in found.values()]
    assert all(wait is not None and wait >= timedelta(0) for wait in waits)
    assert waits == sorted(wait for wait in waits if wait is not None)


def test_the_port_that_was_used_longest_ago_is_given_out() -> None:
    assert pick_port(range(10, 14), frozenset(), {}) == 10
    assert pick_port(range(10, 14), frozenset(), {10: 1, 11: 2}) == 12
    assert pick_port(range(10, 14), frozenset(), {10: 5, 11: 2, 12: 9, 13: 3}) == 11
    assert pick_port(range(10, 14), frozenset({11}), {10: 5, 11: 2, 12: 9, 13: 3}) == 13


def test_there_is_no_port_when_every_one_is_taken() -> None:
    assert pick_port(range(10, 12), frozenset({10, 11, 12}), {}) is None


def test_addresses_go_round_the_subnet_and_leave_out_the_bridge_and_the_broadcast() -> None:
    subnet = IPv4Network("10.80.0.0/29")
    given, last = [], None
    for _ in range(7):
        last = pick_address(subnet, frozenset(), last)
        given.append(last)
    assert given == [f"10.80.0.{number}" for number in (2, 3, 4, 5, 6, 2, 3)]


def test_an_address_is_found_also_when_the_last_one_came_from_another_subnet() -> None:
    subnet = IPv4Network("10.80.0.0/29")
    for last in ("192.168.1.77", "10.79.255.255", "10.80.0.7"):
        found = pick_address(subnet, frozenset(), last)
        assert found is not None
        assert IPv4Address(found) in subnet


def test_there_is_no_address_when_every_one_is_taken() -> None:
    subnet = IPv4Network("10.80.0.0/29")
    assert pick_address(subnet, frozenset(str(host) for host in subnet), None) is None


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=40), places=st.integers(1, 4))
def test_however_sandboxes_come_and_go_places_ports_and_addresses_are_never_given_out_twice(
    steps: list[tuple[bool, int]], places: int
) -> None:
    """`steps`: somebody asks for a sandbox, or the n-th running one ends and frees everything."""
    subnet, ports = IPv4Network("10.80.0.0/29"), range(10, 13)
    waiting: list[Sandbox] = []
    running: dict[int, tuple[int, str]] = {}
    last_use: dict[int, int] = {}
    last: str | None = None
    for number, (asks, which) in enumerate(steps, 1):
        if asks:
            waiting.append(a_sandbox(number))
        elif running:
            del running[list(running)[which % len(running)]]
        for sandbox in admit(waiting, [a_machine(one) for one in running], places, NOON):
            port = pick_port(ports, frozenset(port for port, _ in running.values()), last_use)
            address = pick_address(subnet, frozenset(address for _, address in running.values()), last)
            if port is None or address is None:
                assert len(running) == 3
                break
            waiting = [one for one in waiting if one.id != sandbox.id]
            running[sandbox.id] = (port, address)
            last_use[port], last = sandbox.id, address
        assert len(running) <= places
        assert len({port for port, _ in running.values()}) == len(running)
        assert len({address for _, address in running.values()}) == len(running)
        assert not waiting or len(running) == min(places, 3)
