"""Finds and removes tables, routing rules and filters of an instance whose database and configuration are lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ravebot.access.nftables import ingress, routing
from ravebot.access.nftables.ingress import Ingress
from ravebot.access.nftables.nft import NetworkTools, bodies
from ravebot.access.nftables.reading import bridges_by_instance
from ravebot.access.nftables.routing import Routing
from ravebot.access.nftables.ruleset import LIVE, TABLE_PREFIX
from ravebot.config.model import BridgeConfig, SandboxConfig


@dataclass(frozen=True)
class FirewallHoldings:
    """What was found. `families` have a table of the instance; `bridges` are used by no other instance."""

    families: tuple[str, ...]
    bridges: tuple[str, ...]
    guests: tuple[str, ...]  # addresses that its tables let through
    tables: tuple[str, ...]  # "firewall table inet …", for people
    rules: tuple[str, ...]  # "routing rule …" and "ingress filter …", for people


class FirewallRemains:
    """Finds them by the instance's id and by the bridges of its networks."""

    def __init__(self, instance_id: str, tools: NetworkTools, sandbox: SandboxConfig) -> None:
        self._instance_id = instance_id
        self._table = f"{TABLE_PREFIX}{instance_id}"
        self._tools = tools
        self._sandbox = sandbox

    async def look(self, bridges: Iterable[str]) -> FirewallHoldings:
        """Find them; changes nothing. Leaves out bridges that another instance uses, too. Raises Unavailable."""
        listed = await self._tools.ruleset()
        families = [
            str(body["family"])
            for entry in listed
            for kind, body in bodies(entry)
            if kind == "table" and body.get("name") == self._table
        ]
        by_instance = bridges_by_instance(listed)
        own = {*bridges, *by_instance.pop(self._instance_id, ())}
        alone = sorted(own.difference(*by_instance.values()))
        rules = [routing.in_words(*one) for bridge in alone for one in await self._routing(bridge).found()]
        filters = [ingress.in_words(one) for bridge in alone for one in await self._ingress(bridge).found([bridge])]
        guests = await self._tools.elements("set", LIVE.family, self._table, LIVE.name)
        return FirewallHoldings(
            families=tuple(families),
            bridges=tuple(alone),
            guests=tuple(map(str, guests)),
            tables=tuple(f"firewall table {family} {self._table}" for family in families),
            rules=(*rules, *filters),
        )

    async def remove(self, found: FirewallHoldings) -> tuple[str, ...]:
        """Remove them; returns descriptions of what was removed. Raises Unavailable.

        The tables are removed last: if this fails half-way, the next run finds the rest through them.
        """
        gone: list[str] = []
        for bridge in found.bridges:
            gone += await self._routing(bridge).remove()
            gone += await self._ingress(bridge).remove([bridge])
        if found.guests:
            await self._tools.forget_connections(found.guests)
        if found.families:
            await self._tools.apply(
                [{"delete": {"table": {"family": family, "name": self._table}}} for family in found.families]
            )
        return (*found.tables, *gone)

    def _routing(self, bridge: str) -> Routing:
        return Routing(self._tools, bridge, self._sandbox)

    def _ingress(self, bridge: str) -> Ingress:
        return Ingress(self._tools, BridgeConfig(name=bridge), self._sandbox)
