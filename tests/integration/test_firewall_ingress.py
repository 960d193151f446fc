"""The ingress filters as observed state: put on, looked at, put back, taken away; and hosts that can't have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ravebot.access.nftables.filters import MOST_ADDRESSES
from ravebot.access.nftables.firewall import NftFirewall
from ravebot.access.nftables.ingress import Ingress
from ravebot.access.nftables.nft import NetworkTools
from ravebot.access.rules import Guest, Repair, Rules
from ravebot.clock import SystemClock
from ravebot.config.model import AccessConfig, BridgeConfig, SandboxConfig
from tests.support import netns
from tests.support.firewall import firewall_of, rules_of
from tests.support.netns import Namespace, Router

pytestmark = pytest.mark.integration

UNCHANGED = Repair()
OURS = "0x7276"
SOMEONES = ("bpf", "direct-action", "bytecode", "1,6 0 0 0")


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as made:
        yield made


def tc(router: Router, *arguments: str) -> str:
    return router.host.run(["tc", *arguments], check=True).stdout


def filters(router: Router, device: str) -> list[str]:
    """The handles of that device's filters, in the order in which they are asked."""
    listed = json.loads(tc(router, "-j", "filter", "show", "dev", device, "ingress") or "[]")
    return [entry["options"]["handle"] for entry in listed if "handle" in entry.get("options", {})]


async def test_the_bridge_and_each_running_guest_have_one_and_a_second_pass_finds_nothing_to_do(router: Router) -> None:
    guest, other = router.guest(2), router.guest(3)
    rules = rules_of((guest, 2200, 3000), (other, 2201, 3001))
    firewall = firewall_of(router)
    assert not (await firewall.ensure(rules)).flushed
    assert [filters(router, device) for device in (router.bridge, guest.tap, other.tap)] == [[OURS]] * 3
    before = tc(router, "filter", "show", "dev", guest.tap, "ingress")
    assert await firewall.ensure(rules) == UNCHANGED
    assert await firewall_of(router).ensure(rules) == UNCHANGED
    assert tc(router, "filter", "show", "dev", guest.tap, "ingress") == before
    assert firewall.weakness == ""


async def test_a_machine_that_starts_later_gets_its_filter_in_the_next_pass(router: Router) -> None:
    guest = router.guest(2)
    rules = rules_of((guest, 2200, 3000))
    router.host.ip("link", "del", guest.tap)
    firewall = seldom_looking(router)
    await firewall.ensure(rules)
    again = router.guest(2)
    assert again.tap == guest.tap
    assert await firewall.ensure(rules) == UNCHANGED
    assert filters(router, guest.tap) == [OURS]
    assert firewall.weakness == ""


async def test_an_address_that_the_host_got_or_lost_changes_the_bridges_filter_and_that_is_nobodys_doing(
    router: Router,
) -> None:
    firewall = firewall_of(router, allow=("203.0.113.1:80", "192.168.77.0/24"))
    await firewall.open()
    before = tc(router, "filter", "show", "dev", router.bridge, "ingress")
    assert f" {0xC000024D}," not in before
    router.host.ip("addr", "add", "192.0.2.77/32", "dev", "lo")
    assert await firewall.ensure(Rules()) == UNCHANGED
    after = tc(router, "filter", "show", "dev", router.bridge, "ingress")
    assert f" {0xC000024D}," in after
    assert f" {0xCB007101}," not in after, "what the configuration allows is left to nftables"
    assert f" {0xC0A84D01}," in after
    router.host.ip("addr", "del", "192.0.2.77/32", "dev", "lo")
    assert await firewall.ensure(Rules()) == UNCHANGED
    assert tc(router, "filter", "show", "dev", router.bridge, "ingress") == before


async def test_a_host_with_more_addresses_than_a_filter_can_test_has_one_all_the_same_and_it_is_logged_once(
    router: Router,
) -> None:
    more = "".join(f"addr add 192.0.2.{number}/32 dev lo\n" for number in range(1, MOST_ADDRESSES + 1))
    router.host.run(["ip", "-batch", "-"], stdin=more, check=True)
    firewall = firewall_of(router)
    with capture_logs() as logged:
        for _ in range(2):
            await firewall.ensure(Rules())
    assert filters(router, router.bridge) == [OURS]
    [told] = [entry for entry in logged if "host's addresses" in entry["event"]]
    assert told["tested"] == MOST_ADDRESSES < told["count"]


async def test_only_a_tap_that_came_since_is_worth_another_look_and_so_is_its_successor_of_the_same_name() -> None:
    with Namespace("far") as far:
        tap = far.link_host("eth0", "198.51.100.10/30", "198.51.100.9/30")
        guests = [Guest(tap, "52:54:00:00:01:02", "10.80.0.2")]
        off = [*guests, Guest("nobody0", "52:54:00:00:01:03", "10.80.0.3")]
        ingress = Ingress(NetworkTools(), BridgeConfig(name="nobody1"), SandboxConfig(host="h"))
        assert ingress.devices_changed(guests)
        assert not await ingress.ensure(off)
        assert not ingress.devices_changed(off)
        netns.ip("link", "del", tap)
        assert ingress.devices_changed(off)
        await ingress.ensure(off)
        netns.ip("link", "add", tap, "type", "veth", "peer", "name", f"{tap}p")
        netns.ip("link", "set", tap, "up")
        assert ingress.devices_changed(guests)
        await ingress.ensure(guests)
        assert not ingress.devices_changed(guests)
        listed = await NetworkTools().run("tc", "filter", "show", "dev", tap, "ingress")
        assert f"handle {OURS}" in listed


async def test_a_bridge_that_is_made_anew_gets_its_filter_again_and_that_is_nobodys_doing(router: Router) -> None:
    firewall = firewall_of(router)
    await firewall.ensure(Rules())
    router.host.ip("link", "del", router.bridge)
    assert await firewall.ensure(Rules()) == UNCHANGED
    router.host.ip("link", "add", router.bridge, "type", "bridge")
    router.host.address(router.bridge, f"{router.gateway}/24")
    assert await firewall.ensure(Rules()) == UNCHANGED
    assert filters(router, router.bridge) == [OURS]


@pytest.mark.parametrize("device", ["bridge", "tap"])
@pytest.mark.parametrize("deed", ["taken away", "altered"])
async def test_a_filter_that_someone_took_away_or_altered_is_put_back_and_that_is_reported(
    router: Router, device: str, deed: str
) -> None:
    guest = router.guest(2)
    rules = rules_of((guest, 2200, 3000))
    firewall = firewall_of(router)
    await firewall.ensure(rules)
    name = router.bridge if device == "bridge" else guest.tap
    before = tc(router, "filter", "show", "dev", name, "ingress")
    which = ("dev", name, "ingress", "protocol", "all", "pref", "1", "handle", OURS)
    if deed == "taken away":
        tc(router, "filter", "del", *which, "bpf")
    else:
        tc(router, "filter", "replace", *which, *SOMEONES)
    assert (await firewall.ensure(rules)).flushed
    assert filters(router, name) == [OURS]
    assert bytecode_in(tc(router, "filter", "show", "dev", name, "ingress")) == bytecode_in(before)
    assert await firewall.ensure(rules) == UNCHANGED


def bytecode_in(text: str) -> str:
    return text.partition("bytecode")[2]


@pytest.mark.parametrize("hook", ["clsact", "ingress"])
async def test_another_ones_filters_stay_and_are_asked_after_ours(router: Router, hook: str) -> None:
    tc(router, "qdisc", "add", "dev", router.bridge, hook)
    for preference in ("1", "7"):
        place = ("dev", router.bridge, "parent", "ffff:fff2" if hook == "clsact" else "ffff:", "pref", preference)
        tc(router, "filter", "add", *place, "handle", "5", "protocol", "all", *SOMEONES)
    firewall = firewall_of(router)
    await firewall.open()
    assert set(filters(router, router.bridge)) == {OURS, "0x5"}
    assert filters(router, router.bridge)[0] == OURS
    assert await firewall.ensure(Rules()) == UNCHANGED
    await firewall.remove()
    assert filters(router, router.bridge) == ["0x5", "0x5"]
    assert firewall.weakness == ""


async def test_removal_takes_them_off_the_bridge_and_the_taps_of_this_instance_only(router: Router) -> None:
    router.host.ip("link", "add", "rb1", "type", "bridge")
    router.host.address("rb1", "10.81.0.1/24")
    one, two = router.guest(2), router.guest(2, "rb1", "10.81.0")
    first = firewall_of(router)
    second = firewall_of(router, instance_id="other", bridge="rb1", subnet="10.81.0.0/24")
    await first.ensure(rules_of((one, 2200, 3000)))
    await second.ensure(rules_of((two, 2300, 3100)))
    await second.remove()
    assert [filters(router, device) for device in ("rb1", two.tap)] == [[], []]
    assert [filters(router, device) for device in (router.bridge, one.tap)] == [[OURS], [OURS]]
    await second.remove()
    assert await first.ensure(rules_of((one, 2200, 3000))) == UNCHANGED


async def test_a_bridge_that_another_instance_came_to_use_too_keeps_its_filter(router: Router) -> None:
    first = firewall_of(router)
    await first.open()
    router.host.nft("table inet ravebot-other { chain c { iifname rb0 drop; }; }")
    await first.remove()
    assert filters(router, router.bridge) == [OURS]


async def test_where_another_ones_filter_of_a_kind_has_our_place_the_rest_works_and_it_is_said(router: Router) -> None:
    guest = router.guest(2)
    rules = rules_of((guest, 2200, 3000))
    guest.namespace.serve(22, "ssh")
    tc(router, "qdisc", "add", "dev", router.bridge, "clsact")
    place = ("dev", router.bridge, "ingress", "protocol", "ip", "pref", "1")
    tc(router, "filter", "add", *place, "u32", "match", "u32", "0", "0")
    firewall = firewall_of(router)
    await firewall.ensure(rules)
    assert "the host's ports" in firewall.weakness
    assert f"{router.bridge}: tc filter failed" in firewall.weakness
    assert filters(router, guest.tap) == [OURS]
    assert router.client.connect(router.host_address, 2200) == f"ssh {router.client_address}"
    tc(router, "filter", "del", *place)
    assert await firewall.ensure(rules) == UNCHANGED
    assert firewall.weakness == ""


async def test_a_host_without_tc_works_as_well_and_it_is_said(router: Router, tmp_path: Path) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    for tool in ("nft", "ip", "sysctl"):
        found = shutil.which(tool)
        assert found
        (tmp_path / tool).symlink_to(found)
    firewall = seldom_looking(router, "env", f"PATH={tmp_path}")
    rules = rules_of((guest, 2200, 3000))
    await firewall.ensure(rules)
    assert "tc" in firewall.weakness
    assert await firewall.ensure(rules) == UNCHANGED
    assert router.client.connect(router.host_address, 2200) == f"ssh {router.client_address}"
    await firewall.remove()


def seldom_looking(router: Router, *prefix: str) -> NftFirewall:
    """One that looks at the routing rules and filters every hour."""
    return NftFirewall(
        instance_id="test",
        bridge=BridgeConfig.model_validate({"name": router.bridge, "subnet": router.subnet}),
        sandbox=SandboxConfig.model_validate({"host": router.host_address}),
        access=AccessConfig(),
        clock=SystemClock(),
        prefix=(*router.host.prefix, *prefix),
        slow_check_every=timedelta(hours=1),
    )
