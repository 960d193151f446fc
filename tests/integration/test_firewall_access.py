"""Who reaches the guests' ports: nftables in a namespace of its own, with other namespaces as other machines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ravebot.access.rules import Forward, Guest, Rules, Service
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
    assert await router.client.aconnect(router.host_address, 2200) == f"ssh {router.client_address}"
    assert await router.client.aconnect(router.host_address, 3000) == f"web {router.client_address}"
    assert await router.client.aconnect(router.host_address, 2201) is None
    assert await router.client.aconnect(guest.address, 22) is None
    assert await router.host.aconnect(router.host_address, 2200) == f"ssh {router.host_address}"
