"""Our nftables tables: the static part of one instance, always written as a whole, and its sandboxes' elements.

There are three tables of one name. `bridge` marks frames that carry the address and MAC assigned to their tap as
genuine (with a bit of the packet's mark), drops all others before the bridge learns MACs from them, and forwards no
frame from port to port. `arp` and `inet` drop packets that come over our bridge without that bit (so nothing passes if
the bridge table is missing), and packets that come from a tap itself. `inet` does the rest.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ravebot.access.nftables import expressions as x
from ravebot.access.nftables.nft import JsonObject
from ravebot.access.rules import DNS_BURST, DNS_PER_SECOND, Rules, Service
from ravebot.config.model import MOST_MACHINES, AccessConfig, BridgeConfig, SandboxConfig

TABLE_PREFIX = "ravebot-"
"""Prefix of every instance's tables; the instance's id follows."""
FAMILIES = ("inet", "bridge", "arp")

MAY_PASS = 0x01000000
"""Mark bit: a guest's packet may go to a private address (a reply to a visitor, or an allowed destination)."""
VOUCHED = 0x02000000
"""Mark bit: the frame's tap, MAC and address belong together. Only read for packets from our own bridge."""

COUNTED = 0x08000000
"""Connection mark bit: the connection was counted, since its client proved that the address is its own."""

AUDIT_TIMEOUT_SECONDS = 3600
"""How long a visitor's counters stay after the last packet; they are read far more often."""
_RATE_TIMEOUT_SECONDS = 120  # a bucket is full again after a minute: to remove it then changes nothing
_RATE_SIZE = 32768
_AUDIT_SIZE = 4096
"""Visitors in each set of the audit: as many as can be read and rewritten in a fraction of a second."""

_GUEST_CONNECTIONS = 500
"""Open connections of one guest, through the host and to it. With 253 guests (a /24) that is half of the 262,144
entries that the kernel's table has by default; with less than 4 GiB of memory the table is smaller. A browser opens a
few dozen, a package manager at most 50. Connections that nobody answers count; visitors' connections don't."""
_GUEST_STARTS_PER_SECOND, _GUEST_STARTS_BURST = 20, 500
"""The kernel keeps a closed TCP connection for 2 minutes without counting it, so the rate of new ones is limited, too.
A guest that does nothing but connect has 3,400 entries."""
_DNS_TCP_CONNECTIONS = 4
"""dnsmasq serves 20 TCP connections at once, for all guests together (MAX_PROCS in its src/config.h)."""
_VISITOR_CONNECTIONS = 200
"""Open connections of one source to one port: with a limited rate alone, it could fill the kernel's table in a day.
There is no limit for all visitors of a guest together: with one, any stranger could lock the others out."""
_GUEST_KEYS = 2 * MOST_MACHINES
"""Upper limit for sets with a key per guest: twice the machines, since a key outlives its guest for a while."""

AUDIT_SETS = ("seen", "traffic", "dropped", "told", "saved")
"""The sets of the access audit."""
UNCOUNTED = {"seen": "uncounted_connections", "traffic": "uncounted_traffic", "dropped": "uncounted_drops"}
"""For each set that counts visitors, the counter of packets that arrived while it was full."""
PASSED = {service: f"passed_{service}" for service in Service}
REFUSED = {service: f"refused_{service}" for service in Service}
"""For each service, the counters of first packets that were passed on, and of those from outside of allow_from."""
COUNTERS = (*UNCOUNTED.values(), *PASSED.values(), *REFUSED.values())

PRIVATE_RANGES = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
    "168.63.129.16/32",
)  # fmt: skip
"""Not the internet: https://www.iana.org/assignments/iana-ipv4-special-registry and multicast, and the address at which
Azure serves its machines: https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16. The
priorities of the routing rules follow this order: new entries must be added at the end."""

_SENDER = x.payload("ip", "saddr")

Element = tuple[str | int, ...]
Elements = Mapping["NamedSet", frozenset[Element]]


@dataclass(frozen=True)
class NamedSet:
    """A set or map whose elements depend on the sandboxes. An element of a map is its key, then its value."""

    family: str
    name: str
    key: tuple[str, ...]
    value: str | None = None


ADDRESSES = NamedSet("inet", "addresses", ("inet_service",), "ipv4_addr")
PORTS = NamedSet("inet", "ports", ("inet_service",), "inet_service")
OPENED = NamedSet("inet", "opened", ("inet_service", "ipv4_addr", "inet_service"))
SSH_PORTS = NamedSet("inet", "ssh_ports", ("inet_service",))
LIVE = NamedSet("inet", "live", ("ipv4_addr",))
GUESTS = NamedSet("bridge", "guests", ("ifname", "ether_addr", "ipv4_addr"))
LINKS = NamedSet("bridge", "links", ("ifname", "ether_addr"))
TAPS = NamedSet("bridge", "taps", ("ifname",))
# The host receives frames to a link-local MAC (01:80:c2:00:00:0X) on the tap itself, past the bridge.
INET_TAPS = NamedSet("inet", "taps", ("ifname",))
ARP_TAPS = NamedSet("arp", "taps", ("ifname",))

FORWARD_SETS = (ADDRESSES, PORTS, OPENED, SSH_PORTS)
GUEST_SETS = (LIVE, GUESTS, LINKS, TAPS, INET_TAPS, ARP_TAPS)
SETS = FORWARD_SETS + GUEST_SETS


def elements(rules: Rules) -> Elements:
    """The elements that these rules need."""
    taps = frozenset((guest.tap,) for guest in rules.guests)
    return {
        # Two maps, because the JSON of nft 1.0.6 has no map to an address with a port.
        ADDRESSES: frozenset((forward.port, forward.address) for forward in rules.forwards),
        PORTS: frozenset((forward.port, forward.guest_port) for forward in rules.forwards),
        OPENED: frozenset((forward.port, forward.address, forward.guest_port) for forward in rules.forwards),
        SSH_PORTS: frozenset((forward.port,) for forward in rules.forwards if forward.service is Service.SSH),
        LIVE: frozenset((guest.address,) for guest in rules.guests),
        GUESTS: frozenset((guest.tap, guest.mac, guest.address) for guest in rules.guests),
        LINKS: frozenset((guest.tap, guest.mac) for guest in rules.guests),
        TAPS: taps,
        INET_TAPS: taps,
        ARP_TAPS: taps,
    }


def element_commands(verb: str, table: str, changes: Elements) -> list[JsonObject]:
    """nft commands that `add` or `delete` these elements."""
    return [
        {
            verb: {
                "element": {
                    "family": one.family,
                    "table": table,
                    "name": one.name,
                    "elem": [_written(one, element) for element in sorted(wanted)],
                }
            }
        }
        for one, wanted in changes.items()
        if wanted
    ]


def _written(target: NamedSet, element: Element) -> object:
    if target.value is not None:
        return [element[0], element[1]]
    return element[0] if len(element) == 1 else {"concat": list(element)}


@dataclass(frozen=True)
class Ruleset:
    """The static part, which follows from the configuration."""

    table: str
    bridge: BridgeConfig
    sandbox: SandboxConfig
    access: AccessConfig

    def write(self) -> list[JsonObject]:
        """nft commands that write all tables anew, whether or not they exist."""
        tables: list[JsonObject] = [{"add": table} for table in self._tables()]
        return [*self.delete(), *tables, *self._sets(), *self._bridge(), *self._arp(), *self._inet()]

    def delete(self) -> list[JsonObject]:
        """nft commands that delete our tables, if they exist."""
        return [{verb: table} for table in self._tables() for verb in ("add", "delete")]

    def _tables(self) -> list[JsonObject]:
        return [{"table": {"family": family, "name": self.table}} for family in FAMILIES]

    def _sets(self) -> Iterable[JsonObject]:
        for one in SETS:
            body: JsonObject = {"family": one.family, "table": self.table, "name": one.name}
            body["type"] = one.key[0] if len(one.key) == 1 else list(one.key)
            if one.value is None:
                yield {"add": {"set": body}}
            else:
                yield {"add": {"map": {**body, "map": one.value}}}
        visitor, guest = ["ipv4_addr", "inet_service"], "ipv4_addr"
        guests = min(self.bridge.subnet.num_addresses, _GUEST_KEYS)
        timed: tuple[tuple[str, object, int, int], ...] = (
            ("rates", visitor, _RATE_SIZE, _RATE_TIMEOUT_SECONDS),
            ("starts", guest, guests, _RATE_TIMEOUT_SECONDS),
            ("questions", guest, guests, _RATE_TIMEOUT_SECONDS),
            ("seen", visitor, _AUDIT_SIZE, AUDIT_TIMEOUT_SECONDS),
            ("traffic", visitor, _AUDIT_SIZE, AUDIT_TIMEOUT_SECONDS),
            ("dropped", visitor, _AUDIT_SIZE, AUDIT_TIMEOUT_SECONDS),
        )
        for name, key, size, timeout in timed:
            body = {"family": "inet", "table": self.table, "name": name, "type": key, "size": size}
            yield {"add": {"set": {**body, "flags": ["timeout"], "timeout": timeout}}}
        counting: tuple[tuple[str, object, int], ...] = (
            ("visits", visitor, _RATE_SIZE),
            ("flows", guest, guests),
            ("dns_connections", guest, guests),
        )
        for name, key, size in counting:
            yield {"add": {"set": {"family": "inet", "table": self.table, "name": name, "type": key, "size": size}}}
        for name in ("told", "saved"):
            yield {"add": {"set": {"family": "inet", "table": self.table, "name": name, "type": visitor}}}

        for name in COUNTERS:
            yield {"add": {"counter": {"family": "inet", "table": self.table, "name": name}}}

    def _chain(
        self, family: str, name: str, rules: Iterable[list[JsonObject]], hook: tuple[str, str, int] | None = None
    ) -> Iterable[JsonObject]:
        body: JsonObject = {"family": family, "table": self.table, "name": name}
        if hook:
            kind, where, priority = hook
            body |= {"type": kind, "hook": where, "prio": priority, "policy": "accept"}
        yield {"add": {"chain": body}}
        for rule in rules:
            yield {"add": {"rule": {"family": family, "table": self.table, "chain": name, "expr": rule}}}

    def _bridge(self) -> Iterable[JsonObject]:
        tap, sender = x.meta("iifname"), x.payload("ether", "saddr")
        guest = x.match(x.concat(tap, sender, x.payload("ip", "saddr")), "@guests")
        link = x.match(x.concat(tap, sender), "@links")
        own_arp = x.match(x.concat(tap, x.payload("arp", "saddr ether"), x.payload("arp", "saddr ip")), "@guests")
        no_address = [
            x.match(x.payload("ip", "saddr"), "0.0.0.0"),  # noqa: S104 - a DHCP client's source, not a bind
            x.match(x.payload("udp", "sport"), 68),
        ]
        vouch = x.set_mark(VOUCHED)
        unvouched = [x.came_from("@taps"), x.has_mark(VOUCHED, present=False), x.DROP]
        # nftables can't compare two fields of a frame, and nft 1.0.6 can't look up raw bytes in a set of MACs. With the
        # client's MAC as the frame's sender, a request in another's name fails the same test as a forged sender.
        as_client = x.copy_client_mac_to_sender()
        yield from self._chain(
            "bridge", "dhcp_request", [[as_client, guest, vouch], [as_client, link, *no_address, vouch], unvouched]
        )
        dhcp_request = [x.match(x.payload("udp", "dport"), 67), x.goto("dhcp_request")]
        yield from self._chain(
            "bridge",
            "vouching",
            [[link, *dhcp_request], [guest, vouch], [link, own_arp, vouch], unvouched],
            ("filter", "prerouting", -300),
        )
        # Frames to a link-local MAC arrive here without passing the chain above.
        yield from self._chain("bridge", "arriving", [unvouched], ("filter", "input", 0))
        yield from self._chain(
            "bridge",
            "between_ports",
            [[x.came_from("@taps"), x.DROP], [x.goes_to("@taps"), x.DROP]],
            ("filter", "forward", 0),
        )

    def _arp(self) -> Iterable[JsonObject]:
        unvouched = [x.came_from(self.bridge.name), x.has_mark(VOUCHED, present=False), x.DROP]
        past_the_bridge = [x.came_from("@taps"), x.DROP]
        yield from self._chain("arp", "arriving", [past_the_bridge, unvouched], ("filter", "input", 0))

    def _inet(self) -> Iterable[JsonObject]:
        bridge = self.bridge.name
        redirect: JsonObject = {"dnat": {"family": "ip", "addr": _looked_up("addresses"), "port": _looked_up("ports")}}
        subnet = x.networks([str(self.bridge.subnet)])
        # Chains that others jump to must exist before those.
        yield from self._chain("inet", "arrived", self._arrived())
        yield from self._chain("inet", "measured", self._measured())
        yield from self._chain("inet", "limits", self._limits())
        yield from self._chain("inet", "opened_port", self._opened_port())
        yield from self._chain("inet", "to_guest", self._to_guest())
        yield from self._chain("inet", "starting", self._starting())
        yield from self._chain("inet", "asking", self._asking())
        yield from self._chain("inet", "from_guest", self._from_guest())
        yield from self._chain("inet", "to_host", self._to_host())
        yield from self._chain("inet", "marking", self._marking(), ("filter", "prerouting", -150))
        yield from self._chain(
            "inet",
            "redirecting",
            [[x.came_from(bridge, "!="), x.to_this_host(), redirect]],
            ("nat", "prerouting", -100),
        )
        not_loopback = x.match(x.payload("ip", "daddr"), x.networks(["127.0.0.0/8"]), "!=")
        yield from self._chain(
            "inet", "redirecting_own", [[not_loopback, x.to_this_host(), redirect]], ("nat", "output", -100)
        )
        yield from self._chain(
            "inet",
            "forwarding",
            [
                [x.came_from(bridge), x.goes_to(bridge), x.DROP],
                [x.goes_to(bridge), x.goto("to_guest")],
                [x.came_from(bridge), x.goto("from_guest")],
            ],
            ("filter", "forward", 0),
        )
        yield from self._chain("inet", "arriving", [[x.came_from(bridge), x.goto("to_host")]], ("filter", "input", 0))
        to_subnet = x.match(x.payload("ip", "daddr"), subnet)
        own = [x.direction("original"), x.connection_status("dnat"), to_subnet, x.goto("opened_port")]
        yield from self._chain("inet", "leaving", [own], ("filter", "output", 0))
        from_subnet = x.match(x.payload("ip", "saddr"), subnet)
        yield from self._chain(
            "inet",
            "masquerading",
            [[from_subnet, x.goes_to(bridge, "!="), {"masquerade": None}]],
            ("nat", "postrouting", 100),
        )

    def _marking(self) -> Iterable[list[JsonObject]]:
        ours = x.came_from(self.bridge.name)
        yield [x.came_from("@taps"), x.DROP]
        # A guest that a change of provider.bridge left on another bridge, which no other rule covers.
        yield [x.came_from(self.bridge.name, "!="), x.match(x.payload("ip", "saddr"), "@live"), x.DROP]
        yield [ours, x.has_mark(VOUCHED, present=False), x.DROP]
        yield [ours, x.direction("reply"), x.connection_status("dnat"), x.set_mark(MAY_PASS)]
        for allowed in self._allowed():
            yield [ours, *allowed, x.set_mark(MAY_PASS)]

    def _allowed(self, *, single_hosts: bool = False) -> Iterable[list[JsonObject]]:
        """The destinations of sandbox.allow."""
        for entry in self.sandbox.allow:
            network, _, port = entry.partition(":")
            addresses = ipaddress.IPv4Network(network)
            if single_hosts and addresses.num_addresses > 1:
                continue
            destination = x.match(x.payload("ip", "daddr"), x.networks([str(addresses)]))
            if not port:
                yield [destination]
            for transport in ("tcp", "udp") if port else ():
                yield [destination, x.match(x.payload(transport, "dport"), int(port))]

    def _limits(self) -> Iterable[list[JsonObject]]:
        limits = self.sandbox.connections_per_minute
        few_open = x.within_count("visits", x.VISITOR, _VISITOR_CONNECTIONS)
        for service, rate in ((Service.SSH, limits.ssh), (Service.WEB, limits.web)):
            within_rate = x.within_rate("rates", x.VISITOR, rate, "minute", burst=rate)
            passed = x.counted_by(PASSED[service])
            yield [x.protocol("tcp"), _leads_to(service), within_rate, few_open, passed, x.RETURN]
        yield [x.protocol("tcp"), x.counted_in("dropped"), x.DROP]
        yield [x.counted_by(UNCOUNTED["dropped"]), x.DROP]

    def _opened_port(self) -> Iterable[list[JsonObject]]:
        leads_here = x.concat(x.HOST_PORT, x.payload("ip", "daddr"), x.payload("tcp", "dport"))
        yield [x.connection_status("dnat", present=False), x.DROP]
        yield [x.match(x.meta("l4proto"), "tcp", "!="), x.DROP]
        # Checked for every packet, so that closing a port also ends its connections.
        yield [x.protocol("tcp"), x.match(leads_here, "@opened", "!="), x.DROP]
        # A repeated SYN counts against the limit once.
        yield [*x.is_first(), x.jump("limits")]
        # Counted with its second packet: a client that forged its address can't send that.
        first = [x.connection_state("established"), x.direction("original"), x.lacks_connection_mark(COUNTED)]
        yield [*first, x.set_connection_mark(COUNTED), x.jump("arrived")]
        yield [x.goto("measured")]

    def _arrived(self) -> Iterable[list[JsonObject]]:
        yield [x.protocol("tcp"), x.counted_in("seen"), x.RETURN]
        yield [x.counted_by(UNCOUNTED["seen"])]

    def _measured(self) -> Iterable[list[JsonObject]]:
        """Counts and accepts packets, in either direction, of a connection to an opened port."""
        yield [x.lacks_connection_mark(COUNTED), x.ACCEPT]
        yield [x.protocol("tcp"), x.counted_in("traffic"), x.ACCEPT]
        yield [x.counted_by(UNCOUNTED["traffic"]), x.ACCEPT]

    def _to_guest(self) -> Iterable[list[JsonObject]]:
        yield [x.match(x.meta("nfproto"), "ipv6"), x.DROP]
        yield [x.match(x.payload("ip", "daddr"), "@live", "!="), x.DROP]
        yield [x.connection_state("invalid"), x.DROP]
        yield [x.protocol("icmp"), x.connection_state("related"), x.ACCEPT]
        yield [x.direction("reply"), x.connection_state("established"), x.ACCEPT]
        if self.access.allow_from:
            allowed = [str(network) for network in ipaddress.collapse_addresses(self.access.allow_from)]
            outside = x.match(x.payload("ip", "saddr"), x.networks(allowed), "!=")
            redirected = [*x.is_first(), x.connection_status("dnat"), x.protocol("tcp")]
            for service, counter in REFUSED.items():
                yield [outside, *redirected, _leads_to(service), x.counted_by(counter), x.DROP]
            yield [outside, x.DROP]
        yield [x.goto("opened_port")]

    def _from_guest(self) -> Iterable[list[JsonObject]]:
        yield [x.match(x.meta("nfproto"), "ipv6"), x.DROP]
        yield [x.connection_state("invalid"), x.DROP]
        yield [x.protocol("tcp"), x.direction("reply"), x.connection_status("dnat"), x.goto("measured")]
        yield [x.has_mark(MAY_PASS), x.goto("starting")]
        yield [x.match(x.payload("ip", "daddr"), x.networks(list(PRIVATE_RANGES))), x.DROP]
        yield [x.goto("starting") if self.sandbox.egress == "internet" else x.DROP]

    def _starting(self) -> Iterable[list[JsonObject]]:
        """Accepts a guest's packets, but drops the first packet of a connection above the limits: such a connection
        never enters the kernel's table."""
        # The rate is checked first, so that a flood does not make the kernel count connections each time.
        within_rate = x.within_rate("starts", _SENDER, _GUEST_STARTS_PER_SECOND, "second", _GUEST_STARTS_BURST)
        yield [*x.is_first(), within_rate, x.within_count("flows", _SENDER, _GUEST_CONNECTIONS), x.ACCEPT]
        yield [*x.is_first(), x.DROP]
        yield [x.ACCEPT]

    def _asking(self) -> Iterable[list[JsonObject]]:
        """Limits a guest's packets to the host's DNS server, whose capacity all guests share."""
        few_open = x.within_count("dns_connections", _SENDER, _DNS_TCP_CONNECTIONS)
        within_rate = x.within_rate("questions", _SENDER, DNS_PER_SECOND, "second", DNS_BURST)
        yield [x.protocol("tcp"), *x.is_first(), within_rate, few_open, x.goto("starting")]
        yield [x.protocol("tcp"), *x.is_first(), x.DROP]
        yield [within_rate, x.ACCEPT]  # a query's entry lasts half a minute, so the rate limits their number, too
        yield [x.DROP]

    def _to_host(self) -> Iterable[list[JsonObject]]:
        yield [x.match(x.meta("nfproto"), "ipv6"), x.DROP]
        yield [x.match(x.payload("udp", "sport"), 68), x.match(x.payload("udp", "dport"), 67), x.ACCEPT]
        if self.sandbox.egress == "internet":
            to_bridge = x.match(x.payload("ip", "daddr"), x.networks([str(self.bridge.subnet)]))
            for transport in ("udp", "tcp"):
                yield [to_bridge, x.match(x.payload(transport, "dport"), 53), x.goto("asking")]
        yield [x.protocol("tcp"), x.direction("reply"), x.connection_status("dnat"), x.goto("measured")]
        yield [x.direction("reply"), x.connection_state("established"), x.ACCEPT]
        yield [x.protocol("icmp"), x.connection_state("related"), x.ACCEPT]
        # Of this host, only an entry with its single address allows access; a network that contains it does not.
        for allowed in self._allowed(single_hosts=True):
            yield [*allowed, x.goto("starting")]
        yield [x.DROP]


def _leads_to(service: Service) -> JsonObject:
    return x.match(x.HOST_PORT, "@ssh_ports", "==" if service is Service.SSH else "!=")


def _looked_up(name: str) -> JsonObject:
    return {"map": {"key": x.payload("tcp", "dport"), "data": f"@{name}"}}
