"""The interfaces of the host on which visitors arrive."""

from __future__ import annotations

import asyncio
from typing import cast

from ravebot.access.nftables.nft import JsonObject, NetworkTools


async def uplinks(tools: NetworkTools, host: str) -> tuple[str, ...]:
    """Interfaces with a default route, and the one with the address `host`, if it is one. Raises Unavailable."""
    routes, links = await asyncio.gather(
        tools.ip_listed("-4", "route", "show", "default"), tools.ip_listed("-4", "addr", "show")
    )
    found = {str(route["dev"]) for route in routes if "dev" in route}
    for link in links:
        addresses = cast(list[JsonObject], link.get("addr_info", []))
        found |= {str(link.get("ifname")) for address in addresses if address.get("local") == host}
    return tuple(sorted(found))
