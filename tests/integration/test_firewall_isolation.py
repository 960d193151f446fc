"""What a hostile guest can reach: nothing but the internet, in its own name."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.firewall import firewall_of, rules_of
from tests.support.frames import bootp
from tests.support.netns import GuestMachine, Namespace, Router

pytestmark = pytest.mark.integration

ASK_UDP = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(1)
    client.bind(("", int(sys.argv[3])))
    client.sendto(bytes.fromhex(sys.argv[4]), (sys.argv[1], int(sys.argv[2])))
    try:
        print(client.recv(100).decode())
    except OSError as error:
        print(type(error).__name__)
"""

ANSWER_UDP = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("0.0.0.0", int(sys.argv[1])))
    print("listening", flush=True)
    while True:
        data, who = server.recvfrom(100)
        server.sendto(b"answer", who)
"""


FORGE_ARP = """
import socket, sys
def mac(text): return bytes.fromhex(text.replace(":", ""))
own, sender_mac, sender_ip, target_ip = sys.argv[1:5]
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("eth0", 0))
    arp = bytes.fromhex("0001080006040001") + mac(sender_mac) + socket.inet_aton(sender_ip) + bytes(6)
    raw.send(bytes(6 * [255]) + mac(own) + bytes.fromhex("0806") + arp + socket.inet_aton(target_ip))
"""

# A question to the host in a frame to a link-local MAC, and whether the answer comes back.
ASK_PAST_THE_BRIDGE = """
import socket, struct, sys
def mac(text): return bytes.fromhex(text.replace(":", ""))
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
own, source, target, port, to = sys.argv[1:6]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, \
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    client.bind(("", 5555))
    client.settimeout(1)
    raw.bind(("eth0", 0))
    udp = struct.pack("!HHHH", 5555, int(port), 16, 0) + b"question"
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
    ip += socket.inet_aton(source) + socket.inet_aton(target)
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    raw.send(mac(to) + mac(own) + bytes.fromhex("0800") + ip + udp)
    try:
        print(client.recv(100).decode())
    except OSError as error:
        print(type(error).__name__)
"""

ASK_PAST_THE_BRIDGE_IN_IPV6 = """
import socket, struct, sys
def mac(text): return bytes.fromhex(text.replace(":", ""))
def packed(address): return socket.inet_pton(socket.AF_INET6, address)
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF) or 0xFFFF
own, source, target, port, to = sys.argv[1:6]
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("eth0", 0))
    udp = struct.pack("!HHHH", 5555, int(port), 16, 0) + b"question"
    pseudo = packed(source) + packed(target) + struct.pack("!II", len(udp), 17)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp)) + udp[8:]
    header = struct.pack("!IHBB", 0x60000000, len(udp), 17, 64) + packed(source) + packed(target)
    raw.send(mac(to) + mac(own) + bytes.fromhex("86dd") + header + udp)
"""

HEAR_UDP = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
    server.bind(("::", int(sys.argv[1])))
    server.settimeout(2)
    print("listening", flush=True)
    try:
        print(server.recv(100).decode(), flush=True)
    except TimeoutError:
        print("nothing", flush=True)
"""


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as made:
        yield made


def ask(namespace: Namespace, address: str, port: int, source_port: int = 0, question: bytes = b"question") -> str:
    done = namespace.run([sys.executable, "-c", ASK_UDP, address, str(port), str(source_port), question.hex()])
    return done.stdout.strip()


def answer(namespace: Namespace, port: int) -> subprocess.Popen[str]:
    process = namespace.start([sys.executable, "-c", ANSWER_UDP, str(port)])
    assert process.stdout is not None and process.stdout.readline() == "listening\n", process.communicate()
    return process


async def two_guests(router: Router) -> tuple[GuestMachine, GuestMachine]:
    guest, other = router.guest(2), router.guest(3)
    guest.namespace.serve(22, "ssh")
    other.namespace.serve(22, "other")
    return guest, other


async def test_a_guest_reaches_the_internet_masqueraded_and_neither_guest_host_nor_private_neighbour(
    router: Router,
) -> None:
    guest, other = await two_guests(router)
    router.internet.serve(80, "internet")
    router.friend.serve(80, "private")
    router.host.serve(80, "host")
    inside = guest.namespace
    # Without a firewall all of it is open: otherwise this test would prove nothing.
    router.host.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], check=True)
    assert inside.connect(other.address, 22) == f"other {guest.address}"
    assert inside.connect(router.gateway, 80) == f"host {guest.address}"
    assert inside.connect(router.friend_address, 80) == f"private {guest.address}"
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    assert inside.connect(router.internet_address, 80) == "internet 198.51.100.1"
    assert inside.connect(other.address, 22) is None
    assert inside.connect(router.gateway, 80) is None
    assert inside.connect(router.host_address, 80) is None
    assert inside.connect("192.168.77.1", 80) is None
    assert inside.connect(router.friend_address, 80) is None
    assert inside.connect(router.host_address, 2201) is None


AZURE = "168.63.129.16"


def with_azure(router: Router) -> None:
    """What the host of an Azure machine offers it, over the same way as the internet; it answers guests too."""
    router.internet.address("eth0", f"{AZURE}/32")
    router.internet.route(router.subnet, "198.51.100.1")
    router.host.ip("route", "add", AZURE, "via", router.internet_address)
    router.internet.serve(80, "azure", AZURE)
    router.host.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], check=True)


async def test_a_guest_does_not_reach_azures_own_address_with_the_tables_nor_after_a_flush(router: Router) -> None:
    guest, _ = await two_guests(router)
    with_azure(router)
    assert guest.namespace.connect(AZURE, 80) == f"azure {guest.address}", "open without us, or it proves nothing"
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    assert guest.namespace.connect(AZURE, 80) is None
    assert router.host.connect(AZURE, 80) == "azure 198.51.100.1", "the host itself needs it"
    router.host.nft("flush ruleset")
    assert guest.namespace.connect(AZURE, 80) is None


async def test_azures_own_address_can_be_allowed(router: Router) -> None:
    guest, _ = await two_guests(router)
    with_azure(router)
    await firewall_of(router, allow=(f"{AZURE}:80",)).ensure(rules_of((guest, 2200, 3000)))
    assert guest.namespace.connect(AZURE, 80) == "azure 198.51.100.1"


async def test_guests_do_not_reach_each_other_over_the_gateway_either(router: Router) -> None:
    guest, other = await two_guests(router)
    for one, to in ((guest, other), (other, guest)):
        one.namespace.ip("route", "add", f"{to.address}/32", "via", router.gateway)
    router.host.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], check=True)
    assert guest.namespace.connect(other.address, 22) is not None
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    assert guest.namespace.connect(other.address, 22) is None


async def test_of_the_host_a_guest_gets_dhcp_and_dns_and_without_egress_only_dhcp(router: Router) -> None:
    guest, _ = await two_guests(router)
    router.internet.serve(80, "internet")
    for port in (53, 67, 123):
        answer(router.host, port)
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert ask(guest.namespace, router.gateway, 53) == "answer"
    assert ask(guest.namespace, router.gateway, 67, 68, bootp(guest.mac)) == "answer"
    assert ask(guest.namespace, router.gateway, 123) == "TimeoutError"
    assert ask(guest.namespace, router.host_address, 53) == "TimeoutError"
    assert guest.namespace.connect(router.internet_address, 80) is not None
    closed = firewall_of(router, egress="none")
    await closed.ensure(rules_of((guest, 2200, 3000)))
    assert ask(guest.namespace, router.gateway, 53) == "TimeoutError"
    assert ask(guest.namespace, router.gateway, 67, 68, bootp(guest.mac)) == "answer"
    assert guest.namespace.connect(router.internet_address, 80) is None
    assert router.client.connect(router.host_address, 2200) == f"ssh {router.client_address}"


async def test_an_allowed_private_destination_is_reached_at_its_port_only(router: Router) -> None:
    guest, _ = await two_guests(router)
    router.friend.serve(443, "allowed")
    router.friend.serve(80, "private")
    router.host.serve(8443, "host")
    firewall = firewall_of(router, allow=(f"{router.friend_address}:443", "192.168.77.1:8443"), egress="none")
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert guest.namespace.connect(router.friend_address, 443) == "allowed 192.168.77.1"
    assert guest.namespace.connect(router.friend_address, 80) is None
    assert guest.namespace.connect("192.168.77.1", 8443) == f"host {guest.address}"
    assert guest.namespace.connect(router.gateway, 8443) is None


async def test_a_guest_that_is_left_on_another_bridge_reaches_nothing(router: Router) -> None:
    router.host.ip("link", "add", "rb9", "type", "bridge")
    router.host.address("rb9", "10.89.0.1/24")
    guest = router.guest(2, "rb9", "10.89.0")
    for neighbour, word in ((router.friend, "private"), (router.internet, "internet"), (router.host, "host")):
        neighbour.serve(80, word)
    router.host.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], check=True)
    assert guest.namespace.connect(router.friend_address, 80) == f"private {guest.address}"
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    for address in (router.friend_address, router.internet_address, "10.89.0.1", router.gateway):
        assert guest.namespace.connect(address, 80) is None


@pytest.mark.parametrize("network", ["0.0.0.0/0", "10.0.0.0/8", "10.80.0.0/24:80", "192.168.77.0/24"])
async def test_an_allowed_network_opens_none_of_the_hosts_own_ports(router: Router, network: str) -> None:
    guest, _ = await two_guests(router)
    router.host.serve(80, "host")
    firewall = firewall_of(router, allow=(network,))
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    for address in (router.gateway, router.host_address, "192.168.77.1"):
        assert guest.namespace.connect(address, 80) is None
    router.friend.serve(80, "private")
    reached = guest.namespace.connect(router.friend_address, 80)
    assert (reached is not None) == (network in ("0.0.0.0/0", "192.168.77.0/24"))


async def test_another_address_is_dropped_while_the_guests_own_goes_on(router: Router) -> None:
    guest, _ = await two_guests(router)
    router.internet.serve(80, "internet")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    guest.namespace.address("eth0", "10.80.0.66/24")
    spoof = (
        "import socket; s = socket.create_connection(('198.51.100.2', 80), 1, source_address=('10.80.0.66', 0));"
        "print(s.recv(99))"
    )
    assert guest.namespace.run([sys.executable, "-c", spoof]).returncode != 0
    # The guest's own kernel may still be asking for the gateway in the false name: give it time to give up.
    assert guest.namespace.connect(router.internet_address, 80, timeout=10) is not None


async def test_a_guest_cannot_take_a_live_guests_address(router: Router) -> None:
    guest, other = await two_guests(router)
    router.internet.serve(80, "internet")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    assert router.client.connect(router.host_address, 2201) == f"other {router.client_address}"
    guest.namespace.ip("addr", "flush", "dev", "eth0")
    guest.namespace.address("eth0", f"{other.address}/24")
    guest.namespace.route("default", router.gateway)
    guest.namespace.run([sys.executable, "-c", FORGE_ARP, guest.mac, guest.mac, other.address, router.gateway])
    assert guest.namespace.connect(router.internet_address, 80) is None
    assert router.client.connect(router.host_address, 2201) == f"other {router.client_address}"


async def test_another_mac_is_dropped(router: Router) -> None:
    guest, _ = await two_guests(router)
    router.internet.serve(80, "internet")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert guest.namespace.connect(router.internet_address, 80) is not None
    guest.namespace.ip("link", "set", "eth0", "address", "52:54:00:00:01:99")
    guest.namespace.ip("route", "replace", "default", "via", router.gateway)
    assert guest.namespace.connect(router.internet_address, 80) is None
    guest.namespace.ip("link", "set", "eth0", "address", guest.mac)
    guest.namespace.ip("route", "replace", "default", "via", router.gateway)
    assert guest.namespace.connect(router.internet_address, 80) is not None


def neighbours(router: Router) -> dict[str, str]:
    lines = router.host.run(["ip", "neigh", "show", "dev", router.bridge]).stdout.splitlines()
    return {parts[0]: parts[2] for line in lines if "lladdr" in (parts := line.split())}


async def test_arp_with_another_sender_does_not_reach_the_host(router: Router) -> None:
    guest, other = await two_guests(router)
    firewall = firewall_of(router)
    forged = [sys.executable, "-c", FORGE_ARP, guest.mac, guest.mac]
    guest.namespace.run([*forged, "10.80.0.99", router.gateway], check=True)
    assert neighbours(router)["10.80.0.99"] == guest.mac  # open without us, or the rest proves nothing
    await firewall.ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    guest.namespace.run([*forged, "10.80.0.98", router.gateway], check=True)
    guest.namespace.run([*forged, other.address, router.gateway], check=True)
    assert "10.80.0.98" not in neighbours(router)
    assert neighbours(router).get(other.address) != guest.mac
    guest.namespace.run([*forged, guest.address, router.gateway], check=True)
    assert neighbours(router)[guest.address] == guest.mac


async def test_a_guest_that_is_not_live_reaches_nothing_even_as_a_live_one(router: Router) -> None:
    guest, other = await two_guests(router)
    router.internet.serve(80, "internet")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((other, 2201, 3001)))
    assert guest.namespace.connect(router.internet_address, 80) is None
    guest.namespace.ip("addr", "flush", "dev", "eth0")
    guest.namespace.ip("link", "set", "eth0", "address", other.mac)
    guest.namespace.address("eth0", f"{other.address}/24")
    guest.namespace.route("default", router.gateway)
    assert guest.namespace.connect(router.internet_address, 80) is None


SEND_FRAME = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("eth0", 0))
    raw.send(bytes.fromhex(sys.argv[1]) + bytes(46))
"""

COUNT_FRAMES = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as raw:
    raw.bind((sys.argv[1], 0x88B5))
    print("listening", flush=True)
    raw.settimeout(3)
    try:
        while raw.recvfrom(100)[1][2] == socket.PACKET_OUTGOING:
            pass
        print("came")
    except TimeoutError:
        print("none")
"""


async def test_frames_that_are_neither_ip_nor_arp_do_not_arrive(router: Router) -> None:
    guest, _ = await two_guests(router)
    mac = router.host.run(["cat", f"/sys/class/net/{router.bridge}/address"]).stdout.strip().replace(":", "")
    frame = f"{mac}{guest.mac.replace(':', '')}88b5"

    def arrives() -> str:
        listener = router.host.start([sys.executable, "-c", COUNT_FRAMES, router.bridge])
        assert listener.stdout is not None and listener.stdout.readline() == "listening\n"
        guest.namespace.run([sys.executable, "-c", SEND_FRAME, frame], check=True)
        return listener.stdout.readline().strip()

    assert arrives() == "came"
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    assert arrives() == "none"


async def test_ipv6_does_not_get_past_the_bridge(router: Router) -> None:
    guest, _ = await two_guests(router)
    guest.namespace.ip("addr", "add", "fd00:80::2/64", "dev", "eth0", "nodad")
    router.host.ip("addr", "add", "fd00:80::1/64", "dev", router.bridge, "nodad")
    router.host.serve(80, "host", "fd00:80::1")
    assert guest.namespace.connect("fd00:80::1", 80) == "host fd00:80::2"
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert guest.namespace.connect("fd00:80::1", 80) is None


LINK_LOCAL = [f"01:80:c2:00:00:{last:02x}" for last in (0, 2, 3, 0xE)]


async def test_nothing_reaches_the_host_past_the_bridge_in_frames_to_a_link_local_mac(router: Router) -> None:
    guest, _ = await two_guests(router)
    answer(router.host, 123)
    # The kernel's default. On a host that sets it, this would be stopped by the kernel's own look at the source.
    for interface in ("all", guest.tap):
        router.host.run(["sysctl", "-q", "-w", f"net.ipv4.conf.{interface}.rp_filter=0"], check=True)

    def answered() -> set[str]:
        asking = [sys.executable, "-c", ASK_PAST_THE_BRIDGE, guest.mac, guest.address]
        return {
            mac
            for mac in LINK_LOCAL
            for target in (router.gateway, "192.168.77.1")
            if guest.namespace.run([*asking, target, "123", mac]).stdout.strip() == "answer"
        }

    assert answered() >= {"01:80:c2:00:00:0e", "01:80:c2:00:00:03"}, "open without us, or the rest proves nothing"
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    assert answered() == set()


async def test_nothing_reaches_the_taps_own_ipv6_address_either(router: Router) -> None:
    guest, _ = await two_guests(router)

    def address(namespace: Namespace, interface: str) -> str:
        for _ in range(50):
            lines = namespace.run(["ip", "-6", "-o", "addr", "show", "dev", interface, "scope", "link"]).stdout
            if lines and "tentative" not in lines:
                return lines.split("inet6 ")[1].split("/")[0]
            time.sleep(0.1)
        raise AssertionError(f"{interface} has no IPv6 address")

    source, target = address(guest.namespace, "eth0"), address(router.host, guest.tap)

    def heard(mac: str) -> str:
        listener = router.host.start([sys.executable, "-c", HEAR_UDP, "123"])
        assert listener.stdout is not None and listener.stdout.readline() == "listening\n"
        asking = [sys.executable, "-c", ASK_PAST_THE_BRIDGE_IN_IPV6, guest.mac, source, target, "123", mac]
        guest.namespace.run(asking, check=True)
        return listener.stdout.readline().strip()

    assert heard("01:80:c2:00:00:0e") == "question"
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    assert heard("01:80:c2:00:00:0e") == "nothing"


async def test_arp_past_the_bridge_does_not_reach_the_host(router: Router) -> None:
    guest, other = await two_guests(router)
    forge = FORGE_ARP.replace("bytes(6 * [255])", "mac(sys.argv[5])")

    def entries() -> str:
        forged = [sys.executable, "-c", forge, guest.mac, guest.mac, guest.address, router.gateway]
        guest.namespace.run([*forged, "01:80:c2:00:00:0e"], check=True)
        return router.host.run(["ip", "neigh", "show", "dev", guest.tap]).stdout

    for interface in ("all", guest.tap):
        router.host.run(["sysctl", "-q", "-w", f"net.ipv4.conf.{interface}.rp_filter=0"], check=True)
    assert guest.mac in entries(), "open without us, or the rest proves nothing"
    router.host.ip("neigh", "flush", "dev", guest.tap)
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    assert guest.mac not in entries()


SEND_FROM = """
import os, socket, sys
def mac(text): return bytes.fromhex(text.replace(":", ""))
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("eth0", 0))
    for number in range(int(sys.argv[3])):
        sender = mac(sys.argv[2]) if sys.argv[2] else b"\2" + os.urandom(5)
        raw.send(mac(sys.argv[1]) + sender + bytes.fromhex("88b5") + bytes(46))
"""


def learned(router: Router) -> list[str]:
    """The bridge's table of which MAC is behind which port."""
    return router.host.run(["bridge", "fdb", "show", "br", router.bridge]).stdout.splitlines()


@pytest.mark.parametrize("to", ["ff:ff:ff:ff:ff:ff", *LINK_LOCAL])
async def test_a_guest_does_not_draw_another_guests_traffic_to_itself(router: Router, to: str) -> None:
    guest, other = await two_guests(router)
    claim = [sys.executable, "-c", SEND_FROM, to]
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    held = router.client.hold(router.host_address, 2200)
    assert held.echo("before") == "before"
    other.namespace.run([*claim, guest.mac, "1"], check=True)
    other.namespace.run([*claim, "02:00:00:00:99:99", "1"], check=True)
    assert held.echo("secret") == "secret"
    assert not [line for line in learned(router) if "02:00:00:00:99:99" in line]
    assert [line.split()[2] for line in learned(router) if guest.mac in line] == [guest.tap]


async def test_the_bridges_table_is_not_flooded_by_a_guest(router: Router) -> None:
    guest, other = await two_guests(router)
    flood = [sys.executable, "-c", SEND_FROM, "ff:ff:ff:ff:ff:ff", "", "3000"]
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    before = len(learned(router))
    other.namespace.run(flood, check=True)
    assert len(learned(router)) <= before + 2
    assert router.client.connect(router.host_address, 2201) == f"other {router.client_address}"
