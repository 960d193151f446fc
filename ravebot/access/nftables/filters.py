"""What passes from the guests to the host while our nftables rules are gone: two classic BPF programs.

They run at the traffic-control ingress hook, which a flush of nftables leaves alone. They know nothing of connections:
each frame is judged by itself. What they let pass is still judged by nftables, where its rules are.

Every load lies within a length that was checked before it: a load past the frame's end would let the frame pass.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from ravebot.access.nftables.bpf import (
    Instruction,
    Program,
    assemble,
    end_with,
    if_any_bit,
    if_at_least,
    if_equal,
    keep_bits,
    load_byte,
    load_half,
    load_has_vlan_tag,
    load_length,
    load_mark,
    load_word,
)
from ravebot.access.nftables.ruleset import VOUCHED
from ravebot.access.rules import Guest
from ravebot.config.model import BridgeConfig

PASS = 0xFFFFFFFF
"""TC_ACT_UNSPEC: go on to the next filter, if somebody has one there."""
DROP = 2
"""TC_ACT_SHOT"""

_TO_MAC, _FROM_MAC, _ETHERTYPE = 0, 6, 12
_ARP_FROM_MAC, _ARP_FROM_ADDRESS = 22, 28
# The IP header without options begins at 14, what it carries at 34.
_IP_BEGIN, _IP_FRAGMENT, _IP_PROTOCOL, _IP_FROM, _IP_TO = 14, 20, 23, 26, 30
_FROM_PORT, _TO_PORT, _TCP_FLAGS, _ICMP_TYPE = 34, 36, 47, 34

_SHORTEST_IP, _SHORTEST, _SHORTEST_TCP = 34, 42, 54
"""Bytes of a frame up to the end of the IP header; of one with ARP, UDP or ICMP, and of one with TCP."""

_IP, _ARP = 0x0800, 0x0806
_IP_WITHOUT_OPTIONS = 0x45
_IS_FRAGMENT = 0x3FFF  # "more fragments", or an offset
_ICMP, _TCP, _UDP = 1, 6, 17
_SYN, _ACK = 0x02, 0x10
_DNS, _DHCP_SERVER, _DHCP_CLIENT = 53, 67, 68
_FIRST_EPHEMERAL = 32768
"""The host's own clients use ports from here on (default of net.ipv4.ip_local_port_range), so guests may answer to
them."""
_ECHO_REPLY = 0

MOST_ADDRESSES = 200
"""Addresses of the host that the bridge's filter tests; a BPF jump spans at most 255 instructions. On a host with more,
the remaining ones are protected by the nftables tables alone while only some of those are missing."""


def bridge_program(bridge: BridgeConfig, shut: Collection[str], *, dns: bool) -> Program:
    """For the bridge's own ingress, through which goes all that guests send to the host or through it.

    Frames that our bridge table marked as genuine pass; the other tables judge them. TCP, and UDP below port 32768, to
    one of the `shut` addresses is judged here even with the mark: a flush removes one table after the other, and a
    first packet must not slip through in between.

    Frames without the mark (the tables are gone) are judged here too. Only what can't open a port of the host passes:
    ARP; DHCP requests; and from an address of the subnet: DNS to the bridge's address (if `dns`), TCP other than a
    connection's first packet, ping replies. Dropped: fragments (the flags may be in another one), IP options, VLAN
    tags, IPv6, ICMP errors.
    """
    gateway = int(bridge.subnet.network_address) + 1
    addresses = sorted(int(ipaddress.IPv4Address(address)) for address in shut)[:MOST_ADDRESSES]
    return assemble(
        load_mark(),
        if_any_bit(VOUCHED, otherwise="judged here"),
        load_length(),
        if_at_least(_SHORTEST_IP, otherwise="judged by our tables"),
        load_half(_ETHERTYPE),
        if_equal(_IP, otherwise="judged by our tables"),
        load_word(_IP_TO),
        *(if_equal(address, then="to the host") for address in addresses),
        "judged by our tables",
        end_with(PASS),
        "to the host",
        load_byte(_IP_PROTOCOL),
        if_equal(_TCP, then="judged here"),
        if_equal(_UDP, otherwise="pass"),
        load_length(),
        if_at_least(_SHORTEST, otherwise="drop"),
        *_plain_ip(),
        load_half(_TO_PORT),
        if_at_least(_FIRST_EPHEMERAL, then="pass"),
        "judged here",
        load_has_vlan_tag(),
        if_equal(0, otherwise="drop"),
        load_length(),
        if_at_least(_SHORTEST, otherwise="drop"),
        load_half(_ETHERTYPE),
        if_equal(_ARP, then="pass"),
        if_equal(_IP, otherwise="drop"),
        *_plain_ip(),
        *_dhcp_request(otherwise="no DHCP"),
        "no DHCP",
        load_word(_IP_FROM),
        keep_bits(int(bridge.subnet.netmask)),
        if_equal(int(bridge.subnet.network_address), otherwise="drop"),
        load_byte(_IP_PROTOCOL),
        if_equal(_TCP, then="tcp"),
        if_equal(_UDP, then="dns"),
        if_equal(_ICMP, otherwise="drop"),
        load_byte(_ICMP_TYPE),
        if_equal(_ECHO_REPLY, then="pass", otherwise="drop"),
        "tcp",
        load_length(),
        if_at_least(_SHORTEST_TCP, otherwise="drop"),
        load_byte(_TCP_FLAGS),
        keep_bits(_SYN | _ACK),
        if_equal(_SYN, otherwise="pass"),
        "dns",
        *(
            [
                load_half(_TO_PORT),
                if_equal(_DNS, otherwise="drop"),
                load_word(_IP_TO),
                if_equal(gateway, then="pass"),
            ]
            if dns
            else []
        ),
        "drop",
        end_with(DROP),
        "pass",
        end_with(PASS),
    )


def guest_program(guest: Guest) -> Program:
    """Filter for a guest's tap: passes only frames with the guest's own MAC and address, like our bridge table.

    What passes is ARP and IPv4 from its own MAC and address, and a DHCP client that has no address yet. A frame to a
    link-local MAC (01:80:c2:00:00:0X) never does: it would come up at the tap, past the bridge's own filter.
    """
    mac = bytes.fromhex(guest.mac.replace(":", ""))
    first, last = int.from_bytes(mac[:4]), int.from_bytes(mac[4:])
    address = int(ipaddress.IPv4Address(guest.address))
    return assemble(
        load_has_vlan_tag(),
        if_equal(0, otherwise="drop"),
        load_length(),
        if_at_least(_SHORTEST, otherwise="drop"),
        load_word(_FROM_MAC),
        if_equal(first, otherwise="drop"),
        load_half(_FROM_MAC + 4),
        if_equal(last, otherwise="drop"),
        load_word(_TO_MAC),
        if_equal(0x0180C200, otherwise="to a usual MAC"),
        load_half(_TO_MAC + 4),
        keep_bits(0xFFF0),
        if_equal(0, then="drop"),
        "to a usual MAC",
        load_half(_ETHERTYPE),
        if_equal(_IP, then="ip"),
        if_equal(_ARP, otherwise="drop"),
        load_word(_ARP_FROM_MAC),
        if_equal(first, otherwise="drop"),
        load_half(_ARP_FROM_MAC + 4),
        if_equal(last, otherwise="drop"),
        load_word(_ARP_FROM_ADDRESS),
        if_equal(address, then="pass", otherwise="drop"),
        "ip",
        load_word(_IP_FROM),
        if_equal(address, then="pass"),
        if_equal(0, otherwise="drop"),
        *_plain_ip(),
        *_dhcp_request(otherwise="drop"),
        "drop",
        end_with(DROP),
        "pass",
        end_with(PASS),
    )


def _plain_ip() -> list[Instruction]:
    """Drops fragments, and headers with options: behind those, ports and flags stand elsewhere."""
    return [
        load_byte(_IP_BEGIN),
        if_equal(_IP_WITHOUT_OPTIONS, otherwise="drop"),
        load_half(_IP_FRAGMENT),
        if_any_bit(_IS_FRAGMENT, then="drop"),
    ]


def _dhcp_request(*, otherwise: str) -> list[Instruction]:
    """Passes a DHCP client's packets. What goes to another UDP port than the server's goes on behind these."""
    return [
        load_byte(_IP_PROTOCOL),
        if_equal(_UDP, otherwise=otherwise),
        load_half(_FROM_PORT),
        if_equal(_DHCP_CLIENT, otherwise=otherwise),
        load_half(_TO_PORT),
        if_equal(_DHCP_SERVER, then="pass", otherwise=otherwise),
    ]
