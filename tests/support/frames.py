"""Ethernet frames for tests, byte by byte, including frames that no normal kernel sends."""

from __future__ import annotations

import socket
import struct

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
ARP, IP, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
ICMP, TCP, UDP = 1, 6, 17


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(to: str, sender: str, ethertype: int, payload: bytes, *tags: int) -> bytes:
    """`tags` are VLAN numbers, the outermost first."""
    tagged = b"".join(struct.pack("!HH", VLAN, tag) for tag in tags)
    return mac(to) + mac(sender) + tagged + struct.pack("!H", ethertype) + payload


def arp(sender_mac: str, sender: str, target: str) -> bytes:
    """A question for the target's MAC."""
    head = bytes.fromhex("0001080006040001")
    return head + mac(sender_mac) + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)


def ipv4(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    offset: int = 0,
    more: bool = False,
) -> bytes:
    """`offset` of a fragment in bytes; `more` fragments follow."""
    length = 20 + len(options) + len(payload)
    fragment = (0x2000 if more else 0) | offset // 8
    first = (0x40 | (20 + len(options)) // 4, 0, length, 4711, fragment, 64, protocol)
    head = struct.pack("!BBHHHBBH", *first, 0) + socket.inet_aton(source) + socket.inet_aton(target) + options
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + payload


def fragmented(source: str, target: str, protocol: int, payload: bytes) -> tuple[bytes, ...]:
    """In pieces of 8 bytes."""
    return tuple(
        ipv4(source, target, protocol, payload[at : at + 8], offset=at, more=at + 8 < len(payload))
        for at in range(0, len(payload), 8)
    )


def ipv6(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64)
    return head + _packed(source) + _packed(target) + payload


def tcp(source: str, target: str, source_port: int, port: int, flags: int) -> bytes:
    head = struct.pack("!HHIIBBHHH", source_port, port, 1000, 1 if flags & ACK else 0, 0x50, flags, 1024, 0, 0)
    return head[:16] + struct.pack("!H", _checksum(_pseudo(source, target, TCP, head))) + head[18:]


def udp(source: str, target: str, source_port: int, port: int, payload: bytes) -> bytes:
    head = struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload
    return head[:6] + struct.pack("!H", _checksum(_pseudo(source, target, UDP, head)) or 0xFFFF) + head[8:]


def bootp(client_mac: str) -> bytes:
    """A DHCP client's message without options, as RFC 2131 lays it out; the fields of no interest are 0."""
    return bytes.fromhex("0101060000004711") + bytes(20) + mac(client_mac) + bytes(10 + 64 + 128)


def icmp(kind: int, identifier: int = 1) -> bytes:
    head = struct.pack("!BBHHH", kind, 0, 0, identifier, 1) + b"12345678"
    return head[:2] + struct.pack("!H", _checksum(head)) + head[4:]


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _pseudo(source: str, target: str, protocol: int, segment: bytes) -> bytes:
    if ":" in source:
        return _packed(source) + _packed(target) + struct.pack("!II", len(segment), protocol) + segment
    return _packed(source) + _packed(target) + struct.pack("!HH", protocol, len(segment)) + segment


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
