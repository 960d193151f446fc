"""Who reaches the guests' ports: nftables in a namespace of its own, with other namespaces as other machines."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from ravebot.access.rules import Attempts, Rules, Service
from tests.support.firewall import firewall_of, rules_of
from tests.support.netns import Router

pytestmark = pytest.mark.integration


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as made:
        yield made


async def test_an_opened_port_leads_to_its_guest_and_no_other_port_does(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    guest.namespace.serve(3002, "web")
    firewall = firewall_of(router)
    await firewall.open()
    repair = await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert not repair.flushed
    assert repair.added == 3
    assert await router.client.aconnect(router.host_address, 2200) == f"ssh {router.client_address}"
    assert await router.client.aconnect(router.host_address, 3000) == f"web {router.client_address}"
    assert await router.client.aconnect(router.host_address, 2201) is None
    assert await router.client.aconnect(guest.address, 22) is None


async def test_a_private_client_and_the_host_itself_reach_the_port_too(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert await router.friend.aconnect(router.host_address, 2200) == f"ssh {router.friend_address}"
    assert await router.host.aconnect(router.host_address, 2200) == f"ssh {router.host_address}"
    assert await router.host.aconnect("127.0.0.1", 2200) is None


async def test_a_client_outside_allow_from_is_refused_and_one_inside_is_not(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    firewall = firewall_of(router, allow_from=("192.168.0.0/16", "192.168.77.0/24"))
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert await router.friend.aconnect(router.host_address, 2200) == f"ssh {router.friend_address}"
    assert await router.client.aconnect(router.host_address, 2200) is None
    assert await router.client.aconnect(router.host_address, 3000) is None
    assert [visit.source for visit in await firewall.connections()] == [router.friend_address]
    tried = firewall.attempts()
    assert tried[Service.SSH].passed == 1
    assert tried[Service.SSH].refused >= 1  # and its client's retries
    assert tried[Service.WEB].passed == 0
    assert tried[Service.WEB].refused >= 1
    await firewall.connections()
    assert firewall.attempts() == {service: Attempts() for service in Service}


async def test_attempts_are_counted_whether_or_not_they_are_answered_and_once_over_restarts_and_flushes(
    router: Router,
) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    rules = rules_of((guest, 2200, 3000))
    firewall = firewall_of(router)
    await firewall.open()
    await firewall.ensure(rules)
    for port in (2200, 2200, 3000):  # nothing listens at the last
        await router.client.aconnect(router.host_address, port)
    assert sum(visit.connections for visit in await firewall.connections()) == 2
    assert firewall.attempts() == {Service.SSH: Attempts(passed=2), Service.WEB: Attempts(passed=1)}
    restarted = firewall_of(router)
    await restarted.open()
    await router.client.aconnect(router.host_address, 2200)
    await restarted.ensure(rules)
    assert restarted.attempts()[Service.SSH] == Attempts(passed=1)
    router.host.nft("flush ruleset")
    await restarted.ensure(rules)
    await router.client.aconnect(router.host_address, 2200)
    await restarted.connections()
    assert restarted.attempts()[Service.SSH] == Attempts(passed=1)


async def test_traffic_routed_through_the_host_to_such_a_port_elsewhere_is_left_alone(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    router.friend.serve(2200, "elsewhere")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert await router.client.aconnect(router.friend_address, 2200) == f"elsewhere {router.client_address}"


async def test_the_connection_over_the_limit_is_dropped_and_counted_for_that_source_and_port_alone(
    router: Router,
) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    guest.namespace.serve(3002, "web")
    firewall = firewall_of(router, connections_per_minute={"ssh": 3, "web": 300})
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    answers = [await router.client.aconnect(router.host_address, 2200, 0.5) for _ in range(4)]
    assert answers == [f"ssh {router.client_address}"] * 3 + [None]
    assert await router.client.aconnect(router.host_address, 3000) is not None
    assert await router.friend.aconnect(router.host_address, 2200) is not None
    visits = {(visit.source, visit.port): visit for visit in await firewall.connections()}
    assert visits[router.client_address, 2200].connections == 3
    assert visits[router.client_address, 2200].dropped >= 1
    assert visits[router.client_address, 3000].dropped == 0
    assert visits[router.friend_address, 2200].dropped == 0


async def test_the_audit_names_the_source_with_counts_bytes_and_times_once(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    started = datetime.now(UTC)
    held = await asyncio.to_thread(router.client.hold, router.host_address, 2200)
    assert await asyncio.to_thread(held.echo, "x" * 5000) == "x" * 5000
    (visit,) = await firewall.connections()
    assert (visit.source, visit.port, visit.connections, visit.dropped) == (router.client_address, 2200, 1, 0)
    assert 10_000 < visit.bytes < 20_000
    assert started - timedelta(seconds=2) < visit.first_seen <= visit.last_seen <= datetime.now(UTC)
    assert await firewall.connections() == ()
    assert await asyncio.to_thread(held.echo, "again") == "again"
    (later,) = await firewall.connections()
    assert later.connections == 0
    assert 0 < later.bytes < 2000


async def test_a_new_process_hands_out_what_was_not_told_and_nothing_twice(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    rules = rules_of((guest, 2200, 3000))
    first = firewall_of(router)
    await first.ensure(rules)
    await router.client.aconnect(router.host_address, 2200)
    assert [visit.connections for visit in await first.connections()] == [1]
    await router.client.aconnect(router.host_address, 2200)
    crashed = firewall_of(router)
    await crashed.open()
    second = firewall_of(router)
    await second.open()
    assert (await second.ensure(rules)).added == 0
    assert [visit.connections for visit in await second.connections()] == [1]
    await router.client.aconnect(router.host_address, 2200)
    assert [visit.connections for visit in await second.connections()] == [1]
    assert await second.connections() == ()


async def test_taking_a_guest_out_cuts_its_open_connections(router: Router) -> None:
    guest, other = router.guest(2), router.guest(3)
    for machine in (guest, other):
        machine.namespace.serve(22, "ssh")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    doomed = await asyncio.to_thread(router.client.hold, router.host_address, 2200)
    kept = await asyncio.to_thread(router.client.hold, router.host_address, 2201)
    assert await asyncio.to_thread(doomed.echo, "one") == "one"
    repair = await firewall.ensure(rules_of((other, 2201, 3001)))
    assert (repair.added, repair.removed) == (0, 3)
    assert await asyncio.to_thread(doomed.echo, "two") == "ConnectionResetError", "the host itself answers for the port"
    assert await asyncio.to_thread(kept.echo, "two") == "two"


async def test_closing_a_port_cuts_its_connections_while_the_guest_lives_on(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    router.internet.serve(80, "internet")
    firewall = firewall_of(router)
    rules = rules_of((guest, 2200, 3000))
    await firewall.ensure(rules)
    held = await asyncio.to_thread(router.client.hold, router.host_address, 2200)
    assert await asyncio.to_thread(held.echo, "one") == "one"
    await firewall.ensure(Rules(guests=rules.guests))
    assert await asyncio.to_thread(held.echo, "two") == "TimeoutError"
    assert await guest.namespace.aconnect(router.internet_address, 80) is not None


async def test_a_port_moves_to_another_guest_in_one_step(router: Router) -> None:
    guest, other = router.guest(2), router.guest(3)
    guest.namespace.serve(22, "first")
    other.namespace.serve(22, "second")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert await router.client.aconnect(router.host_address, 2200) == f"first {router.client_address}"
    await firewall.ensure(rules_of((other, 2200, 3000)))
    assert await router.client.aconnect(router.host_address, 2200) == f"second {router.client_address}"


FORGE_SYNS = """
import socket, struct, sys
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
target, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
    for number in range(count):
        source = socket.inet_aton(f"172.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}")
        tcp = struct.pack("!HHIIBBHHH", 4000, port, number, 0, 5 << 4, 2, 1024, 0, 0)
        pseudo = source + socket.inet_aton(target) + struct.pack("!BBH", 0, 6, len(tcp))
        tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + source + socket.inet_aton(target)
        raw.sendto(ip + tcp, (target, 0))
"""


def fill(router: Router, name: str, count: int, port: int = 2200) -> None:
    """What as many visitors would leave in a set of the audit."""
    visitors = (f"172.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}" for number in range(count))
    elements = ", ".join(f"{visitor} . {port} counter packets 1 bytes 60" for visitor in visitors)
    router.host.nft(f"add element inet ravebot-test {name} {{ {elements} }}")


async def test_forged_senders_take_no_room_in_the_audit_and_are_no_connections(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    forge = [sys.executable, "-c", FORGE_SYNS, router.host_address, "2200", "500"]
    await router.client.arun(forge, check=True)
    assert await router.client.aconnect(router.host_address, 2200) is not None
    rates = await router.host.arun(["nft", "list", "set", "inet", "ravebot-test", "rates"], check=True)
    assert rates.stdout.count("172.16.") == 500, "they came, or the rest proves nothing"
    (visit,) = await firewall.connections()
    assert (visit.source, visit.connections) == (router.client_address, 1)


async def test_a_port_that_is_opened_but_answered_by_nobody_counts_no_connection(router: Router) -> None:
    guest = router.guest(2)
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert await router.client.aconnect(router.host_address, 2200) is None
    assert await firewall.connections() == ()


async def test_a_connection_that_outlives_a_flush_is_not_counted_again(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    rules = rules_of((guest, 2200, 3000))
    firewall = firewall_of(router)
    await firewall.ensure(rules)
    held = await asyncio.to_thread(router.client.hold, router.host_address, 2200)
    assert await asyncio.to_thread(held.echo, "one") == "one"
    assert [visit.connections for visit in await firewall.connections()] == [1]
    router.host.nft("flush ruleset")
    assert (await firewall.ensure(rules)).flushed
    await asyncio.to_thread(held.echo, "two")
    assert sum(visit.connections for visit in await firewall.connections()) == 0


async def test_who_does_not_fit_into_the_audit_still_gets_in_and_is_told_of_once_in_the_log(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    rules = rules_of((guest, 2200, 3000))
    firewall = firewall_of(router, connections_per_minute={"ssh": 2, "web": 300})
    await firewall.ensure(rules)
    for name in ("seen", "traffic", "dropped"):
        fill(router, name, 4096)
    answers = [await router.client.aconnect(router.host_address, 2200, 0.5) for _ in range(3)]
    assert [answer is not None for answer in answers] == [True, True, False]
    with capture_logs() as logged:
        visits = await firewall.connections()
        assert await firewall.connections() == ()
    assert len(visits) == 4096
    (line,) = logged
    assert line["event"].startswith("access audit is incomplete")
    assert line["connections"] == 2
    assert line["dropped"] >= 1
    assert line["bytes"] > 100
    assert not (await firewall.ensure(rules)).flushed


async def test_a_full_audit_and_a_flood_hold_up_nobody(router: Router) -> None:
    guest = router.guest(2)
    rules = rules_of((guest, 2200, 3000))
    firewall = firewall_of(router)
    await firewall.ensure(rules)
    for name in ("seen", "traffic", "dropped"):
        fill(router, name, 4096)
    visitors = ", ".join(f"172.20.{number >> 8}.{number & 255} . 2200" for number in range(32768))
    router.host.nft(f"add element inet ravebot-test rates {{ {visitors} }}")
    await firewall.ensure(rules)  # finds out how much there is
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)

    ticking = asyncio.create_task(tick())
    started = time.monotonic()
    await firewall.ensure(rules)
    ensured = time.monotonic() - started
    assert len(await firewall.connections()) == 4096
    ticking.cancel()
    # Seconds each when it was not bounded; a busy machine may take its time.
    assert ensured < 2
    assert longest < 1
    changed = rules_of((guest, 2201, 3001))
    assert (await firewall.ensure(changed)).added == 2
    assert (await firewall.ensure(changed)).added == 0
