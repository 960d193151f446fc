"""What doctor prints for another's firewall, run as it is printed: the sandboxes' traffic passes, isolation holds."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ravebot.access.nftables.nft import NetworkTools
from ravebot.config.model import Config
from ravebot.operations.doctor import Finding, Verdict, network
from tests.integration.test_firewall_isolation import answer
from tests.support.firewall import firewall_of, rules_of
from tests.support.netns import Namespace, Router

pytestmark = pytest.mark.integration

_HOST_PORT = 8080
FIREWALLD = Path(__file__).parents[2] / ".cache/firewalld"

# Tries all places at once; prints those that answer.
REACH = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def reach(place):
    kind, address, port = place.split(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as client:
            client.settimeout(0.7)
            client.connect((address, int(port)))
            client.send(b"question")
            return client.recv(100)
    except OSError:
        return b""
with ThreadPoolExecutor(20) as threads:
    print(*(place for place, answer in zip(sys.argv[1:], threads.map(reach, sys.argv[1:])) if answer))
"""


class Yard:
    """A host with two guests of the instance `test`, and who is around it."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.host = router.host
        self.path = os.environ["PATH"]
        self._started: list[subprocess.Popen[str]] = []
        self.guest, self.other = router.guest(2), router.guest(3)
        for guest in (self.guest, self.other):
            guest.namespace.serve(22, "ssh")
        for one, two in ((self.guest, self.other), (self.other, self.guest)):
            one.namespace.ip("route", "add", f"{two.address}/32", "via", router.gateway)
        self.host.serve(_HOST_PORT, "host")
        router.friend.serve(80, "private")
        router.internet.serve(80, "internet")
        answer(self.host, 53)
        visit, direct = f"tcp:{router.host_address}:2200", f"tcp:{self.guest.address}:22"
        internet, dns = f"tcp:{router.internet_address}:80", f"udp:{router.gateway}:53"
        host_ports = [f"tcp:{address}:{_HOST_PORT}" for address in (router.gateway, router.host_address)]
        private, sideways = f"tcp:{router.friend_address}:80", f"tcp:{self.other.address}:22"
        self._tries: tuple[tuple[Namespace, set[str], list[str]], ...] = (
            (router.client, {visit}, [direct]),
            (self.host, {direct}, []),
            (self.guest.namespace, {internet, dns}, [*host_ports, private, sideways]),
            (self.other.namespace, {internet, dns}, [direct]),
        )

    def run(self, command: Sequence[str]) -> None:
        """Run it on the host."""
        done = self.host.run(["/usr/bin/env", f"PATH={self.path}", *command])
        assert done.returncode == 0, done.stderr

    def start(self, command: Sequence[str]) -> None:
        """Start on the host what `reset` ends."""
        self._started.append(self.host.start(command))

    def reset(self) -> None:
        """Nobody's rules, ours included."""
        while self._started:
            process = self._started.pop()
            process.terminate()
            process.communicate(timeout=10)
        self.path = os.environ["PATH"]
        self.host.nft("flush ruleset")

    async def reached(self) -> tuple[bool, bool]:
        """Whether all that must pass does, and whether nothing else does."""

        async def reach(namespace: Namespace, wanted: set[str], unwanted: list[str]) -> set[str]:
            done = await namespace.arun([sys.executable, "-c", REACH, *wanted, *unwanted], check=True)
            return set(done.stdout.split())

        found = await asyncio.gather(*(reach(*tries) for tries in self._tries))
        pairs = [(tries[1], reached) for tries, reached in zip(self._tries, found, strict=True)]
        return all(wanted <= reached for wanted, reached in pairs), all(reached <= wanted for wanted, reached in pairs)

    async def guard(self) -> None:
        """Write the rules of our instance."""
        await firewall_of(self.router).ensure(rules_of((self.guest, 2200, 3000), (self.other, 2201, 3001)))

    async def found(self) -> Finding:
        """What doctor says of the host's firewall."""
        config = Config.model_validate(
            {
                "matrix": {"homeserver": "https://m.example.org", "user_id": "@r:example.org", "password_file": "/x"},
                "gitlab": {
                    "url": "https://gitlab.example.org", "token_file": "/x", "projects": ["group/app"],
                    "webhook": {"secret_token_file": "/x"},
                },
                "sandbox": {"host": Router.host_address},
                "provider": {"image": "/x", "bridge": {"name": Router.bridge, "subnet": Router.subnet}},
            }
        )  # fmt: skip
        return await network.firewall(config, NetworkTools(self.host.prefix), "test")


SetUp = Callable[[Yard, Path], None]
"""Sets another's firewall up; may keep files in that folder."""


def commands(finding: Finding) -> list[list[str]]:
    """What it says to run, once each, as printed."""
    printed = re.findall(r"run `([^`]*)`", f"{finding.detail} {finding.fix}")
    return [shlex.split(command) for command in dict.fromkeys("; ".join(printed).split("; ")) if command]


ESTABLISHED = "ct state established,related accept"


def nft_chain(hook: str, policy: str, *rules: str) -> SetUp:
    """A base chain as an administrator may have written it."""

    def set_up(yard: Yard, _: Path) -> None:
        priority = -190 if hook == "prerouting" else 0
        yard.host.nft("add table inet x")
        yard.host.nft(f"add chain inet x c {{ type filter hook {hook} priority {priority}; policy {policy}; }}")
        for rule in rules:
            yard.host.nft(f"add rule inet x c {rule}")

    return set_up


def iptables(*lines: str) -> SetUp:
    """Debian's iptables, which is iptables-nft."""

    def set_up(yard: Yard, _: Path) -> None:
        for line in lines:
            yard.host.run(["iptables", *line.split()], check=True)

    return set_up


def ufw(yard: Yard, folder: Path) -> None:
    """The real one, as it is after installation and `ufw enable`, on files of its own."""
    root, bin_folder = folder / "root", folder / "bin"
    for name in ("etc/default", "run", "usr/share"):
        (root / name).mkdir(parents=True)
    bin_folder.mkdir()
    shutil.copytree("/lib/ufw", root / "lib/ufw")
    shutil.copytree("/usr/share/ufw", root / "usr/share/ufw")
    shutil.copytree("/usr/share/ufw", root / "etc/ufw")
    (root / "etc/ufw/applications.d").mkdir()
    shutil.copy("/etc/default/ufw", root / "etc/default/ufw")
    script = bin_folder / "ufw"
    script.write_text(f'#!/bin/sh\nexec {shutil.which("ufw")} --rootdir={root} --datadir={root} "$@"\n')
    script.chmod(0o755)
    yard.path = f"{bin_folder}:{yard.path}"
    yard.run(["ufw", "--force", "enable"])


BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={folder}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/>
    <allow send_type="method_call"/> <allow send_type="signal"/>
    <allow send_type="method_return" send_requested_reply="true"/>
    <allow send_type="error" send_requested_reply="true"/>
    <allow receive_type="method_call"/> <allow receive_type="signal"/>
    <allow receive_type="method_return"/> <allow receive_type="error"/>
  </policy>
</busconfig>
"""


def firewalld(yard: Yard, folder: Path) -> None:
    """The real one, which `./dev setup` unpacks, with Debian's settings, a D-Bus and files of its own."""
    if not FIREWALLD.exists():
        pytest.skip("firewalld is not unpacked: ./dev setup does it")
    (folder / "bus.conf").write_text(BUS.format(folder=folder))
    shutil.copytree(FIREWALLD / "etc/firewalld", folder / "etc")
    environment = (
        "/usr/bin/env",
        f"DBUS_SYSTEM_BUS_ADDRESS=unix:path={folder}/bus",
        f"PYTHONPATH={FIREWALLD / 'usr/lib/python3/dist-packages'}",
        "PYTHONDONTWRITEBYTECODE=1",
    )
    script = folder / "firewall-cmd"
    script.write_text(f'#!/bin/sh\nexec {" ".join(environment)} {FIREWALLD / "usr/bin/firewall-cmd"} "$@"\n')
    script.chmod(0o755)
    yard.path = f"{folder}:{yard.path}"
    yard.start(["dbus-daemon", f"--config-file={folder}/bus.conf", "--nofork", "--nopidfile"])
    deadline = time.monotonic() + 20
    while not (folder / "bus").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    paths = (f"--system-config={folder / 'etc'}", f"--default-config={FIREWALLD / 'usr/lib/firewalld'}")
    daemon = str(FIREWALLD / "usr/sbin/firewalld")
    yard.start([*environment, daemon, "--nofork", "--nopid", "--log-target=console", *paths])
    while (answer := yard.host.run([str(script), "--state"])).returncode != 0:
        assert time.monotonic() < deadline, answer.stderr
        time.sleep(0.1)


DOCKER = (
    "-P FORWARD DROP", "-N DOCKER-USER", "-N DOCKER-FORWARD", "-N DOCKER-CT", "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -j DOCKER-FORWARD", "-A DOCKER-FORWARD -j DOCKER-CT",
    "-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A DOCKER-FORWARD -i docker0 -j ACCEPT",
)  # fmt: skip
"""The chains that Docker 28 makes in the table filter, by the same tool."""


@pytest.fixture(scope="module")
def made() -> Iterator[Yard]:
    with Router() as router:
        yield Yard(router)


@pytest.fixture
def yard(made: Yard) -> Iterator[Yard]:
    yield made
    made.reset()


@pytest.mark.parametrize(
    "set_up",
    [
        pytest.param(nft_chain("prerouting", "accept", "tcp dport 2200 drop"), id="nft-prerouting-port"),
        pytest.param(nft_chain("prerouting", "drop", ESTABLISHED, "iifname client0 accept"), id="nft-prerouting"),
        pytest.param(nft_chain("input", "drop", ESTABLISHED, "udp dport 67 accept"), id="nft-input"),
        pytest.param(nft_chain("forward", "drop", ESTABLISHED), id="nft-forward"),
        pytest.param(
            nft_chain("forward", "accept", "ct state vmap { established : accept, new : drop }"), id="nft-forward-map"
        ),
        pytest.param(nft_chain("forward", "accept", "iifname client0 drop"), id="nft-forward-uplink"),
        pytest.param(nft_chain("output", "drop", ESTABLISHED), id="nft-output"),
        pytest.param(iptables("-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-P INPUT DROP"), id="iptables"),
        pytest.param(iptables(*DOCKER), id="docker"),
        pytest.param(ufw, id="ufw"),
        pytest.param(firewalld, id="firewalld"),
    ],
)
async def test_the_mend_that_is_printed_lets_the_sandboxes_traffic_pass_and_opens_no_isolation(
    yard: Yard, set_up: SetUp, tmp_path: Path
) -> None:
    await yard.guard()
    assert (await yard.found()).verdict is Verdict.OK
    set_up(yard, tmp_path)
    assert await yard.reached() == (False, True)
    finding = await yard.found()
    assert finding.verdict is Verdict.FAILED
    for command in commands(finding):
        yard.run(command)
    assert (await yard.found()).verdict is Verdict.OK
    assert await yard.reached() == (True, True)


async def test_another_instances_tables_on_our_bridge_are_told_of_and_never_written_into(yard: Yard) -> None:
    lost = firewall_of(yard.router, instance_id="lost")
    await lost.ensure(rules_of((yard.guest, 2200, 3000), (yard.other, 2201, 3001)))
    assert await yard.reached() == (True, True)
    finding = await yard.found()
    printed = commands(finding)
    for command in printed:
        if command[0] != "ravebot":
            yard.run(command)
    assert await yard.reached() == (True, True)
    assert finding.verdict is Verdict.FAILED
    assert printed == [["ravebot", "cleanup", "--instance-id", "lost", "--all", "--force"]]
    assert await firewall_of(yard.router).find_conflicts() == [finding.detail], "/readyz says the same"
    await lost.remove()  # which is what that command does here
    assert (await yard.found()).verdict is Verdict.OK


async def test_another_instance_on_another_bridge_is_nothing_to_tell(yard: Yard) -> None:
    await yard.guard()
    yard.host.ip("link", "add", "rb1", "type", "bridge")
    yard.host.address("rb1", "10.81.0.1/24")
    neighbour = firewall_of(yard.router, instance_id="other", bridge="rb1", subnet="10.81.0.0/24", egress="none")
    await neighbour.open()
    assert (await yard.found()).verdict is Verdict.OK
    await neighbour.remove()
