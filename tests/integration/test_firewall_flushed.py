"""After someone's flush of nftables, and with nobody to repair it, a guest opens no port of the host's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.integration.test_firewall_isolation import FORGE_ARP, LINK_LOCAL, SEND_FROM, answer, ask, learned, neighbours
from tests.support.firewall import firewall_of, rules_of
from tests.support.frames import (
    ACK,
    CWR,
    ECE,
    FIN,
    ICMP,
    IP,
    IPV6,
    PSH,
    SYN,
    TCP,
    UDP,
    URG,
    bootp,
    ethernet,
    fragmented,
    icmp,
    ipv4,
    ipv6,
    tcp,
    udp,
)  # fmt: skip
from tests.support.netns import GuestMachine, HeldConnection, Router

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

# Sends every trick's frames, and says for which of them a SYN+ACK or an echo reply came back: told by the TCP port that
# it went out from, or the echo's identifier.
TRY = """
import json, socket, sys, time
tricks = json.load(sys.stdin)
def key(frame):
    ip, protocol = (14 + 20, frame[23]) if frame[12:14] == b"\\x08\\x00" else (14 + 40, frame[20])
    if protocol == 6 and frame[ip + 13] & 0x12 == 0x12:
        return int.from_bytes(frame[ip + 2 : ip + 4], "big")
    if protocol == 1 and frame[ip] == 0:
        return int.from_bytes(frame[ip + 4 : ip + 6], "big")
answered = set()
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:
    raw.bind(("eth0", 3))
    for frames in tricks.values():
        for frame in frames:
            raw.send(bytes.fromhex(frame))
    end = time.monotonic() + 0.5
    while (left := end - time.monotonic()) > 0:
        raw.settimeout(left)
        try:
            frame, where = raw.recvfrom(2000)
        except TimeoutError:
            break
        if where[2] != socket.PACKET_OUTGOING and frame[12:14] in (b"\\x08\\x00", b"\\x86\\xdd"):
            answered.add(key(frame))
print(json.dumps(list(answered - {None})))
"""

# Says what it hears in UDP, over IPv4 and IPv6.
HEAR = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
    server.bind(("::", int(sys.argv[1])))
    print("listening", flush=True)
    while True:
        print(server.recv(100).decode(), flush=True)
"""
SAY_END = "import socket, sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'end', ('127.0.0.1', 123))"

TCP_PORT, UDP_PORT = 8080, 123
GUEST_IPV6, HOST_IPV6, TAP_IPV6 = "fe80::2", "fe80::1", "fe80::3"
EVERYONES_MAC = "ff:ff:ff:ff:ff:ff"


class Tricks:
    """What a hostile guest sends to reach TCP_PORT or UDP_PORT of the host, or to have its ping answered."""

    def __init__(self, guest_mac: str = "", host_mac: str = "") -> None:
        self._guest_mac = guest_mac or EVERYONES_MAC
        self._host_mac = host_mac or EVERYONES_MAC
        self._own = "10.80.0.2"
        self.frames: dict[str, list[bytes]] = {}
        self.keys: dict[int, str] = {}
        for where, target in (("bridge", "10.80.0.1"), ("uplink", "203.0.113.1"), ("LAN", "192.168.77.1")):
            self._tcp(f"TCP to the {where} address", target)
            self._udp(f"UDP to the {where} address", target)
            self._send(f"ping to the {where} address", ipv4(self._own, target, ICMP, icmp(8, self._key())))
        for port in (53, 67, 68):
            self._udp(f"UDP from port {port}", source_port=port)
        for port in (22, 53):
            self._tcp(f"TCP from port {port}", source_port=port)
        for name, flags in (("FIN", FIN), ("PSH and URG", PSH | URG), ("ECE and CWR", ECE | CWR), ("ACK", ACK)):
            self._tcp(f"SYN with {name}", flags=SYN | flags)
        self._tcp("TCP with IP options", options=b"\1\1\1\1")
        port = self._key()
        self._send("TCP in fragments", *fragmented(self._own, "10.80.0.1", TCP, self._first(port)))
        datagram = udp(self._own, "10.80.0.1", 5000, UDP_PORT, b"UDP in fragments")
        self._send("UDP in fragments", *fragmented(self._own, "10.80.0.1", UDP, datagram))
        for tags in ((0,), (5,), (0, 0), (5, 5)):
            self._udp(f"UDP with VLAN tags {tags}", tags=tags)
            self._tcp(f"TCP with VLAN tags {tags}", tags=tags)
        self._udp("UDP as another guest", source="10.80.0.3")
        self._udp("UDP as the internet", source="198.51.100.2")
        self._udp("UDP to everyone's MAC", to=EVERYONES_MAC)
        self._udp("UDP to everyone", "255.255.255.255", to=EVERYONES_MAC)
        for mac in LINK_LOCAL:
            for target in ("10.80.0.1", "192.168.77.1"):
                self._udp(f"UDP to {target} past the bridge by {mac}", target, to=mac)
        for where, target, to in (("bridge", HOST_IPV6, ""), ("tap", TAP_IPV6, LINK_LOCAL[-1])):
            name = f"UDP over IPv6 to the {where}"
            datagram = udp(GUEST_IPV6, target, 5000, UDP_PORT, name.encode())
            self._send(name, ipv6(GUEST_IPV6, target, UDP, datagram), to=to, ethertype=IPV6)
        segment = tcp(GUEST_IPV6, HOST_IPV6, self._key(), TCP_PORT, SYN)
        self._send("TCP over IPv6 to the bridge", ipv6(GUEST_IPV6, HOST_IPV6, TCP, segment), ethertype=IPV6)

    def _key(self) -> int:
        return 10_000 + len(self.frames)

    def _first(self, port: int, target: str = "10.80.0.1", flags: int = SYN) -> bytes:
        return tcp(self._own, target, port, TCP_PORT, flags)

    def _tcp(
        self, name: str, target: str = "10.80.0.1", *, flags: int = SYN, source_port: int = 0, options: bytes = b"",
        tags: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        segment = self._first(source_port or self._key(), target, flags)
        self._send(name, ipv4(self._own, target, TCP, segment, options=options), key=source_port, tags=tags)

    def _udp(
        self, name: str, target: str = "10.80.0.1", *, source: str = "", source_port: int = 5000, to: str = "",
        tags: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        source = source or self._own
        datagram = udp(source, target, source_port, UDP_PORT, name.encode())
        self._send(name, ipv4(source, target, UDP, datagram), to=to, tags=tags)

    def _send(
        self, name: str, *packets: bytes, to: str = "", ethertype: int = IP, tags: tuple[int, ...] = (), key: int = 0
    ) -> None:
        self.keys[key or self._key()] = name
        self.frames[name] = [
            ethernet(to or self._host_mac, self._guest_mac, ethertype, packet, *tags) for packet in packets
        ]


TRICKS = tuple(Tricks().frames)
CLOSED_BY_THE_KERNEL = {
    "SYN with FIN", "SYN with ACK",
    "UDP with VLAN tags (5,)", "UDP with VLAN tags (5, 5)", "TCP with VLAN tags (5,)", "TCP with VLAN tags (5, 5)",
}  # fmt: skip
PAST_THE_BRIDGE = {
    name
    for name in TRICKS
    if "to the tap" in name or any(f"past the bridge by {mac}" in name for mac in LINK_LOCAL[1:])
}  # the first of these MACs is the spanning tree protocol's: without that, a bridge takes it for a usual one


@dataclass
class World:
    """A router with two guests and with ports on the host that no guest should reach."""

    router: Router
    guest: GuestMachine
    other: GuestMachine
    tricks: Tricks
    hears: subprocess.Popen[str]

    def reached(self) -> set[str]:
        """By which tricks the guest reaches the host now."""
        sent = {name: [frame.hex() for frame in frames] for name, frames in self.tricks.frames.items()}
        done = self.guest.namespace.run([sys.executable, "-c", TRY], stdin=json.dumps(sent), check=True)
        self.router.host.run([sys.executable, "-c", SAY_END], check=True)
        output = self.hears.stdout
        assert output is not None
        heard = set(iter(lambda: output.readline().strip(), "end"))
        return heard | {self.tricks.keys[key] for key in json.loads(done.stdout)}


def made(router: Router) -> World:
    guest, other = router.guest(2), router.guest(3)
    host = router.host
    # The kernel's default. On a host that sets it, the kernel's own look at the sender would stop some of this.
    for interface in ("all", guest.tap, router.bridge):
        host.run(["sysctl", "-q", "-w", f"net.ipv4.conf.{interface}.rp_filter=0"], check=True)
    for namespace, device, address in (
        (guest.namespace, "eth0", GUEST_IPV6), (host, router.bridge, HOST_IPV6), (host, guest.tap, TAP_IPV6),
    ):  # fmt: skip
        namespace.ip("addr", "add", f"{address}/64", "dev", device, "nodad")
    for everywhere in ("0.0.0.0", "::"):
        host.serve(TCP_PORT, "host", everywhere)
    hears = host.start([sys.executable, "-c", HEAR, str(UDP_PORT)])
    assert hears.stdout is not None and hears.stdout.readline() == "listening\n", hears.communicate()
    guest.namespace.serve(22, "ssh")
    other.namespace.serve(22, "other")
    mac = host.run(["cat", f"/sys/class/net/{router.bridge}/address"], check=True).stdout.strip()
    for address in (router.gateway, f"{HOST_IPV6}%eth0"):  # both know each other's MAC from here on
        assert guest.namespace.connect(address, TCP_PORT) is not None
    return World(router, guest, other, Tricks(guest.mac, mac), hears)


@dataclass
class Flushed:
    """The world after the flush; what the guest reached before there were rules, and what it reaches."""

    world: World
    before: set[str]
    after: set[str]
    held: HeldConnection  # from the host to the guest, since before the flush


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flushed() -> AsyncIterator[Flushed]:
    with Router() as router:
        world = made(router)
        before = world.reached()
        await firewall_of(router).ensure(rules_of((world.guest, 2200, 3000), (world.other, 2201, 3001)))
        held = router.host.hold(world.guest.address, 22)
        router.host.nft("flush ruleset")
        yield Flushed(world, before, world.reached(), held)


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as made:
        yield made


@pytest.mark.parametrize("trick", TRICKS)
async def test_no_trick_reaches_a_port_of_the_hosts(flushed: Flushed, trick: str) -> None:
    assert (trick in flushed.before) == (trick not in CLOSED_BY_THE_KERNEL), "open without us, or it proves nothing"
    assert trick not in flushed.after


async def test_the_hosts_own_connections_to_the_guest_go_on_and_new_ones_are_made(flushed: Flushed) -> None:
    router, guest = flushed.world.router, flushed.world.guest
    assert flushed.held.echo("still here") == "still here"
    router.host.ip("neigh", "flush", "dev", router.bridge)
    assert router.host.connect(guest.address, 22) == f"ssh {router.gateway}"
    assert router.host.run(["ping", "-c1", "-W1", guest.address]).returncode == 0


async def test_dhcp_and_dns_go_on(flushed: Flushed) -> None:
    router, guest = flushed.world.router, flushed.world.guest
    for port in (53, 67):
        answer(router.host, port)
    router.host.serve(53, "dns")
    assert ask(guest.namespace, router.gateway, 53) == "answer"
    assert ask(guest.namespace, router.gateway, 67, 68, bootp(guest.mac)) == "answer"
    assert guest.namespace.connect(router.gateway, 53) == f"dns {guest.address}"
    assert guest.namespace.connect(router.host_address, 53) is None
    assert ask(guest.namespace, router.host_address, 53) == "TimeoutError"


async def test_no_guest_takes_anothers_address_or_mac(flushed: Flushed) -> None:
    router, guest, other = flushed.world.router, flushed.world.guest, flushed.world.other
    assert router.host.connect(other.address, 22) is not None
    forged = [sys.executable, "-c", FORGE_ARP, guest.mac, guest.mac]
    for address in (other.address, "10.80.0.99"):
        guest.namespace.run([*forged, address, router.gateway], check=True)
    assert "10.80.0.99" not in neighbours(router)
    assert neighbours(router)[other.address] == other.mac
    guest.namespace.run([sys.executable, "-c", SEND_FROM, EVERYONES_MAC, other.mac, "1"], check=True)
    assert [line.split()[2] for line in learned(router) if other.mac in line] == [other.tap]
    assert router.host.connect(other.address, 22) == f"other {router.gateway}"


async def test_the_bridges_filter_alone_stops_all_but_what_comes_up_past_the_bridge(router: Router) -> None:
    world = made(router)
    await firewall_of(router).ensure(rules_of((world.guest, 2200, 3000)))
    router.host.run(["tc", "qdisc", "del", "dev", world.guest.tap, "clsact"], check=True)
    router.host.nft("flush ruleset")
    assert world.reached() == PAST_THE_BRIDGE


async def test_a_missing_inet_table_opens_none_of_the_hosts_addresses(router: Router) -> None:
    """As for a moment in each flush, which takes one table after the other."""
    world = made(router)
    answer(world.guest.namespace, 4000)
    await firewall_of(router).ensure(rules_of((world.guest, 2200, 3000)))
    assert ask(router.host, world.guest.address, 4000) == "answer", "the host's own question, and a usual port"
    router.host.nft("delete table inet ravebot-test")
    assert world.reached() <= {"UDP to everyone"} | {name for name in TRICKS if name.startswith("ping")}
    assert router.host.connect(world.guest.address, 22) is not None
    assert ask(router.host, world.guest.address, 4000) == "answer"


async def test_without_egress_dns_stops_and_dhcp_goes_on(router: Router) -> None:
    guest = router.guest(2)
    for port in (53, 67):
        answer(router.host, port)
    await firewall_of(router, egress="none").ensure(rules_of((guest, 2200, 3000)))
    router.host.nft("flush ruleset")
    assert ask(guest.namespace, router.gateway, 53) == "TimeoutError"
    assert ask(guest.namespace, router.gateway, 67, 68, bootp(guest.mac)) == "answer"


async def test_a_visitors_open_connection_outlives_a_flush_in_which_it_is_silent(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    firewall, rules = firewall_of(router), rules_of((guest, 2200, 3000))
    await firewall.ensure(rules)
    silent, talkative = (router.client.hold(router.host_address, 2200) for _ in range(2))
    router.host.nft("flush ruleset")
    assert talkative.echo("anybody there?") == "ConnectionResetError"
    assert router.client.connect(router.host_address, 2200) is None
    await firewall.ensure(rules)
    assert silent.echo("hello again") == "hello again"
    assert router.client.connect(router.host_address, 2200) == f"ssh {router.client_address}"


async def test_where_anothers_address_translation_is_left_a_visitors_open_connection_goes_on(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    router.host.nft("add table ip docker")
    for hook, priority in (("prerouting", -100), ("postrouting", 100)):
        router.host.nft(f"add chain ip docker {hook} {{ type nat hook {hook} priority {priority}; }}")
    router.host.nft("add rule ip docker postrouting ip saddr 172.17.0.0/16 masquerade")
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    held = router.client.hold(router.host_address, 2200)
    assert held.echo("before") == "before"
    router.host.nft("\n".join(f"delete table {family} ravebot-test" for family in ("inet", "bridge", "arp")))
    assert held.echo("still here") == "still here"
