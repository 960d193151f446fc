"""The firewall as observed state: what others do to it is noticed, mended and reported."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import cast

import psutil
import pytest

from ravebot.access.rules import Repair, Rules
from ravebot.errors import Unavailable
from tests.support.firewall import firewall_of, rules_of
from tests.support.netns import Router

pytestmark = pytest.mark.integration

UNCHANGED = Repair()


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as made:
        yield made


async def test_a_second_pass_finds_nothing_to_do(router: Router) -> None:
    guest = router.guest(2)
    firewall = firewall_of(router)
    await firewall.open()
    assert await firewall.ensure(Rules()) == UNCHANGED
    rules = rules_of((guest, 2200, 3000))
    assert (await firewall.ensure(rules)).added == 3
    assert await firewall.ensure(rules) == UNCHANGED
    await firewall.open()
    assert await firewall.ensure(rules) == UNCHANGED


async def test_it_opens_before_the_bridge_exists(router: Router) -> None:
    router.host.ip("link", "del", router.bridge)
    firewall = firewall_of(router)
    await firewall.open()
    assert await firewall.ensure(Rules()) == UNCHANGED
    router.host.ip("link", "add", router.bridge, "type", "bridge")
    router.host.address(router.bridge, f"{router.gateway}/24")
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert await router.friend.aconnect(router.host_address, 2200) is not None
    assert await guest.namespace.aconnect(router.friend_address, 80) is None


async def test_after_a_flush_guests_stay_isolated_and_one_pass_mends_and_reports_it(router: Router) -> None:
    guest, other = router.guest(2), router.guest(3)
    guest.namespace.serve(22, "ssh")
    other.namespace.serve(22, "other")
    router.friend.serve(80, "private")
    firewall = firewall_of(router)
    rules = rules_of((guest, 2200, 3000), (other, 2201, 3001))
    other.namespace.ip("route", "add", f"{guest.address}/32", "via", router.gateway)
    await firewall.ensure(rules)
    await router.client.aconnect(router.host_address, 2200)
    await firewall.ensure(rules)
    router.host.nft("flush ruleset")
    # Beneath the firewall, the routing holds.
    assert guest.namespace.connect(router.friend_address, 80) is None
    assert other.namespace.connect(guest.address, 22) is None
    repair = await firewall.ensure(rules)
    assert (repair.flushed, repair.added) == (True, 6)
    assert router.client.connect(router.host_address, 2200) == f"ssh {router.client_address}"
    assert router.friend.connect(router.host_address, 2200) == f"ssh {router.friend_address}"
    assert guest.namespace.connect(router.friend_address, 80) is None
    assert await firewall.ensure(rules) == UNCHANGED
    visits = {visit.source: visit.connections for visit in await firewall.connections()}
    assert visits == {router.client_address: 2, router.friend_address: 1}, "what the flush took was read before"
    assert await firewall.connections() == ()


async def test_without_egress_nothing_at_all_gets_out_while_flushed(router: Router) -> None:
    guest = router.guest(2)
    # Known to the internet, so that only the routing rules stand between them.
    router.internet.route(router.subnet, "198.51.100.1")
    router.internet.serve(80, "internet")
    router.host.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], check=True)
    assert guest.namespace.connect(router.internet_address, 80) is not None
    firewall = firewall_of(router, egress="none")
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    router.host.nft("flush ruleset")
    assert guest.namespace.connect(router.internet_address, 80) is None


@pytest.mark.parametrize(
    ("family", "chain"), [("inet", "from_guest"), ("inet", "marking"), ("bridge", "vouching"), ("arp", "arriving")]
)
async def test_one_rule_taken_out_by_hand_is_noticed_and_put_back(router: Router, family: str, chain: str) -> None:
    guest = router.guest(2)
    rules = rules_of((guest, 2200, 3000))
    firewall = firewall_of(router)
    await firewall.ensure(rules)
    before = _listed(router, family)
    handle = next(rule["handle"] for rule in before if rule.get("chain") == chain)
    router.host.nft(f"delete rule {family} ravebot-test {chain} handle {handle}")
    assert (await firewall.ensure(rules)).flushed
    assert [rule.get("expr") for rule in _listed(router, family)] == [rule.get("expr") for rule in before]
    assert await firewall.ensure(rules) == UNCHANGED


async def test_a_rule_slipped_in_by_hand_is_taken_out(router: Router) -> None:
    firewall = firewall_of(router)
    await firewall.open()
    before = _listed(router, "inet")
    router.host.nft("insert rule inet ravebot-test from_guest accept")
    assert (await firewall.ensure(Rules())).flushed
    assert len(_listed(router, "inet")) == len(before)


async def test_a_set_made_anew_in_another_shape_is_mended(router: Router) -> None:
    guest = router.guest(2)
    rules = rules_of((guest, 2200, 3000))
    firewall = firewall_of(router)
    await firewall.ensure(rules)
    router.host.nft("flush ruleset; table inet ravebot-test { set opened { type mark; elements = { 1 }; }; }")
    assert (await firewall.ensure(rules)).flushed
    assert await firewall.ensure(rules) == UNCHANGED


async def test_beside_a_large_foreign_set_it_works_all_the_same(router: Router) -> None:
    guest = router.guest(2)
    rules = rules_of((guest, 2200, 3000))
    firewall = firewall_of(router)
    await firewall.ensure(rules)
    blocked = ", ".join(f"172.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(50_000))
    router.host.nft(f"table ip blocklist {{ set blocked {{ type ipv4_addr; elements = {{ {blocked} }}; }}; }}")
    assert await firewall.ensure(rules) == UNCHANGED
    router.host.nft("delete table bridge ravebot-test")
    assert (await firewall.ensure(rules)).flushed
    assert await firewall.ensure(rules) == UNCHANGED


async def test_elements_taken_out_or_put_in_by_hand_are_mended_and_counted(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    rules = rules_of((guest, 2200, 3000))
    firewall = firewall_of(router)
    await firewall.ensure(rules)
    router.host.nft("delete element inet ravebot-test opened { 2200 . 10.80.0.2 . 22 }")
    router.host.nft("add element inet ravebot-test live { 10.80.0.77 }")
    assert router.client.connect(router.host_address, 2200) is None
    assert await firewall.ensure(rules) == Repair(flushed=False, added=1, removed=1)
    assert router.client.connect(router.host_address, 2200) is not None


async def test_routing_rules_and_forwarding_are_mended_too(router: Router) -> None:
    firewall = firewall_of(router)
    await firewall.open()
    before = router.host.run(["ip", "rule"]).stdout
    assert before.count(f"iif {router.bridge} prohibit") == 12
    router.host.ip("rule", "del", "pref", "1002")
    router.host.ip("-6", "rule", "flush")
    router.host.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=0"], check=True)
    assert (await firewall.ensure(Rules())).flushed
    assert sorted(router.host.run(["ip", "rule"]).stdout.splitlines()) == sorted(before.splitlines())
    assert "prohibit" in router.host.run(["ip", "-6", "rule"]).stdout
    assert router.host.run(["sysctl", "-n", "net.ipv4.ip_forward"]).stdout.strip() == "1"


async def test_a_changed_configuration_replaces_the_static_part_and_keeps_the_sandboxes(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    rules = rules_of((guest, 2200, 3000))
    await firewall_of(router).ensure(rules)
    assert router.client.connect(router.host_address, 2200) is not None
    stricter = firewall_of(router, allow_from=("192.168.77.0/24",), egress="none")
    await stricter.open()
    assert router.client.connect(router.host_address, 2200) is None
    assert router.friend.connect(router.host_address, 2200) is not None
    assert await stricter.ensure(rules) == UNCHANGED
    assert router.host.run(["ip", "rule"]).stdout.count("prohibit") == 1


async def test_a_foreign_change_is_told_of_and_our_own_are_not(router: Router) -> None:
    firewall = firewall_of(router)
    await firewall.open()
    told = asyncio.Queue[None]()

    async def listen() -> None:
        async with aclosing(cast("AsyncGenerator[None]", firewall.changes())) as changes:
            async for change in changes:
                told.put_nowait(change)

    listener = asyncio.create_task(listen())
    await asyncio.sleep(0.5)
    guest = router.guest(2)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(told.get(), 0.5)
    router.host.nft("flush ruleset")
    await asyncio.wait_for(told.get(), 2)
    assert (await firewall.ensure(rules_of((guest, 2200, 3000)))).flushed
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(told.get(), 0.5)
    for number in range(20):
        router.host.nft(f"add table ip foreign{number}")
    await asyncio.wait_for(told.get(), 2)
    await asyncio.sleep(0.7)
    assert told.qsize() < 5, "a burst is told of once or twice, not for every change"
    await firewall.close()
    await asyncio.wait_for(listener, 2)


async def test_a_monitor_that_was_killed_is_started_again_and_asks_for_a_look(router: Router) -> None:
    firewall = firewall_of(router)
    await firewall.open()
    changes = firewall.changes()
    change = asyncio.ensure_future(anext(changes))
    async with asyncio.timeout(60):
        while not (monitors := [child for child in psutil.Process().children() if "monitor" in child.cmdline()]):
            await asyncio.sleep(0.05)
    for monitor in monitors:
        monitor.kill()
    await asyncio.wait_for(change, 5)
    change = asyncio.ensure_future(anext(changes))
    async with asyncio.timeout(10):
        while not change.done():  # until the new monitor listens
            router.host.nft("add table ip foreign; delete table ip foreign")
            await asyncio.sleep(0.1)
    await firewall.close()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(changes), 5)
    assert not [child for child in psutil.Process().children() if "monitor" in child.cmdline()]


async def test_after_close_the_rules_stay_and_passes_at_once_do_not_disturb_each_other(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    rules = rules_of((guest, 2200, 3000))
    firewall = firewall_of(router)
    repairs = await asyncio.gather(*(firewall.ensure(rules) for _ in range(4)), firewall.open(), firewall.connections())
    assert sum(repair.added for repair in repairs if isinstance(repair, Repair)) == 3
    await firewall.close()
    assert router.client.connect(router.host_address, 2200) == f"ssh {router.client_address}"


async def test_two_instances_do_not_touch_each_other(router: Router) -> None:
    router.host.ip("link", "add", "rb1", "type", "bridge")
    router.host.address("rb1", "10.81.0.1/24")
    one, two = router.guest(2), router.guest(2, "rb1", "10.81.0")
    one.namespace.serve(22, "one")
    two.namespace.serve(22, "two")
    first = firewall_of(router)
    second = firewall_of(router, instance_id="other", bridge="rb1", subnet="10.81.0.0/24", egress="none")
    rules_one, rules_two = rules_of((one, 2200, 3000)), rules_of((two, 2300, 3100))
    await first.ensure(rules_one)
    await second.ensure(rules_two)
    assert router.client.connect(router.host_address, 2200) == f"one {router.client_address}"
    assert router.client.connect(router.host_address, 2300) == f"two {router.client_address}"
    assert one.namespace.connect(two.address, 22) is None
    assert two.namespace.connect(one.address, 22) is None
    assert one.namespace.connect(router.host_address, 2300) is None
    await second.remove()
    assert "rb1" not in router.host.run(["ip", "rule"]).stdout + router.host.run(["ip", "-6", "rule"]).stdout
    assert "ravebot-other" not in router.host.run(["nft", "list", "tables"]).stdout
    assert await first.ensure(rules_one) == UNCHANGED
    assert [visit.port for visit in await first.connections()] == [2200]
    await second.remove()
    assert (await second.ensure(rules_two)).added == 3, "after a removal, ensure writes everything again"


async def test_a_second_instance_on_the_same_bridge_writes_nothing_and_says_whose_it_is(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    rules = rules_of((guest, 2200, 3000))
    first = firewall_of(router)
    await first.ensure(rules)
    before = written(router)
    second = firewall_of(router, instance_id="other", egress="none")
    for asking in (second.open(), second.ensure(Rules())):
        with pytest.raises(Unavailable, match=r"instance id test.*`ravebot cleanup --instance-id test --all --force`"):
            await asking
    await second.remove()
    assert written(router) == before
    assert await first.ensure(rules) == UNCHANGED
    assert router.client.connect(router.host_address, 2200) == f"ssh {router.client_address}"
    await first.remove()
    await second.ensure(Rules())


async def test_of_two_that_came_to_share_a_bridge_one_may_go_without_opening_the_other(router: Router) -> None:
    guest = router.guest(2)
    rules = rules_of((guest, 2200, 3000))
    first = firewall_of(router)
    await first.ensure(rules)
    rival = (
        "add table inet ravebot-other; add chain inet ravebot-other c; add rule inet ravebot-other c iifname rb0 drop"
    )
    router.host.nft(rival.replace("; ", "\n"))
    with pytest.raises(Unavailable, match="cleanup --instance-id other --all --force"):
        await first.ensure(rules)
    await first.remove()
    assert router.host.run(["ip", "rule"]).stdout.count("prohibit") == 12


def written(router: Router) -> tuple[str, str]:
    tables = router.host.run(["nft", "-t", "list", "ruleset"], check=True).stdout
    return tables, router.host.run(["ip", "rule"], check=True).stdout


async def test_a_missing_nft_or_namespace_is_unavailable_and_says_so(router: Router) -> None:
    firewall = firewall_of(router)
    router.host.close()
    with pytest.raises(Unavailable, match="failed"):
        await firewall.ensure(Rules())


def _listed(router: Router, family: str) -> list[dict[str, object]]:
    output = router.host.run(["nft", "-j", "list", "table", family, "ravebot-test"], check=True).stdout
    return [entry["rule"] for entry in json.loads(output)["nftables"] if "rule" in entry]
