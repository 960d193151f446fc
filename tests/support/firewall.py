"""A firewall for the host of a `Router`, and rules for its guests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from ravebot.access.nftables.firewall import NftFirewall
from ravebot.access.rules import Forward, Guest, Rules, Service
from ravebot.clock import SystemClock
from ravebot.config.model import AccessConfig, BridgeConfig, SandboxConfig
from tests.support.netns import GuestMachine, Namespace, Router


def firewall_of(
    router: Router,
    *,
    instance_id: str = "test",
    host: Namespace | None = None,
    bridge: str = Router.bridge,
    subnet: str = Router.subnet,
    allow_from: tuple[str, ...] = (),
    through: tuple[str, ...] = (),
    **sandbox: Any,
) -> NftFirewall:
    """A firewall with the configuration's defaults, except `sandbox` keys; it checks the routing in every pass.

    Its commands run in the host's namespace, by the command `through`.
    """
    return NftFirewall(
        instance_id=instance_id,
        bridge=BridgeConfig.model_validate({"name": bridge, "subnet": subnet}),
        sandbox=SandboxConfig.model_validate({"host": Router.host_address, **sandbox}),
        access=AccessConfig.model_validate({"allow_from": allow_from}),
        clock=SystemClock(),
        prefix=(*(host or router.host).prefix, *through),
        slow_check_every=timedelta(0),
    )


def rules_of(*opened: tuple[GuestMachine, int, int]) -> Rules:
    """Each guest with its SSH and web port."""
    return Rules(
        guests=frozenset(Guest(guest.tap, guest.mac, guest.address) for guest, _, _ in opened),
        forwards=frozenset(
            forward
            for guest, ssh, web in opened
            for forward in (
                Forward(Service.SSH, ssh, guest.address, 22),
                Forward(Service.WEB, web, guest.address, 3002),
            )
        ),
    )
