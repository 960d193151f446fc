"""What one guest can take of what all share: the host's connection table, and its DNS server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.firewall import firewall_of, rules_of
from tests.support.netns import Router

pytestmark = pytest.mark.integration


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as made:
        yield made


def entries(router: Router, address: str) -> int:
    """How many entries of the host's connection table are about that address, at any place."""
    table = router.host.run(["conntrack", "-L"], check=True).stdout.splitlines()
    return sum(f"={address} " in line for line in table)


async def test_the_entries_of_a_guest_that_is_taken_out_go_whoever_began_them_and_no_others(router: Router) -> None:
    guest, other = router.guest(2), router.guest(3)
    for machine in (guest, other):
        machine.namespace.serve(22, "ssh")
    router.internet.serve(80, "internet")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    for machine, port in ((guest, 2200), (other, 2201)):
        for begin in (router.client.hold, router.host.hold):
            begin(router.host_address, port)
        machine.namespace.hold(router.internet_address, 80)
        router.host.hold(machine.address, 22)
    assert entries(router, guest.address) == entries(router, other.address) == 4
    await firewall.ensure(rules_of((other, 2201, 3001)))
    assert (entries(router, guest.address), entries(router, other.address)) == (0, 4)
    await firewall.remove()
    assert entries(router, other.address) == 0


async def test_a_guest_does_not_inherit_the_entries_of_its_address(router: Router) -> None:
    guest = router.guest(2)
    router.host.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], check=True)
    await firewall_of(router).open()
    # As if they had not been removed when the one before went.
    add = "-I -p tcp -s 10.80.0.2 -d 198.51.100.2 --sport 4000 --dport 80 --state ESTABLISHED -t 432000 -u ASSURED"
    router.host.run(["conntrack", *add.split()], check=True)
    assert entries(router, guest.address) == 1
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    assert entries(router, guest.address) == 0


async def test_after_a_flush_the_entries_of_those_that_live_on_are_kept(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    firewall = firewall_of(router)
    rules = rules_of((guest, 2200, 3000))
    await firewall.ensure(rules)
    held = router.client.hold(router.host_address, 2200)
    router.host.nft("flush ruleset")
    await firewall.ensure(rules)
    assert entries(router, guest.address) == 1
    assert held.echo("on") == "on"


async def test_without_the_conntrack_tool_the_rules_of_a_guest_go_all_the_same(router: Router, tmp_path: Path) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    for tool in ("nft", "ip", "sysctl"):
        found = router.host.run(["sh", "-c", f"command -v {tool}"], check=True).stdout.strip()
        (tmp_path / tool).symlink_to(found)
    firewall = firewall_of(router, through=("/usr/bin/env", f"PATH={tmp_path}"))
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert router.client.connect(router.host_address, 2200) is not None
    with capture_logs() as logged:
        repair = await firewall.ensure(rules_of())
    assert repair.removed == 3
    assert router.client.connect(router.host_address, 2200) is None
    assert [(line["log_level"], "conntrack" in line["reason"]) for line in logged] == [("warning", True)]
