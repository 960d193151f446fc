"""The traffic that the host's firewall must let through: the first packet of each kind, at each hook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

Facts = Mapping[str, frozenset[object]]
"""What is known of a packet: for each property that a condition may test, the values that equal it."""

_PROTOCOLS: Mapping[str, frozenset[object]] = {"tcp": frozenset(["tcp", 6]), "udp": frozenset(["udp", 17])}
_MOST_PORTS = 20


@dataclass(frozen=True)
class Traffic:
    """What a firewall rule may test of our traffic; what is not given is not known."""

    bridge: str
    egress: bool = True
    ports: tuple[range, ...] = ()  # of the host, forwarded to guests
    guest_ports: tuple[int, ...] = ()
    uplinks: tuple[str, ...] = ()  # interfaces on which visitors arrive


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, at one hook."""

    what: str
    hook: str
    facts: Facts
    selectors: tuple[str, ...] = field(default=())  # of the nftables rules that would accept it


def packets(traffic: Traffic, mentioned: Iterable[int] = ()) -> Iterable[Packet]:
    """All packets to check. Of the host's ports: the first of each range, and those that someone's rules mention."""
    ours = traffic.bridge
    both_ways = (f"iifname {ours}", f"oifname {ours}")
    uplinks: tuple[str | None, ...] = traffic.uplinks or (None,)
    guest_ports: tuple[int | None, ...] = traffic.guest_ports or (None,)
    visit = "connections to the sandboxes"
    for uplink, host_port in product(uplinks, _host_ports(traffic, mentioned)):
        facts = _facts("tcp", host_port, {"meta iifname": uplink})
        yield Packet(visit, "prerouting", facts, tuple(f"tcp dport {p.start}-{p[-1]}" for p in traffic.ports))
    for uplink, port in product(uplinks, guest_ports):
        facts = _facts("tcp", port, {"meta iifname": uplink, "meta oifname": ours, "ct status": "dnat"})
        yield Packet(visit, "forward", facts, both_ways)
    for port in guest_ports:
        facts = _facts("tcp", port, {"meta oifname": ours})
        yield Packet("the host's own connections to the sandboxes", "output", facts, both_ways[1:])
    from_guest = {"meta iifname": ours}
    if traffic.egress:
        leaving = "the sandboxes' way to the internet"
        yield Packet(leaving, "prerouting", _facts("tcp", None, from_guest), both_ways[:1])
        yield Packet(leaving, "forward", _facts("tcp", None, from_guest), both_ways)
    for hook in ("prerouting", "input"):
        yield Packet("the sandboxes' DHCP", hook, _facts("udp", 67, from_guest), both_ways[:1])
        if traffic.egress:
            yield Packet("the sandboxes' DNS", hook, _facts("udp", 53, from_guest), both_ways[:1])


def _host_ports(traffic: Traffic, mentioned: Iterable[int]) -> list[int]:
    known = {port for port in mentioned if any(port in ports for ports in traffic.ports)}
    return [*(ports.start for ports in traffic.ports), *sorted(known)[:_MOST_PORTS]]


def _facts(protocol: str, port: int | None, more: Mapping[str, str | None]) -> Facts:
    facts: dict[str, frozenset[object]] = {
        "meta nfproto": frozenset(["ipv4"]),
        "meta protocol": frozenset(["ip"]),
        "meta l4proto": _PROTOCOLS[protocol],
        "ip protocol": _PROTOCOLS[protocol],
        "ct state": frozenset(["new"]),
        "ct status": frozenset(),
    }
    if port is not None:
        facts |= dict.fromkeys((f"{protocol} dport", "th dport"), frozenset([port]))
    return facts | {name: frozenset([value]) for name, value in more.items() if value is not None}
