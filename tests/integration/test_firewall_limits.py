"""What one guest can take of what all share: the host's connection table, and its DNS server."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from structlog.testing import capture_logs

from ravebot.config.model import BridgeConfig
from ravebot.providers.libvirt.definitions import dnsmasq_options, network_xml
from tests.support.firewall import firewall_of, rules_of
from tests.support.netns import GuestMachine, Namespace, Router

pytestmark = pytest.mark.integration

_TABLE = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_SMALL_TABLE = 20_000

# One datagram from each of so many source ports, without a socket for each.
FLOOD_UDP = """
import socket, struct, sys, time
source, target, port, count, passes = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
ends = socket.inet_aton(source) + socket.inet_aton(target)
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
    for again in range(passes):
        time.sleep(2.1 if again else 0)  # what goes on for two seconds is a stream, and never dropped to make room
        for number in range(count):
            udp = struct.pack("!HHHH", 1024 + number, port, 9, 0) + b"x"
            raw.sendto(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + ends + udp, (target, 0))
            if number % 500 == 0:
                time.sleep(0.005)
"""

ECHO_UDP = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    server.bind(("0.0.0.0", int(sys.argv[1])))
    print("listening", flush=True)
    while True:
        data, who = server.recvfrom(100)
        server.sendto(data, who)
"""

HOLD_MANY = """
import socket, sys
held = []
for _ in range(int(sys.argv[3])):
    try:
        held.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[4])))
    except OSError:
        break
print(len(held), flush=True)
sys.stdin.read()
"""

# Answers every question with 192.0.2.1, but never those for names that begin with "never".
NAMES = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
    server.bind(("0.0.0.0", 53))
    print("listening", flush=True)
    while True:
        question, who = server.recvfrom(500)
        if question[13:18] != b"never":
            end = question.index(0, 12) + 5
            record = bytes.fromhex("c00c00010001000000000004c0000201")
            server.sendto(question[:2] + bytes.fromhex("81800001000100000000") + question[12:end] + record, who)
"""

ASK_NAMES = """
import socket, struct, sys, time
server, label, count, wait = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(wait)
    answered = 0
    for number in range(count):
        name = f"{label}{number}".encode()
        name = bytes([len(name)]) + name + b"\\7example\\3org\\0"
        client.sendto(struct.pack("!HHHHHH", number, 0x100, 1, 0, 0, 0) + name + struct.pack("!HH", 1, 1), (server, 53))
        if wait:
            try:
                answer = client.recv(500)
                answered += answer[3] & 15 == 0 and answer[6:8] != bytes(2)
            except TimeoutError:
                pass
        elif number % 10 == 9:
            time.sleep(0.001)  # a server that can't keep up would drop what comes at once
    print(answered)
"""


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as made:
        yield made


@pytest.fixture
def small_table() -> Iterator[int]:
    """How many connections fit into the table of a namespace: one value for all of them, each counts for itself."""
    if not _TABLE.stat().st_mode & 0o200:
        pytest.skip("the table's size can only be set in the host's own network namespace")
    with _TABLE.open("r+") as limit:
        fcntl.flock(limit, fcntl.LOCK_EX)  # nobody takes the lowered value for the one to put back
        before = limit.read()
        _TABLE.write_text(str(_SMALL_TABLE))
        try:
            yield _SMALL_TABLE
        finally:
            _TABLE.write_text(before)


def start(namespace: Namespace, script: str, *arguments: object) -> subprocess.Popen[str]:
    """Returns when it has printed a line that says it is ready."""
    process = namespace.start([sys.executable, "-c", script, *map(str, arguments)])
    assert process.stdout is not None and process.stdout.readline() == "listening\n", process.communicate()
    return process


def flood(guest: GuestMachine, target: str, port: int, count: int, passes: int = 1) -> None:
    arguments = map(str, (guest.address, target, port, count, passes))
    guest.namespace.run([sys.executable, "-c", FLOOD_UDP, *arguments], check=True)


def hold_many(namespace: Namespace, address: str, port: int, count: int) -> int:
    """How many connections could be opened one after the other, and are kept open."""
    process = namespace.start([sys.executable, "-c", HOLD_MANY, address, str(port), str(count), "2"])
    assert process.stdout is not None
    return int(process.stdout.readline())


def ask_names(namespace: Namespace, label: str, count: int, wait: float) -> int:
    """How many of so many questions to the gateway were answered; `wait` 0: asked without waiting."""
    argv = [sys.executable, "-c", ASK_NAMES, Router.gateway, label, str(count), str(wait)]
    return int(namespace.run(argv, check=True).stdout)


def entries(router: Router, address: str) -> int:
    """How many entries of the host's connection table are about that address, at any place."""
    table = router.host.run(["conntrack", "-L"], check=True).stdout.splitlines()
    return sum(f"={address} " in line for line in table)


async def test_a_guest_that_opens_flows_without_end_leaves_the_host_the_others_and_visitors_room(
    router: Router, small_table: int
) -> None:
    guest, other = router.guest(2), router.guest(3)
    guest.namespace.serve(22, "ssh")
    router.friend.serve(80, "private")
    router.internet.serve(80, "internet")
    start(router.internet, ECHO_UDP, 7)
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    flood(guest, router.internet_address, 7, small_table + 5_000, passes=3)
    answers = [router.host.connect(router.friend_address, 80) for _ in range(5)]
    assert answers == ["private 192.168.77.1"] * 5
    assert other.namespace.connect(router.internet_address, 80) == "internet 198.51.100.1"
    assert router.client.connect(router.host_address, 2200) == f"ssh {router.client_address}"
    assert 100 < entries(router, guest.address) <= 510, "it had what it may have"


async def test_flows_that_nobody_answers_and_those_to_the_host_count_too(router: Router) -> None:
    guest = router.guest(2)
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    flood(guest, "198.51.100.77", 9, 3_000)
    flood(guest, router.gateway, 53, 3_000)  # bounded by the rate of questions alone
    assert 100 < entries(router, guest.address) <= 510 + 200


async def test_connections_that_come_and_go_quickly_do_not_fill_the_table_either(router: Router) -> None:
    guest = router.guest(2)
    router.internet.serve(80, "internet")
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    quick = f"""
import socket
for _ in range(1500):
    with socket.socket() as client:
        client.settimeout(0.02)
        try:
            client.connect(("{router.internet_address}", 80))
            client.recv(100)
        except OSError:
            pass
"""
    started = time.monotonic()
    guest.namespace.run([sys.executable, "-c", quick], check=True)
    assert entries(router, guest.address) <= 520 + 20 * (time.monotonic() - started)


async def test_two_hundred_connections_at_once_are_nobodys_limit(router: Router) -> None:
    guest = router.guest(2)
    router.internet.serve(80, "internet")
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    assert hold_many(guest.namespace, router.internet_address, 80, 200) == 200


async def test_one_source_keeps_only_so_many_connections_to_one_port_open(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(3002, "web")
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    assert hold_many(router.client, router.host_address, 3000, 250) == 200
    assert router.friend.connect(router.host_address, 3000) == f"web {router.friend_address}"


async def test_the_entries_of_a_guest_that_is_taken_out_go_whoever_began_them_and_no_others(router: Router) -> None:
    guest, other = router.guest(2), router.guest(3)
    for machine in (guest, other):
        machine.namespace.serve(22, "ssh")
    router.internet.serve(80, "internet")
    firewall = firewall_of(router)
    await firewall.ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    for machine, port in ((guest, 2200), (other, 2201)):
        for begin in (router.client.hold, router.host.hold):
            begin(router.host_address, port)
        machine.namespace.hold(router.internet_address, 80)
        router.host.hold(machine.address, 22)
    assert entries(router, guest.address) == entries(router, other.address) == 4
    await firewall.ensure(rules_of((other, 2201, 3001)))
    assert (entries(router, guest.address), entries(router, other.address)) == (0, 4)
    await firewall.remove()
    assert entries(router, other.address) == 0


async def test_a_guest_does_not_inherit_the_entries_of_its_address(router: Router) -> None:
    guest = router.guest(2)
    router.host.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], check=True)
    await firewall_of(router).open()
    # As if they had not been removed when the one before went.
    add = "-I -p tcp -s 10.80.0.2 -d 198.51.100.2 --sport 4000 --dport 80 --state ESTABLISHED -t 432000 -u ASSURED"
    router.host.run(["conntrack", *add.split()], check=True)
    assert entries(router, guest.address) == 1
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000)))
    assert entries(router, guest.address) == 0


async def test_after_a_flush_the_entries_of_those_that_live_on_are_kept(router: Router) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    firewall = firewall_of(router)
    rules = rules_of((guest, 2200, 3000))
    await firewall.ensure(rules)
    held = router.client.hold(router.host_address, 2200)
    router.host.nft("flush ruleset")
    await firewall.ensure(rules)
    assert entries(router, guest.address) == 1
    assert held.echo("on") == "on"


async def test_without_the_conntrack_tool_the_rules_of_a_guest_go_all_the_same(router: Router, tmp_path: Path) -> None:
    guest = router.guest(2)
    guest.namespace.serve(22, "ssh")
    for tool in ("nft", "ip", "sysctl"):
        found = router.host.run(["sh", "-c", f"command -v {tool}"], check=True).stdout.strip()
        (tmp_path / tool).symlink_to(found)
    firewall = firewall_of(router, through=("/usr/bin/env", f"PATH={tmp_path}"))
    await firewall.ensure(rules_of((guest, 2200, 3000)))
    assert router.client.connect(router.host_address, 2200) is not None
    with capture_logs() as logged:
        repair = await firewall.ensure(rules_of())
    assert repair.removed == 3
    assert router.client.connect(router.host_address, 2200) is None
    assert [(line["log_level"], "conntrack" in line["reason"]) for line in logged] == [("warning", True)]


async def test_some_guests_flood_of_questions_leaves_another_guests_dns_answered(router: Router) -> None:
    *guests, other = (router.guest(number) for number in (2, 3, 4, 5))
    start(router.internet, NAMES)
    # A small network's server has room for 2,400 questions, fewer than these guests ask.
    small = BridgeConfig.model_validate({"subnet": "10.80.0.0/29"})
    xml = network_xml("rave-test", small, instance_id="test", dns=True)
    options = [f"--{option}" for option in dnsmasq_options(ElementTree.fromstring(xml))]
    router.host.start(
        [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--cache-size=0",
            f"--server={router.internet_address}", f"--listen-address={router.gateway}", "--bind-interfaces",
            "--pid-file=", "--user=root", *options,
        ]
    )  # fmt: skip
    opened = ((guest, 2200 + number, 3000 + number) for number, guest in enumerate((*guests, other)))
    await firewall_of(router).ensure(rules_of(*opened))
    deadline = time.monotonic() + 10
    while not ask_names(other.namespace, "first", 1, 0.3) and time.monotonic() < deadline:
        time.sleep(0.05)
    for guest in guests:
        ask_names(guest.namespace, f"never-{guest.tap}-", 3_000, 0)
    assert ask_names(other.namespace, "page", 20, 1) == 20


async def test_one_guest_does_not_take_all_of_the_dns_servers_tcp_connections(router: Router) -> None:
    guest, other = router.guest(2), router.guest(3)
    router.host.serve(53, "dns", router.gateway)
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    assert hold_many(guest.namespace, router.gateway, 53, 6) == 4
    assert hold_many(other.namespace, router.gateway, 53, 2) == 2
