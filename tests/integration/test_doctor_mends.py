"""What doctor says to run for files, folders and kernel settings, run as it says: then it is content.

The firewalls' are in test_firewall_mends.py. Not run are those that would change the machine the tests run on (apt-get,
systemctl, timedatectl), and there is nothing to run where a fix is advice in words.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ravebot.access.nftables.nft import NetworkTools
from ravebot.config.model import Config
from ravebot.config.secrets import read_secret
from ravebot.operations.doctor import Finding, Verdict, machines, network, state
from tests.integration.provider_libvirt import open_folder
from tests.support.netns import Namespace

pytestmark = pytest.mark.integration


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody gets to, with a name that a shell takes apart."""
    with open_folder() as parent:
        path = parent / "it's here"
        path.mkdir(mode=0o755)
        yield path


def command_in(fix: str) -> str:
    """The command, without what is said before and after it."""
    return re.sub(r"^(as root|to enable it at boot): |, or .*$", "", fix)


def run_in_shell(command: str) -> None:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def as_nobody(check: Callable[[], Finding]) -> Finding:
    """What the check finds in a process of that user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.environ["LOGNAME"] = "root"  # setpriv, for one, leaves it as it was
            os.setgroups([])
            os.setgid(65534)
            os.setuid(pwd.getpwnam("nobody").pw_uid)
            os.write(writing, json.dumps(asdict(check())).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        found = json.loads(answer.read())
    return Finding(found["name"], Verdict(found["verdict"]), found["detail"], found["fix"])


def config(folder: Path) -> Config:
    return Config.model_validate(
        {
            "matrix": {"homeserver": "https://m.example.org", "user_id": "@r:example.org", "password_file": "/x"},
            "gitlab": {
                "url": "https://gitlab.example.org", "token_file": "/x", "projects": ["group/app"],
                "webhook": {"secret_token_file": "/x"},
            },
            "sandbox": {"host": "sandboxes.example.org", "disk": "64MiB"},
            "provider": {"image": str(folder / "a/b/image.qcow2"), "storage_pool": str(folder / "a/b/disks")},
        }
    )  # fmt: skip


@pytest.mark.parametrize("mode", [0o777, 0o750])
def test_the_printed_command_closes_a_state_folder_to_others(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    finding = state.state_folder(folder)
    assert finding.verdict is not Verdict.OK
    run_in_shell(command_in(finding.fix))
    assert state.state_folder(folder).verdict is Verdict.OK


def test_the_printed_command_makes_a_state_folder_that_ravebots_user_can_not_make(folder: Path) -> None:
    def check() -> Finding:
        return state.state_folder(folder / "state")

    finding = as_nobody(check)
    assert finding.verdict is Verdict.FAILED
    run_in_shell(command_in(finding.fix))
    assert as_nobody(check).verdict is Verdict.OK


def test_the_printed_command_gives_ravebots_user_a_state_folder_that_it_could_not_write(folder: Path) -> None:
    path = folder / "state"
    path.mkdir(mode=0o711)

    def check() -> Finding:
        return state.state_folder(path)

    finding = as_nobody(check)
    assert finding.verdict is Verdict.FAILED
    run_in_shell(command_in(finding.fix))
    assert as_nobody(check).verdict is Verdict.OK


@pytest.mark.parametrize("check", [machines.image, machines.disk])
def test_the_printed_command_opens_the_way_to_image_and_disks_to_qemu(
    folder: Path, check: Callable[[Config], Finding]
) -> None:
    inner = folder / "a/b"
    inner.mkdir(parents=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(inner / "image.qcow2"), "64K"], check=True)
    for closed in (folder / "a", inner):
        closed.chmod(0o700)
    finding = check(config(folder))
    assert finding.verdict is not Verdict.OK
    run_in_shell(command_in(finding.fix))
    assert "chmod" not in check(config(folder)).fix


def test_the_printed_command_closes_a_secret_to_others(folder: Path) -> None:
    path = folder / "token"
    path.write_text("hush")
    path.chmod(0o644)
    with pytest.raises(ValueError, match="chmod") as raised:
        read_secret(path, {os.getuid()})
    run_in_shell(str(raised.value).rpartition(": ")[2])
    assert read_secret(path, {os.getuid()}) == "hush"


async def test_the_printed_command_switches_forwarding_on_at_each_start(folder: Path) -> None:
    with Namespace("forw") as namespace:
        tools = NetworkTools(namespace.prefix)
        await tools.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
        finding = await network.forwarding(tools)
        assert finding.verdict is Verdict.WARNING
        # The host's own files stay as they are; reading all of them is what happens at its next start.
        start = 'mount --bind "$0" /etc/sysctl.d && sh -c "$1" && sysctl -q -p /etc/sysctl.d/*.conf'
        namespace.run(["sh", "-c", start, str(folder), command_in(finding.fix)], check=True)
        assert (await network.forwarding(tools)).verdict is Verdict.OK
