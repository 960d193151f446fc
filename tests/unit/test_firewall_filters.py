"""What the ingress filters let pass, frame by frame, and the assembler that writes them."""

from __future__ import annotations

import random
from ipaddress import IPv4Network

import pytest

from ravebot.access.nftables.bpf import assemble, bytecode, end_with, if_equal, load_byte, load_half, load_word
from ravebot.access.nftables.filters import DROP, PASS, bridge_program, guest_program
from ravebot.access.nftables.ruleset import MAY_PASS, VOUCHED
from ravebot.access.rules import Guest
from ravebot.config.model import BridgeConfig
from tests.support import bpf
from tests.support.frames import (
    ACK,
    ARP,
    CWR,
    ECE,
    FIN,
    ICMP,
    IP,
    IPV6,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    URG,
    arp,
    bootp,
    ethernet,
    fragmented,
    icmp,
    ipv4,
    ipv6,
    tcp,
    udp,
)  # fmt: skip

GUEST, OTHER, GATEWAY, UPLINK, INTERNET = "10.80.0.2", "10.80.0.3", "10.80.0.1", "203.0.113.1", "198.51.100.2"
MAC, OTHER_MAC, HOST_MAC = "52:54:00:00:01:02", "52:54:00:00:01:03", "02:00:00:00:00:01"
BROADCAST = "ff:ff:ff:ff:ff:ff"
BRIDGE = BridgeConfig(name="rb0", subnet=IPv4Network("10.80.0.0/24"))
ON_BRIDGE = bytecode(bridge_program(BRIDGE, [GATEWAY, UPLINK], dns=True))
ON_BRIDGE_WITHOUT_DNS = bytecode(bridge_program(BRIDGE, [GATEWAY, UPLINK], dns=False))
ON_TAP = bytecode(guest_program(Guest("tap2", MAC, GUEST)))


def passes(program: str, frame: bytes, *, mark: int = 0, vlan: bool = False) -> bool:
    found = bpf.verdict(program, frame, mark=mark, vlan=vlan)
    assert found in (PASS, DROP)
    return found == PASS


def packet(payload: bytes, to: str = HOST_MAC, sender: str = MAC, ethertype: int = IP) -> bytes:
    return ethernet(to, sender, ethertype, payload)


def tcp_of(flags: int, target: str = GATEWAY, port: int = 80, source: str = GUEST) -> bytes:
    return packet(ipv4(source, target, TCP, tcp(source, target, 22, port, flags)))


def udp_of(source_port: int, port: int, target: str = GATEWAY, source: str = GUEST) -> bytes:
    return packet(ipv4(source, target, UDP, udp(source, target, source_port, port, b"question")))


def icmp_of(kind: int, source: str = GUEST) -> bytes:
    return packet(ipv4(source, GATEWAY, ICMP, icmp(kind)))


WITH_OPTIONS = packet(ipv4(GUEST, GATEWAY, TCP, tcp(GUEST, GATEWAY, 22, 80, ACK), options=b"\1\1\1\1"))


def dhcp(client: str = MAC, source: str = "0.0.0.0", port: int = 68, options: bytes = b"") -> bytes:
    datagram = udp(source, "255.255.255.255", port, 67, bootp(client))
    return packet(ipv4(source, "255.255.255.255", UDP, datagram, options=options))


DHCP = dhcp()


@pytest.mark.parametrize(
    "frame",
    [
        tcp_of(SYN, target=INTERNET),
        udp_of(5000, 123, target=INTERNET),
        udp_of(5000, 32768),
        icmp_of(8),
        packet(b"x", ethertype=0x88B5),
        b"",
        *(packet(part) for part in fragmented(GUEST, INTERNET, TCP, tcp(GUEST, INTERNET, 22, 80, SYN))),
    ],
)
def test_what_our_rules_vouched_for_passes_the_bridge_and_is_theirs_to_judge(frame: bytes) -> None:
    assert passes(ON_BRIDGE, frame, mark=VOUCHED | MAY_PASS)


@pytest.mark.parametrize("target", [GATEWAY, UPLINK])
def test_tcp_and_udp_to_the_hosts_addresses_are_judged_here_in_any_case(target: str) -> None:
    assert not passes(ON_BRIDGE, tcp_of(SYN, target), mark=VOUCHED)
    assert passes(ON_BRIDGE, tcp_of(ACK, target), mark=VOUCHED)
    assert passes(ON_BRIDGE, tcp_of(SYN, target, port=53), mark=VOUCHED) == (target == GATEWAY)
    for part in fragmented(GUEST, target, TCP, tcp(GUEST, target, 22, 80, SYN)):
        assert not passes(ON_BRIDGE, packet(part), mark=VOUCHED)
    for protocol, payload in ((TCP, tcp(GUEST, target, 22, 80, SYN)), (UDP, udp(GUEST, target, 22, 40_000, b"x"))):
        with_options = packet(ipv4(GUEST, target, protocol, payload, options=b"\1\1\1\1"))
        assert not passes(ON_BRIDGE, with_options, mark=VOUCHED)
    assert passes(ON_BRIDGE, udp_of(68, 67, target), mark=VOUCHED)
    assert passes(ON_BRIDGE, udp_of(5000, 53, target), mark=VOUCHED) == (target == GATEWAY)
    for port in (1, 123, 32767):
        assert not passes(ON_BRIDGE, udp_of(53, port, target), mark=VOUCHED)
    for part in fragmented(GUEST, target, UDP, udp(GUEST, target, 53, 40_000, b"x" * 8)):
        assert not passes(ON_BRIDGE, packet(part), mark=VOUCHED)


def test_a_host_of_very_many_addresses_has_a_program_too() -> None:
    many = bytecode(bridge_program(BRIDGE, [f"192.0.{n // 250}.{n % 250}" for n in range(1000)], dns=True))
    assert not passes(many, tcp_of(SYN, "192.0.0.7"), mark=VOUCHED)
    assert passes(many, tcp_of(SYN, INTERNET), mark=VOUCHED)
    assert not passes(many, tcp_of(SYN, INTERNET))


@pytest.mark.parametrize(
    "frame",
    [
        packet(arp(MAC, GUEST, GATEWAY), to=BROADCAST, ethertype=ARP),
        DHCP,
        udp_of(68, 67),
        udp_of(5000, 53),
        tcp_of(SYN, port=53),
        *(tcp_of(flags) for flags in (SYN | ACK, ACK, ACK | PSH, ACK | FIN, RST, RST | ACK)),
        tcp_of(ACK, target=INTERNET),
        icmp_of(0),
    ],
)
def test_what_can_open_no_port_of_the_hosts_passes_without_our_rules(frame: bytes) -> None:
    assert passes(ON_BRIDGE, frame)
    assert not passes(ON_BRIDGE, frame, vlan=True)


@pytest.mark.parametrize("target", [GATEWAY, UPLINK, INTERNET])
@pytest.mark.parametrize("more", [0, FIN, PSH, URG, ECE | CWR, RST, FIN | PSH | URG | RST | ECE | CWR])
def test_no_first_packet_of_a_connection_passes_whatever_other_flags_it_has(target: str, more: int) -> None:
    assert not passes(ON_BRIDGE, tcp_of(SYN | more, target))


@pytest.mark.parametrize(
    "frame",
    [
        tcp_of(SYN, port=53, target=UPLINK),
        udp_of(5000, 123),
        udp_of(53, 123),
        udp_of(68, 123),
        udp_of(5000, 67),
        udp_of(5000, 53, target=UPLINK),
        udp_of(5000, 53, source="10.81.0.2"),
        tcp_of(ACK, source=INTERNET),
        *(icmp_of(kind) for kind in (3, 5, 8, 11, 12)),
        icmp_of(0, source=INTERNET),
        WITH_OPTIONS,
        *(packet(part) for part in fragmented(GUEST, GATEWAY, TCP, tcp(GUEST, GATEWAY, 22, 80, ACK))),
        *(packet(part) for part in fragmented(GUEST, GATEWAY, UDP, udp(GUEST, GATEWAY, 68, 67, b"x" * 8))),
        packet(ipv4(GUEST, GATEWAY, 4, ipv4(GUEST, GATEWAY, UDP, udp(GUEST, GATEWAY, 5000, 53, b"")))),
        packet(ipv6("fe80::2", "fe80::1", UDP, udp("fe80::2", "fe80::1", 5000, 53, b"x")), ethertype=IPV6),
        packet(ipv6("fe80::2", "fe80::1", TCP, tcp("fe80::2", "fe80::1", 22, 80, ACK)), ethertype=IPV6),
        ethernet(HOST_MAC, MAC, IP, ipv4(GUEST, GATEWAY, TCP, tcp(GUEST, GATEWAY, 22, 80, ACK)), 0),
        packet(b"\0" * 50, ethertype=0x88B5),
    ],
)
def test_nothing_else_passes_the_bridge_without_our_rules(frame: bytes) -> None:
    assert not passes(ON_BRIDGE, frame)
    assert not passes(ON_BRIDGE, frame, mark=MAY_PASS)


def test_without_egress_dns_does_not_pass_either_and_dhcp_does() -> None:
    assert not passes(ON_BRIDGE_WITHOUT_DNS, udp_of(5000, 53))
    assert not passes(ON_BRIDGE_WITHOUT_DNS, tcp_of(SYN, port=53))
    assert passes(ON_BRIDGE_WITHOUT_DNS, DHCP)
    assert passes(ON_BRIDGE_WITHOUT_DNS, tcp_of(ACK))


@pytest.mark.parametrize(
    "frame",
    [
        packet(arp(MAC, GUEST, GATEWAY), to=BROADCAST, ethertype=ARP),
        DHCP,
        dhcp(source=GUEST),
        dhcp(source=GUEST, port=5000),
        tcp_of(SYN),
        udp_of(5000, 123, target=INTERNET),
        icmp_of(8),
        WITH_OPTIONS,
        *(packet(part) for part in fragmented(GUEST, INTERNET, UDP, b"12345678" * 3)),
    ],
)
def test_a_guests_own_frames_pass_its_tap(frame: bytes) -> None:
    assert passes(ON_TAP, frame)
    assert not passes(ON_TAP, frame, vlan=True)
    assert not passes(ON_TAP, frame[:6] + bytes.fromhex(OTHER_MAC.replace(":", "")) + frame[12:])


@pytest.mark.parametrize(
    "frame",
    [
        *(tcp_of(ACK, source=source) for source in (OTHER, GATEWAY, INTERNET, "0.0.0.0", "127.0.0.1")),
        dhcp(OTHER_MAC),
        dhcp(OTHER_MAC, GUEST),
        dhcp(OTHER_MAC, GUEST, port=5000),
        dhcp(source=GUEST, options=b"\1\1\1\1"),
        dhcp(port=5000),
        *(packet(ipv4(GUEST, GATEWAY, UDP, udp(GUEST, GATEWAY, 68, 67, bootp(MAC)[:size]))) for size in (0, 28, 33)),
        packet(fragmented(GUEST, GATEWAY, UDP, udp(GUEST, GATEWAY, 68, 67, bootp(MAC)))[0]),
        udp_of(5000, 67, source="0.0.0.0"),
        udp_of(68, 123, source="0.0.0.0"),
        *(packet(part) for part in fragmented("0.0.0.0", GATEWAY, UDP, udp("0.0.0.0", GATEWAY, 68, 67, b"x" * 8))),
        packet(arp(MAC, OTHER, GATEWAY), ethertype=ARP),
        packet(arp(OTHER_MAC, GUEST, GATEWAY), ethertype=ARP),
        packet(ipv6("fe80::2", "fe80::1", UDP, udp("fe80::2", "fe80::1", 5000, 53, b"x")), ethertype=IPV6),
        packet(b"\0" * 50, ethertype=0x88B5),
        *(
            packet(ipv4(GUEST, GATEWAY, UDP, udp(GUEST, GATEWAY, 5000, 123, b"x")), to=f"01:80:c2:00:00:{last:02x}")
            for last in range(16)
        ),
    ],
)
def test_no_frame_in_another_name_or_past_the_bridge_passes_a_tap(frame: bytes) -> None:
    assert not passes(ON_TAP, frame)


def test_a_multicast_mac_that_the_bridge_passes_on_is_judged_by_the_rest() -> None:
    assert passes(ON_TAP, packet(ipv4(GUEST, GATEWAY, UDP, b"12345678"), to="01:80:c2:00:00:10"))
    assert passes(ON_TAP, packet(ipv4(GUEST, GATEWAY, UDP, b"12345678"), to="01:80:c2:00:01:00"))


@pytest.mark.parametrize("program", [ON_BRIDGE, ON_BRIDGE_WITHOUT_DNS, ON_TAP])
def test_a_frame_that_is_cut_off_anywhere_passes_by_no_load_past_its_end(program: str) -> None:
    whole = [DHCP, WITH_OPTIONS, tcp_of(SYN, port=53), tcp_of(ACK), udp_of(5000, 53), udp_of(68, 67), icmp_of(0)]
    whole.append(packet(arp(MAC, GUEST, GATEWAY), to=BROADCAST, ethertype=ARP))
    chance = random.Random(4711)
    for frame in whole:
        for length in range(len(frame)):
            bpf.verdict(program, frame[:length])  # raises OutOfBounds
            bpf.verdict(program, frame[:length], mark=VOUCHED)
            assert length >= 42 or not passes(program, frame[:length])
        for _ in range(200):
            broken = bytearray(frame)
            broken[chance.randrange(12, len(frame))] = chance.randrange(256)
            bpf.verdict(program, bytes(broken[: chance.randrange(len(frame) + 1)]), mark=chance.choice([0, VOUCHED]))
    assert not passes(ON_BRIDGE, tcp_of(ACK)[:53])


def test_labels_become_distances_and_the_text_is_what_tc_takes() -> None:
    program = assemble(
        load_half(12), if_equal(0x0800, otherwise="no"), load_word(26), if_equal(1, then="yes"),
        "no", end_with(2), "yes", load_byte(0), end_with(0),
    )  # fmt: skip
    text = bytecode(program)
    assert text == "7,40 0 0 12,21 0 2 2048,32 0 0 26,21 1 0 1,6 0 0 2,48 0 0 0,6 0 0 0"
    assert bpf.verdict(text, bytes(12) + b"\x08\x00" + bytes(12) + b"\0\0\0\1") == 0
    assert bpf.verdict(text, bytes(12) + b"\x08\x00" + bytes(12) + b"\0\0\0\2") == 2


@pytest.mark.parametrize(
    "parts",
    [
        (if_equal(1, then="nowhere"), end_with(0)),
        ("back", if_equal(1, then="back"), end_with(0)),
        (if_equal(1, then="far"), *[load_byte(0)] * 256, "far", end_with(0)),
        ("twice", "twice", end_with(0)),
    ],
)
def test_a_jump_that_can_not_be_made_is_refused(parts: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=r"jump|twice"):
        assemble(*parts)  # type: ignore[arg-type]
