"""The policy routing rules below the firewall, which restrict the guests while someone's reload has flushed nftables.

Routing refuses a packet from our bridge to a private address (without egress: to any address), unless our own
prerouting chain marked it. The rules name the bridge, so they can be written before it exists, and belong to the one
instance that owns it. The bridge's learning from link-local frames, which no rule can filter, is turned off, too.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from ravebot.access.nftables.nft import JsonObject, NetworkTools
from ravebot.access.nftables.ruleset import MAY_PASS, PRIVATE_RANGES
from ravebot.config.model import SandboxConfig
from ravebot.errors import Unavailable

_FIRST_PRIORITY = 1000
"""Before the rules of VPN tools (5000 and above) and of the main table (32766)."""
_EVERYWHERE = "0.0.0.0/0"
_PRIORITIES = {network: _FIRST_PRIORITY + number for number, network in enumerate((_EVERYWHERE, *PRIVATE_RANGES))}
"""Each rule has its own: deleting a rule without a destination deletes any rule of that priority."""

_FORWARDING = "net.ipv4.ip_forward"


class Routing:
    """Keeps the rules of one bridge, and IP forwarding, in place."""

    def __init__(self, tools: NetworkTools, bridge: str, sandbox: SandboxConfig) -> None:
        self._tools = tools
        self._bridge = bridge
        self._refused = PRIVATE_RANGES if sandbox.egress == "internet" else (_EVERYWHERE,)
        self._with_ipv6 = Path("/proc/sys/net/ipv6").exists()

    async def ensure(self) -> bool:
        """Add missing rules, remove extra ones; returns whether anything had been changed. Raises Unavailable."""
        found, found6, forwarding, learns = await asyncio.gather(
            self._found("-4"),
            self._found("-6"),
            self._tools.run("sysctl", "-n", _FORWARDING),
            self._learns_from_link_local(),
        )
        missing = [("-4", rule) for rule in sorted(self._rules("-4") - found)]
        missing += [("-6", rule) for rule in sorted(self._rules("-6") - found6)]
        excess = [("-4", rule) for rule in found - self._rules("-4")]
        excess += [("-6", rule) for rule in found6 - self._rules("-6")]
        for family, rule in missing:
            await self._change("add", family, rule)
        for family, rule in excess:
            await self._change("del", family, rule)
        stopped = forwarding.strip() != "1"
        if stopped:
            await self._tools.run("sysctl", "-q", "-w", f"{_FORWARDING}=1")
        if learns:  # like every new bridge: nobody changed that, so it is not reported
            await self._tools.ip("link", "set", "dev", self._bridge, "type", "bridge", "no_linklocal_learn", "1")
        return bool(missing or excess or stopped)

    async def remove(self) -> tuple[str, ...]:
        """Remove our bridge's rules; returns descriptions. IP forwarding stays on: others may need it by now."""
        found = await self.found()
        for family, rule in found:
            await self._change("del", family, rule)
        return tuple(in_words(family, rule) for family, rule in found)

    async def found(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The existing rules of our bridge: family and arguments of `ip rule`."""
        return tuple([(family, rule) for family in ("-4", "-6") for rule in sorted(await self._found(family))])

    async def _learns_from_link_local(self) -> bool:
        """Whether the bridge learns MACs from link-local frames (such as LLDP's), which pass no rule."""
        try:
            links = await self._tools.ip_listed("-d", "link", "show", "dev", self._bridge)
        except Unavailable as error:
            if "does not exist" in str(error):
                return False
            raise
        for link in links:
            kind = cast(JsonObject, link.get("linkinfo", {}))
            if cast(JsonObject, kind.get("info_data", {})).get("no_linklocal_learn") == 0:
                return True
        return False

    def _rules(self, family: str) -> frozenset[tuple[str, ...]]:
        """The wanted rules as arguments of `ip rule`, in the same form as `_found` returns them."""
        bridge = ("iif", self._bridge)
        if family == "-6":
            return frozenset([("pref", str(_FIRST_PRIORITY), *bridge, "prohibit")] if self._with_ipv6 else [])
        unmarked = ("fwmark", f"0x0/{MAY_PASS:#x}")
        return frozenset(
            ("pref", str(_PRIORITIES[network]), *bridge, "to", network, *unmarked, "prohibit")
            for network in self._refused
        )

    async def _found(self, family: str) -> frozenset[tuple[str, ...]]:
        if family == "-6" and not self._with_ipv6:
            return frozenset()
        listed = await self._tools.ip_listed(family, "rule", "show")
        return frozenset(
            self._read(family, rule)
            for rule in listed
            if rule.get("iif") == self._bridge and rule.get("action") == "prohibit"
        )

    def _read(self, family: str, rule: JsonObject) -> tuple[str, ...]:
        parts = ["pref", str(rule["priority"]), "iif", self._bridge]
        if "dst" in rule:
            parts += ["to", f"{rule['dst']}/{rule.get('dstlen', 32)}"]
        elif family == "-4":
            parts += ["to", _EVERYWHERE]
        if "fwmask" in rule:
            parts += ["fwmark", f"{int(str(rule['fwmark']), 16):#x}/{int(str(rule['fwmask']), 16):#x}"]
        return (*parts, "prohibit")

    async def _change(self, verb: str, family: str, rule: tuple[str, ...]) -> None:
        try:
            await self._tools.ip(family, "rule", verb, *rule)
        except Unavailable as error:
            # Someone else has done it already.
            if "File exists" not in str(error) and "No such file" not in str(error):
                raise


def in_words(family: str, rule: tuple[str, ...]) -> str:
    """The description of a rule, for people."""
    return f"routing rule {family} {' '.join(rule)}"
