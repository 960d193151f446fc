"""A guest asks the DHCP server in its own name only: a request in another's would take the other's lease."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.support.firewall import firewall_of, rules_of
from tests.support.frames import IP, UDP, bootp, ethernet, fragmented, ipv4, udp
from tests.support.netns import GuestMachine, Router

pytestmark = pytest.mark.integration

EVERYONE, EVERYONES_MAC, NO_ADDRESS = "255.255.255.255", "ff:ff:ff:ff:ff:ff", "0.0.0.0"

# Says which client each request names, until the host itself sends "end".
HEAR_REQUESTS = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("0.0.0.0", 67))
    print("listening", flush=True)
    while (request := server.recv(2000)) != b"end":
        print(request[28:34].hex(":"), request[236:].decode(), flush=True)
"""
SAY_END = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'end', ('127.0.0.1', 67))"
SEND = """
import json, socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("eth0", 0))
    for frame in json.load(sys.stdin):
        raw.send(bytes.fromhex(frame))
"""

OPEN_WITHOUT_US = {"discovery", "renewal", "renewal to everyone", "another port", "options", "fragments"}


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as made:
        yield made


def requests(guest: GuestMachine, client: str, gateway: str) -> list[bytes]:
    """Requests that name this client's MAC, in every form that the host's kernel takes in."""

    def payload(form: str, source: str, target: str = EVERYONE, source_port: int = 68) -> bytes:
        return udp(source, target, source_port, 67, bootp(client) + form.encode())

    own = guest.address
    packets = [
        ipv4(NO_ADDRESS, EVERYONE, UDP, payload("discovery", NO_ADDRESS)),
        ipv4(own, gateway, UDP, payload("renewal", own, gateway)),
        ipv4(own, EVERYONE, UDP, payload("renewal to everyone", own)),
        ipv4(own, EVERYONE, UDP, payload("another port", own, source_port=5000)),
        ipv4(own, EVERYONE, UDP, payload("options", own), options=b"\1\1\1\1"),
        *fragmented(own, EVERYONE, UDP, payload("fragments", own)),
    ]
    return [ethernet(EVERYONES_MAC, guest.mac, IP, one) for one in packets]


def heard(router: Router, guest: GuestMachine, client: str) -> set[str]:
    """The forms of request by which the guest can name that client to the host's DHCP server."""
    server = router.host.start([sys.executable, "-c", HEAR_REQUESTS])
    assert server.stdout is not None and server.stdout.readline() == "listening\n", server.communicate()
    frames = [frame.hex() for frame in requests(guest, client, router.gateway)]
    guest.namespace.run([sys.executable, "-c", SEND], stdin=json.dumps(frames), check=True)
    router.host.run([sys.executable, "-c", SAY_END], check=True)
    lines = server.communicate(timeout=10)[0].splitlines()
    assert all(line.startswith(client) for line in lines)
    return {line.partition(" ")[2] for line in lines}


@pytest.mark.parametrize("without", ["nothing", "tc", "nftables"])
async def test_a_request_in_anothers_name_does_not_reach_the_dhcp_server(router: Router, without: str) -> None:
    guest, other = router.guest(2), router.guest(3)
    assert heard(router, guest, other.mac) == OPEN_WITHOUT_US
    await firewall_of(router).ensure(rules_of((guest, 2200, 3000), (other, 2201, 3001)))
    if without == "tc":
        router.host.run(["tc", "qdisc", "del", "dev", guest.tap, "clsact"], check=True)
        router.host.run(["tc", "qdisc", "del", "dev", router.bridge, "clsact"], check=True)
    elif without == "nftables":
        router.host.nft("flush ruleset")
    assert heard(router, guest, other.mac) == set()
    assert heard(router, guest, "52:54:00:99:99:99") == set()
    assert heard(router, guest, guest.mac) >= {"discovery", "renewal", "renewal to everyone"}
