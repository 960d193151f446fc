"""Whom a network address stands for, where requests are counted by address."""

from __future__ import annotations

import ipaddress


def network_of(address: str) -> str:
    """Whom an address stands for: of IPv6, where everybody has 2^64 addresses, the /64."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found)


def is_here(address: str) -> bool:
    """Whether a connection comes from this host, or through a socket that has no address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return True
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
