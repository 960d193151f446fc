"""`ravebot image check` on guests that break the contract, one point each: each is named, and none holds it up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt
import pytest
import yaml

from ravebot.images.check.contract import CONTRACT
from tests.integration.provider_libvirt import open_folder, plain_image
from tests.support.guest_image import GuestImage, build_guest
from tests.support.libvirtd import ensure_libvirtd
from tests.support.stage import GUEST_CACHE, ROOT

pytestmark = pytest.mark.integration
POINTS = ("file", "guest agent", *(clause.name for clause in CONTRACT), "first boot")
WHOLE_SECONDS = 200


@pytest.fixture
def folder() -> Iterator[Path]:
    ensure_libvirtd()
    with open_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def guest() -> Iterator[GuestImage]:
    with open_folder() as cache:
        subprocess.run(["cp", "-a", f"{GUEST_CACHE}/.", cache], check=GUEST_CACHE.exists())
        yield build_guest(cache)


def tiny(guest: GuestImage, knobs: str = "") -> dict[str, str]:
    """What the configuration says of the tests' tiny guest."""
    cmdline = f"{guest.cmdline} {knobs}".strip()
    return {"image": str(guest.image), "kernel": str(guest.kernel), "initrd": str(guest.initrd), "cmdline": cmdline}


def configuration(
    folder: Path,
    provider: Mapping[str, object],
    *,
    grace: str = "10s",
    memory: str = "256MiB",
    vcpus: int = 1,
    disk: str = "2GiB",
) -> Path:
    """A whole configuration, of which only what a machine is started with matters."""
    secret = folder / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    (folder / "state").mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "state_dir": str(folder / "state"),
                "matrix": {
                    "homeserver": "https://matrix.example.org",
                    "user_id": "@ravebot:example.org",
                    "password_file": str(secret),
                },
                "gitlab": {
                    "url": "https://gitlab.example.org",
                    "token_file": str(secret),
                    "projects": ["group/*"],
                    "webhook": {"secret_token_file": str(secret)},
                },
                "pool": {"shutdown_grace": grace, "build_timeout": "150s"},
                "sandbox": {"memory": memory, "vcpus": vcpus, "disk": disk, "host": "192.0.2.1"},
                "provider": {"accelerator": "tcg", **provider},
            }
        )
    )
    return path


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ravebot", "image", "check", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def check(*arguments: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """The exit code, and what was found, by the points' names."""
    process = start("--json", *arguments, folder=folder)
    trials: set[str] = set()
    deadline = time.monotonic() + WHOLE_SECONDS
    while process.poll() is None:
        trials |= instance_ids(folder)
        assert time.monotonic() < deadline, f"{arguments} takes too long"
        time.sleep(0.2)
    told, complaints = process.communicate()
    assert complaints == "", complaints
    assert left_over(folder) == []
    points = {point["name"]: point for point in json.loads(told)}
    assert bool(trials) == ("guest agent" in points)
    assert tables(trials) == []
    return process.returncode, points


def instance_ids(folder: Path) -> set[str]:
    """Those of the trials whose folders are there."""
    return {path.name.split("-")[3] for path in folder.glob("ravebot-image-check-*")}


def left_over(folder: Path) -> list[str]:
    """What trials have left in libvirt, in the firewall, and in their temporary folder."""
    connection = libvirt.open("qemu:///system")
    found = [f"folder {path.name}" for path in folder.glob("ravebot-image-check-*")]
    for domain in connection.listAllDomains():
        with suppress(libvirt.libvirtError):  # another test's, gone meanwhile
            found += [domain.name()] if str(folder) in domain.XMLDesc() else []
    for pool in connection.listAllStoragePools():
        with suppress(libvirt.libvirtError):
            found += [pool.name()] if str(folder) in pool.XMLDesc() else []
    connection.close()
    return found


def tables(trials: set[str]) -> list[str]:
    """The firewall tables of these trials."""
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if any(trial in line for trial in trials)]


def broken(points: dict[str, Any]) -> set[str]:
    """The points that failed; not those that could not be looked at because of these."""
    return {name for name, point in points.items() if point["verdict"] == "failed"}


def test_what_an_image_may_lack_is_told_is_no_failure_and_the_doctor_says_so(folder: Path, guest: GuestImage) -> None:
    config = configuration(folder, tiny(guest, "rave.noweb"))

    code, points = check("-c", str(config), folder=folder)

    assert tuple(points) == POINTS
    verdicts = {name: point["verdict"] for name, point in points.items()}
    assert verdicts == dict.fromkeys(POINTS, "ok") | {"web port": "warning"}, points
    assert "nothing listens on 3002" in points["web port"]["detail"]
    assert code == 0
    assert all(bool(point["fix"]) == (name == "web port") for name, point in points.items())
    doctor = subprocess.run(
        [sys.executable, "-m", "ravebot", "doctor", "-c", str(config), "--json"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    shown = {finding["name"]: finding for finding in json.loads(doctor.stdout)}
    assert shown["image check"]["verdict"] == "warning"
    assert "to look at: web port" in shown["image check"]["detail"]


def test_an_image_that_projects_may_ask_for_is_checked_by_its_name(folder: Path, guest: GuestImage) -> None:
    """A file that is none shows which one is looked at, without a boot."""
    named = folder / "13.qcow2"
    named.write_text("<html>404</html>")
    provider: dict[str, Any] = {**tiny(guest), "images": {"debian-13": str(named)}}

    code, points = check("-c", str(configuration(folder, provider)), "debian-13", folder=folder)

    assert (code, list(points)) == (1, ["file"])
    assert f"{named} is not a qcow2 image" in points["file"]["detail"]


WRONG = {
    "rave.fixedhostkey": ("first boot", "baked into the image", "make them at the first boot"),
    "rave.password": ("no passwords", "a login by password", "PasswordAuthentication no"),
    "rave.nogrow": ("growth", "of a disk of 2.0 GiB", "grow the partition and the file system at boot"),
    "rave.nouser": ("user", "has no user agent", "sandbox.user to one that it has (someoneelse)"),
    "rave.nosshd": ("SSH login", "nothing listens there", "install an SSH server"),
    "rave.deafweb": ("web port", "answers no request", "must answer HTTP or HTTPS"),
    "rave.noforward": ("remote forward", "refuses to forward", "AllowTcpForwarding yes"),
    "rave.nodhcp": ("address", "no machine answers at", "by DHCP"),
    "rave.notool=tar": ("tools", "missing: tar", "install them"),
    "rave.noshutdown": ("graceful stop", "still on 10 s after", "pool.shutdown_grace"),
}


@pytest.mark.parametrize(
    ("knobs", "besides"),
    [
        # Each breaks a point of its own, and hides none of the others'.
        (
            "rave.fixedhostkey rave.password rave.nogrow rave.deafweb rave.noforward rave.noshutdown rave.nohotplug",
            set(),
        ),
        # Without the tool no code is put in place, and nobody can tell what a server that is not there accepts.
        ("rave.notool=tar rave.nosshd", {"code and set-up", "no passwords"}),
        ("rave.nodhcp rave.nouser", set()),
    ],
)
def test_a_guest_that_breaks_the_contract_is_told_where_and_what_mends_it(
    folder: Path, guest: GuestImage, knobs: str, besides: set[str]
) -> None:
    code, points = check("-c", str(configuration(folder, tiny(guest, knobs))), folder=folder)

    assert code == 1
    for knob in knobs.split():
        if knob == "rave.nohotplug":
            assert points["hot plug"]["verdict"] == "warning", points["hot plug"]
            continue
        point, said, mend = WRONG[knob]
        assert said in points[point]["detail"], points[point]
        assert mend in points[point]["fix"], points[point]
    assert broken(points) == {WRONG[knob][0] for knob in knobs.split() if knob in WRONG} | besides


def test_a_guest_without_an_agent_is_told_with_its_console_and_what_can_be_seen_from_outside(
    folder: Path, guest: GuestImage
) -> None:
    began = time.monotonic()
    code, points = check("--limit", "25s", "-c", str(configuration(folder, tiny(guest, "rave.noagent"))), folder=folder)

    assert time.monotonic() - began < 25 + 60
    assert code == 1
    assert points["guest agent"]["detail"] == "no answer within 25 s"
    assert "install qemu-guest-agent" in points["guest agent"]["fix"]
    assert points["address"]["verdict"] == "ok", "it boots, which this shows"
    assert points["no passwords"]["verdict"] == "ok"
    assert points["user"]["verdict"] == "unknown"
    assert broken(points) == {"guest agent"}


def test_what_is_no_image_is_told_without_a_boot(folder: Path, guest: GuestImage) -> None:
    config = configuration(folder, tiny(guest))
    wrong = folder / "image.qcow2"
    wrong.write_bytes(b"not an image" * 1000)
    began = time.monotonic()

    code, points = check(str(wrong), "-c", str(config), folder=folder)

    assert time.monotonic() - began < 20
    assert code == 1
    assert list(points) == ["file"]
    assert "is not a qcow2 image" in points["file"]["detail"]
    os.mkfifo(folder / "pipe.qcow2")
    for other in ("missing.qcow2", "pipe.qcow2"):
        code, points = check(str(folder / other), "-c", str(config), folder=folder)
        assert (code, broken(points)) == (1, {"file"})
    assert points["file"]["fix"]


def test_an_image_that_no_machine_can_use_is_told_without_a_boot(folder: Path, guest: GuestImage) -> None:
    config = configuration(folder, tiny(guest))
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    code, points = check(str(plain_image(closed / "image.qcow2")), "-c", str(config), folder=folder)
    assert (code, broken(points)) == (1, {"file"})
    assert f"chmod o+x {closed}" in points["file"]["fix"]
    code, points = check(str(plain_image(folder / "large.qcow2", "3G")), "-c", str(config), folder=folder)
    assert (code, list(points)) == (1, ["file"])
    assert "raise sandbox.disk" in points["file"]["fix"]


def test_an_interrupt_takes_the_machine_away(folder: Path, guest: GuestImage) -> None:
    process = start("-c", str(configuration(folder, tiny(guest))), folder=folder)
    assert process.stdout
    while "\tfile\t" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    time.sleep(4)  # its machine is being made, or boots
    process.send_signal(signal.SIGTERM)
    _, complaints = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Interrupted: nothing is left of this check." in complaints
    assert left_over(folder) == []


def test_what_a_killed_check_left_is_removed_by_the_next_which_tells_a_guest_that_hangs_with_its_last_lines(
    folder: Path, guest: GuestImage
) -> None:
    config = configuration(folder, tiny(guest))
    process = start("-c", str(config), folder=folder)
    deadline = time.monotonic() + 60
    while not (any("rave-image-check" in name for name in left_over(folder)) and tables(instance_ids(folder))):
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.2)
    process.kill()
    process.communicate()
    assert left_over(folder) != []
    killed = instance_ids(folder)

    config = configuration(folder, tiny(guest, "rave.hang"))
    began = time.monotonic()
    process = start("-c", str(config), "--limit", "20s", folder=folder)
    trials = set(killed)
    while process.poll() is None:
        trials |= instance_ids(folder)
        assert time.monotonic() - began < 20 + 60
        time.sleep(0.2)
    told, complaints = process.communicate()

    assert process.returncode == 1
    assert "failed\tguest agent\t" in told
    assert "The last lines on the console:" in complaints
    assert "hang" in complaints.partition("on the console:")[2], complaints
    assert left_over(folder) == []
    assert len(trials) == 2
    assert tables(trials) == []
