"""Network namespaces for tests: other machines, as the kernel sees them, on this one. Needs root and iproute2.

`Namespace` is one machine; `Router` is a whole small world: a host with a bridge and guests, a client, a neighbour
with a private address and "the internet". Names are unique to the test process; `close` takes everything away.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_numbers = itertools.count(1)

SERVE = """
import socket, sys, threading
def answer(connection):
    with connection:
        connection.sendall(sys.argv[3].encode() + b" " + connection.getpeername()[0].encode() + b"\\n")
        while data := connection.recv(65536):
            connection.sendall(data)
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], int(sys.argv[2])), family=family, backlog=100) as server:
    print("listening", flush=True)
    while True:
        threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()
"""
"""Greets with a word and the address it sees, then echoes."""

CONNECT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as connection:
        print(connection.recv(100).decode().strip())
except OSError as error:
    print(type(error).__name__, error, file=sys.stderr)
    sys.exit(1)
"""

HOLD = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2) as connection:
    connection.recv(100)
    print("open", flush=True)
    for line in sys.stdin:
        try:
            connection.sendall(line.encode())
            print(connection.recv(65536).decode().strip() or "closed", flush=True)
        except OSError as error:
            print(type(error).__name__, flush=True)
"""
"""Keeps one connection and sends what it is told to; prints the echo, or the error's name."""


def ip(*arguments: str) -> None:
    """Run iproute2's ip in the namespace of the tests themselves."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _unique(label: str) -> str:
    """At most 15 characters, so that it is also good for an interface."""
    return f"{label[:5]}{os.getpid() % 100_000}x{next(_numbers)}"


class Namespace:
    """One machine: a network namespace of its own, with loopback up."""

    def __init__(self, label: str) -> None:
        self.name = _unique(label)
        self._processes: list[subprocess.Popen[str]] = []
        self._host_links: list[str] = []
        ip("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command so that it runs here."""
        return ("ip", "netns", "exec", self.name)

    def run(
        self, argv: Sequence[str], *, check: bool = False, timeout: float = 30, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *argv], check=check, capture_output=True, text=True, timeout=timeout, input=stdin
        )

    async def arun(
        self, argv: Sequence[str], *, check: bool = False, timeout: float = 30, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """`run` without holding up the event loop."""
        return await asyncio.to_thread(self.run, argv, check=check, timeout=timeout, stdin=stdin)

    def ip(self, *arguments: str) -> None:
        ip("-n", self.name, *arguments)

    def nft(self, text: str) -> str:
        """Do to this namespace's firewall what someone else might."""
        done = self.run(["nft", "-f", "-"], stdin=text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def link(self, interface: str, peer: Namespace, peer_interface: str) -> None:
        """A cable (a veth pair) to another namespace, both ends up."""
        one, other = _unique("va"), _unique("vb")
        ip("link", "add", one, "type", "veth", "peer", "name", other)
        ip("link", "set", one, "netns", self.name, "name", interface)
        ip("link", "set", other, "netns", peer.name, "name", peer_interface)
        self.ip("link", "set", interface, "up")
        peer.ip("link", "set", peer_interface, "up")

    def link_host(self, interface: str, address: str, host_address: str) -> str:
        """A cable to the namespace of the tests themselves; addresses with prefix length. Returns the host's end."""
        here, there = _unique("vh"), _unique("vg")
        ip("link", "add", here, "type", "veth", "peer", "name", there)
        self._host_links.append(here)
        ip("link", "set", there, "netns", self.name, "name", interface)
        ip("addr", "add", host_address, "dev", here)
        ip("link", "set", here, "up")
        self.address(interface, address)
        return here

    def address(self, interface: str, address: str) -> None:
        self.ip("addr", "add", address, "dev", interface)
        self.ip("link", "set", interface, "up")

    def route(self, destination: str, gateway: str) -> None:
        self.ip("route", "add", destination, "via", gateway)

    def start(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """A process that is ended with the namespace."""
        process = subprocess.Popen(
            [*self.prefix, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._processes.append(process)
        return process

    def serve(self, port: int, word: str = "hello", address: str = "0.0.0.0") -> subprocess.Popen[str]:
        """A TCP server that greets with `word` and the client's address, then echoes; returns when it listens."""
        process = self.start([sys.executable, "-c", SERVE, address, str(port), word])
        assert process.stdout is not None and process.stdout.readline() == "listening\n", process.communicate()
        return process

    def connect(self, address: str, port: int, timeout: float = 0.7) -> str | None:
        """What a server of `serve` greets with; None when there is no way through."""
        done = self.run([sys.executable, "-c", CONNECT, address, str(port), str(timeout)])
        return done.stdout.strip() if done.returncode == 0 else None

    async def aconnect(self, address: str, port: int, timeout: float = 0.7) -> str | None:
        return await asyncio.to_thread(self.connect, address, port, timeout)

    def hold(self, address: str, port: int) -> HeldConnection:
        """Opens a connection and keeps it."""
        process = self.start([sys.executable, "-c", HOLD, address, str(port)])
        assert process.stdout is not None and process.stdout.readline() == "open\n", process.communicate()
        return HeldConnection(process)

    def close(self) -> None:
        """End what was started here and take the namespace away; again does nothing."""
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes.clear()
        for link in self._host_links:
            subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)
        self._host_links.clear()
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


@dataclass(frozen=True)
class HeldConnection:
    """An open connection to a server of `Namespace.serve`."""

    process: subprocess.Popen[str]

    def echo(self, text: str) -> str:
        """What comes back; the name of the error when nothing does in 2 s."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@dataclass(frozen=True)
class GuestMachine:
    """A guest behind a port of the bridge."""

    namespace: Namespace
    tap: str
    mac: str
    address: str


class Router:
    """A host with a bridge, and who is around it.

    client 203.0.113.9, friend 192.168.77.2 (the host's private neighbour) and internet 198.51.100.2 each have a
    cable to the host, which has .1 in each network, and 10.80.0.1 on the bridge.
    """

    bridge = "rb0"
    subnet = "10.80.0.0/24"
    gateway = "10.80.0.1"
    host_address = "203.0.113.1"
    client_address = "203.0.113.9"
    friend_address = "192.168.77.2"
    internet_address = "198.51.100.2"

    def __init__(self) -> None:
        self._namespaces: list[Namespace] = []
        try:
            self.host = self._namespace("host")
            self.host.ip("link", "add", self.bridge, "type", "bridge")
            self.host.address(self.bridge, f"{self.gateway}/24")
            self.client = self._neighbour("client", "client0", "203.0.113.1/24", "203.0.113.9/24")
            self.friend = self._neighbour("friend", "friend0", "192.168.77.1/24", "192.168.77.2/24")
            self.internet = self._neighbour("inet", "inet0", "198.51.100.1/24", "198.51.100.2/24")
            # The internet does not know the way to private addresses.
            self.internet.ip("route", "del", "default")
            self.internet.route("203.0.113.0/24", "198.51.100.1")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def guest(self, number: int, bridge: str | None = None, network: str = "10.80.0") -> GuestMachine:
        """Guest NUMBER: address NETWORK.NUMBER, its port of the bridge named as a tap would be."""
        guest = GuestMachine(
            self._namespace("guest"), f"tap{network.split('.')[1]}n{number}", f"52:54:00:00:01:{number:02x}",
            f"{network}.{number}",
        )  # fmt: skip
        guest.namespace.link("eth0", self.host, guest.tap)
        guest.namespace.ip("link", "set", "eth0", "address", guest.mac)
        guest.namespace.address("eth0", f"{guest.address}/24")
        guest.namespace.route("default", f"{network}.1")
        self.host.ip("link", "set", guest.tap, "master", bridge or self.bridge)
        return guest

    def close(self) -> None:
        while self._namespaces:
            self._namespaces.pop().close()

    def _namespace(self, label: str) -> Namespace:
        namespace = Namespace(label)
        self._namespaces.append(namespace)
        return namespace

    def _neighbour(self, label: str, interface: str, host_address: str, address: str) -> Namespace:
        neighbour = self._namespace(label)
        neighbour.link("eth0", self.host, interface)
        self.host.address(interface, host_address)
        neighbour.address("eth0", address)
        neighbour.route("default", host_address.partition("/")[0])
        return neighbour
