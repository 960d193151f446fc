"""What an instance that lost its state left in nftables and routing: found by its id, and nobody else's with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ravebot.access.nftables.nft import NetworkTools
from ravebot.access.nftables.remains import FirewallRemains
from ravebot.access.rules import Repair, Rules
from ravebot.config.model import SandboxConfig
from tests.support.firewall import firewall_of
from tests.support.netns import Router

pytestmark = pytest.mark.integration


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as made:
        yield made


def remains_of(router: Router, instance_id: str) -> FirewallRemains:
    sandbox = SandboxConfig.model_validate({"host": Router.host_address})
    return FirewallRemains(instance_id, NetworkTools(router.host.prefix), sandbox)


def written(router: Router) -> tuple[list[str], list[str]]:
    tables = router.host.run(["nft", "list", "tables"], check=True).stdout.splitlines()
    rules = [router.host.run(["ip", family, "rule"], check=True).stdout for family in ("-4", "-6")]
    return sorted(tables), sorted("".join(rules).splitlines())


async def test_tables_and_routing_rules_go_and_those_of_the_bridge_beside_stay(router: Router) -> None:
    nothing = written(router)
    router.host.ip("link", "add", "rb1", "type", "bridge")
    beside = firewall_of(router, instance_id="test2", bridge="rb1", subnet="10.81.0.0/24")
    await beside.open()
    router.host.nft("add table inet ravebot-; add table inet filter")
    only_beside = written(router)
    await firewall_of(router).open()
    both = written(router)
    remains = remains_of(router, "test")
    found = await remains.look([])
    assert written(router) == both
    assert found.tables == tuple(f"firewall table {family} ravebot-test" for family in ("inet", "bridge", "arp"))
    *rules, filter_ = found.rules
    assert len(rules) == len(both[1]) - len(only_beside[1]) > 1
    assert all(f"iif {router.bridge} " in rule for rule in rules)
    assert filter_ == f"ingress filter of {router.bridge}"
    assert await remains.remove(found) == (*found.tables, *found.rules)
    assert written(router) == only_beside
    assert await remains.remove(await remains.look([])) == ()
    assert await beside.ensure(Rules()) == Repair()
    for other in (remains_of(router, "test2"), remains_of(router, "tes")):
        await other.remove(await other.look([]))
    router.host.nft("delete table inet ravebot-; delete table inet filter")
    assert written(router) == nothing


async def test_the_routing_rules_of_a_bridge_that_another_instance_guards_stay(router: Router) -> None:
    await firewall_of(router).open()
    new = firewall_of(router, instance_id="new")
    router.host.nft("flush ruleset")
    await new.open()
    router.host.nft(
        "add table inet ravebot-test; add chain inet ravebot-test c; add rule inet ravebot-test c iifname rb0 drop"
    )
    before = written(router)
    remains = remains_of(router, "test")
    found = await remains.look([router.bridge])
    assert (found.tables, found.rules) == (("firewall table inet ravebot-test",), ())
    await remains.remove(found)
    assert written(router)[1] == before[1]
    assert "table inet ravebot-test" not in written(router)[0]
    assert await new.ensure(Rules()) == Repair()


async def test_after_a_flush_the_routing_rules_are_found_by_the_bridge_of_its_network(router: Router) -> None:
    nothing = written(router)
    await firewall_of(router).open()
    router.host.nft("flush ruleset")
    flushed = written(router)
    remains = remains_of(router, "test")
    found = await remains.look([router.bridge])
    *rules, filter_ = found.rules
    assert (found.tables, len(rules)) == ((), len(flushed[1]) - len(nothing[1]))
    assert filter_ == f"ingress filter of {router.bridge}"
    await remains.remove(found)
    assert written(router) == nothing
