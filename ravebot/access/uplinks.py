"""Over which interfaces of the host visitors come."""

from __future__ import annotations

import asyncio
import json
from typing import cast

from ravebot.access.nft import JsonObject, NetworkTools
from ravebot.errors import Unavailable


async def uplinks(tools: NetworkTools, host: str) -> tuple[str, ...]:
    """Those with a default route, and the one that has the address `host`, if it is one. Raises Unavailable."""
    routes, links = await asyncio.gather(
        tools.ip("-4", "-j", "route", "show", "default"), tools.ip("-4", "-j", "addr", "show")
    )
    try:
        found = {str(route["dev"]) for route in cast(list[JsonObject], json.loads(routes or "[]")) if "dev" in route}
        for link in cast(list[JsonObject], json.loads(links or "[]")):
            addresses = cast(list[JsonObject], link.get("addr_info", []))
            found |= {str(link["ifname"]) for address in addresses if address.get("local") == host}
    except (ValueError, KeyError) as error:
        raise Unavailable("ip answered with something else than JSON; is iproute2 older than 5.0?") from error
    return tuple(sorted(found))
