"""Two classic BPF programs that limit what guests can send to the host while our nftables rules are gone.

They run at the traffic-control ingress hook, which a flush of nftables does not touch. They are stateless: each frame
is checked by itself. Frames that they pass are still checked by our nftables rules, if those are there.

Every load is within a length that was checked before: a load past the frame's end would let the frame pass.
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
"""TC_ACT_UNSPEC: continue with the next filter, if there is one."""
DROP = 2
"""TC_ACT_SHOT"""

_TO_MAC, _FROM_MAC, _ETHERTYPE = 0, 6, 12
_ARP_FROM_MAC, _ARP_FROM_ADDRESS = 22, 28
# An IP header without options begins at byte 14, its payload at byte 34.
_IP_BEGIN, _IP_FRAGMENT, _IP_PROTOCOL, _IP_FROM, _IP_TO = 14, 20, 23, 26, 30
_FROM_PORT, _TO_PORT, _TCP_FLAGS, _ICMP_TYPE = 34, 36, 47, 34
_DHCP_MAC = 70  # RFC 2131: `chaddr`

_SHORTEST_IP, _SHORTEST, _SHORTEST_TCP, _SHORTEST_DHCP = 34, 42, 54, 76
"""Bytes of a frame up to the end of the IP header; of a frame with ARP, UDP or ICMP; with TCP; of one with DHCP up to
the end of the client's MAC."""

_IP, _ARP = 0x0800, 0x0806
_IP_WITHOUT_OPTIONS = 0x45
_IS_FRAGMENT, _IS_LATER_FRAGMENT = 0x3FFF, 0x1FFF  # "more fragments" or an offset; an offset
_ICMP, _TCP, _UDP = 1, 6, 17
_SYN, _ACK = 0x02, 0x10
_DNS, _DHCP_SERVER, _DHCP_CLIENT = 53, 67, 68
_FIRST_EPHEMERAL = 32768
"""The host's own clients use ports from here on (default of net.ipv4.ip_local_port_range): guests may answer them."""
_ECHO_REPLY = 0

MOST_ADDRESSES = 200
"""How many of the host's addresses the bridge's filter tests: a BPF jump spans at most 255 instructions. On a host with
more, only our remaining tables protect the others while some of the tables are missing."""


def bridge_program(bridge: BridgeConfig, protected: Collection[str], *, dns: bool) -> Program:
    """Filter for the bridge's own ingress, which receives everything that guests send to the host or through it.

    Frames that our bridge table marked as genuine pass: the other tables check them. TCP, and UDP below port 32768, to
    one of the `protected` addresses is checked here even with the mark: a flush removes one table after the other, and
    a connection's first packet must not pass in between.

    Frames without the mark (the tables are gone) are checked here, too. Only what can't open a connection to the host
    passes: ARP; DHCP requests; and from an address of the subnet: DNS to the bridge's address (if `dns`), TCP other
    than a connection's first packet, ping replies. Dropped: fragments (the flags may be in another one), IP options,
    VLAN tags, IPv6, ICMP errors.
    """
    gateway = int(bridge.subnet.network_address) + 1
    addresses = sorted(int(ipaddress.IPv4Address(address)) for address in protected)[:MOST_ADDRESSES]
    return assemble(
        load_mark(),
        if_any_bit(VOUCHED, otherwise="check here"),
        load_length(),
        if_at_least(_SHORTEST_IP, otherwise="left to our tables"),
        load_half(_ETHERTYPE),
        if_equal(_IP, otherwise="left to our tables"),
        load_word(_IP_TO),
        *(if_equal(address, then="to the host") for address in addresses),
        "left to our tables",
        end_with(PASS),
        "to the host",
        load_byte(_IP_PROTOCOL),
        if_equal(_TCP, then="check here"),
        if_equal(_UDP, otherwise="pass"),
        load_length(),
        if_at_least(_SHORTEST, otherwise="drop"),
        *_plain_ip(),
        load_half(_TO_PORT),
        if_at_least(_FIRST_EPHEMERAL, then="pass"),
        "check here",
        load_has_vlan_tag(),
        if_equal(0, otherwise="drop"),
        load_length(),
        if_at_least(_SHORTEST, otherwise="drop"),
        load_half(_ETHERTYPE),
        if_equal(_ARP, then="pass"),
        if_equal(_IP, otherwise="drop"),
        *_plain_ip(),
        *_dhcp_request(then="pass", otherwise="no DHCP"),
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

    ARP and IPv4 from its own MAC and address pass, and requests of a DHCP client that has no address yet. A request to
    a DHCP server must name the guest's own MAC; UDP with IP options is dropped, since such a request would be at other
    offsets. A frame to a link-local MAC (01:80:c2:00:00:0X) never passes: the host would receive it on the tap, past
    the bridge's own filter.
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
        if_equal(address, then="own address"),
        if_equal(0, otherwise="drop"),
        *_dhcp_request(then="dhcp", otherwise="drop"),
        "own address",
        load_byte(_IP_PROTOCOL),
        if_equal(_UDP, otherwise="pass"),
        load_byte(_IP_BEGIN),
        if_equal(_IP_WITHOUT_OPTIONS, otherwise="drop"),
        load_half(_IP_FRAGMENT),
        if_any_bit(_IS_LATER_FRAGMENT, then="pass"),
        load_half(_TO_PORT),
        if_equal(_DHCP_SERVER, otherwise="pass"),
        "dhcp",
        *_plain_ip(),
        load_length(),
        if_at_least(_SHORTEST_DHCP, otherwise="drop"),
        load_word(_DHCP_MAC),
        if_equal(first, otherwise="drop"),
        load_half(_DHCP_MAC + 4),
        if_equal(last, then="pass"),
        "drop",
        end_with(DROP),
        "pass",
        end_with(PASS),
    )


def _plain_ip() -> list[Instruction]:
    """Drops fragments, and headers with options: ports and flags would be at other offsets."""
    return [
        load_byte(_IP_BEGIN),
        if_equal(_IP_WITHOUT_OPTIONS, otherwise="drop"),
        load_half(_IP_FRAGMENT),
        if_any_bit(_IS_FRAGMENT, then="drop"),
    ]


def _dhcp_request(*, then: str, otherwise: str) -> list[Instruction]:
    """Jumps to `then` for packets from a DHCP client's port to a DHCP server's; to `otherwise` for all others."""
    return [
        load_byte(_IP_PROTOCOL),
        if_equal(_UDP, otherwise=otherwise),
        load_half(_FROM_PORT),
        if_equal(_DHCP_CLIENT, otherwise=otherwise),
        load_half(_TO_PORT),
        if_equal(_DHCP_SERVER, then=then, otherwise=otherwise),
    ]
