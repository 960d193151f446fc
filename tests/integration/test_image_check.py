"""`ravebot image check` on guests that break the contract, one point each: each is named, and none holds it up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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


def configuration(folder: Path, guest: GuestImage, knobs: str = "", **sandbox: Any) -> Path:
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
                "pool": {"shutdown_grace": "10s", "build_timeout": "90s"},
                "sandbox": {"memory": "256MiB", "vcpus": 1, "disk": "2GiB", "host": "192.0.2.1", **sandbox},
                "provider": {
                    "accelerator": "tcg",
                    "image": str(guest.image),
                    "kernel": str(guest.kernel),
                    "initrd": str(guest.initrd),
                    "cmdline": f"{guest.cmdline} {knobs}",
                },
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
    told, complaints = process.communicate(timeout=WHOLE_SECONDS)
    assert complaints == "", complaints
    assert left_over(folder) == []
    return process.returncode, {point["name"]: point for point in json.loads(told)}


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


def tables() -> set[str]:
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\S*chk[0-9a-f]{5}", listed))


def broken(points: dict[str, Any]) -> set[str]:
    """The points that failed; not those that could not be looked at because of these."""
    return {name for name, point in points.items() if point["verdict"] == "failed"}


def test_a_guest_that_meets_the_contract_passes_every_point_and_the_doctor_says_so(
    folder: Path, guest: GuestImage
) -> None:
    config = configuration(folder, guest)
    before = tables()

    code, points = check("-c", str(config), folder=folder)

    assert {name: point["verdict"] for name, point in points.items()} == dict.fromkeys(POINTS, "ok"), points
    assert tuple(points) == POINTS
    assert code == 0
    assert all(point["seconds"] >= 0 and point["fix"] == "" for point in points.values())
    assert tables() <= before
    doctor = subprocess.run(
        [sys.executable, "-m", "ravebot", "doctor", "-c", str(config), "--json"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    shown = {finding["name"]: finding for finding in json.loads(doctor.stdout)}
    assert shown["image check"]["verdict"] == "ok"
    assert "it meets the guest contract" in shown["image check"]["detail"]


WRONG = {
    "rave.fixedhostkey": ("first boot", "baked into the image", "make them at the first boot"),
    "rave.password": ("no passwords", "a login by password", "PasswordAuthentication no"),
    "rave.nogrow": ("growth", "of a disk of 2.0 GiB", "grow the partition and the file system at boot"),
    "rave.nouser": ("user", "has no user agent", "sandbox.user to one that it has (someoneelse)"),
    "rave.nosshd": ("SSH login", "nothing listens there", "install an SSH server"),
    "rave.deafweb": ("web port", "answers no request", "must answer HTTP or HTTPS"),
    "rave.noforward": ("remote forward", "refuses to forward", "AllowTcpForwarding yes"),
    "rave.nodhcp": ("address", "nobody has", "by DHCP"),
    "rave.notool=tar": ("tools", "missing: tar", "install them"),
    "rave.noshutdown": ("graceful stop", "still on 10 s after", "pool.shutdown_grace"),
}


@pytest.mark.parametrize(
    ("knobs", "besides"),
    [
        # Each breaks a point of its own, and hides none of the others'.
        ("rave.fixedhostkey rave.password rave.nogrow rave.deafweb rave.noforward rave.noshutdown", set()),
        # Without the tool no code is put in place, and nobody can tell what a server that is not there accepts.
        ("rave.notool=tar rave.nosshd", {"code and set-up", "no passwords"}),
        ("rave.nodhcp rave.nouser", set()),
    ],
)
def test_a_guest_that_breaks_the_contract_is_told_where_and_what_mends_it(
    folder: Path, guest: GuestImage, knobs: str, besides: set[str]
) -> None:
    code, points = check("-c", str(configuration(folder, guest, knobs)), folder=folder)

    assert code == 1
    for knob in knobs.split():
        point, said, mend = WRONG[knob]
        assert said in points[point]["detail"], points[point]
        assert mend in points[point]["fix"], points[point]
    assert broken(points) == {WRONG[knob][0] for knob in knobs.split()} | besides


def test_what_an_image_may_lack_is_told_and_no_failure(folder: Path, guest: GuestImage) -> None:
    code, points = check("-c", str(configuration(folder, guest, "rave.noweb rave.nohotplug")), folder=folder)

    for point, said in (("web port", "nothing listens on 3002"), ("hot plug", "the kernel sees no new disk")):
        assert points[point]["verdict"] == "warning"
        assert said in points[point]["detail"]
        assert points[point]["fix"]
    assert (code, broken(points)) == (0, set())


def test_a_guest_without_an_agent_is_told_with_its_console_and_what_can_be_seen_from_outside(
    folder: Path, guest: GuestImage
) -> None:
    began = time.monotonic()
    code, points = check("--limit", "25s", "-c", str(configuration(folder, guest, "rave.noagent")), folder=folder)

    assert time.monotonic() - began < 25 + 60
    assert code == 1
    assert points["guest agent"]["detail"] == "no answer within 25 s"
    assert "install qemu-guest-agent" in points["guest agent"]["fix"]
    assert points["address"]["verdict"] == "ok", "it boots, which this shows"
    assert points["no passwords"]["verdict"] == "ok"
    assert points["user"]["verdict"] == "unknown"
    assert broken(points) == {"guest agent"}


def test_a_guest_that_hangs_is_told_in_time_with_the_last_lines_of_its_console(folder: Path, guest: GuestImage) -> None:
    config = configuration(folder, guest, "rave.hang")
    began = time.monotonic()
    process = start("-c", str(config), "--limit", "20s", folder=folder)
    told, complaints = process.communicate(timeout=WHOLE_SECONDS)

    assert time.monotonic() - began < 20 + 60
    assert process.returncode == 1
    assert "failed\tguest agent\t" in told
    assert "The last lines on the console:" in complaints
    assert "hang" in complaints.partition("on the console:")[2], complaints
    assert left_over(folder) == []


def test_what_is_no_image_is_told_without_a_boot(folder: Path, guest: GuestImage) -> None:
    config = configuration(folder, guest)
    wrong = folder / "image.qcow2"
    wrong.write_bytes(b"not an image" * 1000)
    began = time.monotonic()

    code, points = check(str(wrong), "-c", str(config), folder=folder)

    assert time.monotonic() - began < 20
    assert code == 1
    assert list(points) == ["file"]
    assert "is not a qcow2 image" in points["file"]["detail"]
    code, points = check(str(folder / "missing.qcow2"), "-c", str(config), folder=folder)
    assert (code, broken(points)) == (1, {"file"})


def test_an_image_that_no_machine_can_use_is_told_without_a_boot(folder: Path, guest: GuestImage) -> None:
    config = configuration(folder, guest)
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    code, points = check(str(plain_image(closed / "image.qcow2")), "-c", str(config), folder=folder)
    assert (code, broken(points)) == (1, {"file"})
    assert f"chmod o+x {closed}" in points["file"]["fix"]
    code, points = check(str(plain_image(folder / "large.qcow2", "3G")), "-c", str(config), folder=folder)
    assert (code, list(points)) == (1, ["file"])
    assert "raise sandbox.disk" in points["file"]["fix"]


def test_an_image_with_nothing_on_it_is_tried_without_the_configured_kernel(folder: Path, guest: GuestImage) -> None:
    empty = plain_image(folder / "empty.qcow2", "64M")
    code, points = check(str(empty), "--limit", "10s", "-c", str(configuration(folder, guest)), folder=folder)

    assert code == 1
    assert broken(points) >= {"guest agent", "address"}
    assert points["web port"]["verdict"] == "unknown", "nobody has the address"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_the_machine_away(folder: Path, guest: GuestImage, how: signal.Signals) -> None:
    process = start("-c", str(configuration(folder, guest)), folder=folder)
    assert process.stdout
    while "\tfile\t" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    time.sleep(4)  # its machine is being made, or boots
    process.send_signal(how)
    process.communicate(timeout=60)

    assert process.returncode == 130
    assert left_over(folder) == []


def test_what_a_killed_check_left_is_removed_by_the_next(folder: Path, guest: GuestImage) -> None:
    config = configuration(folder, guest)
    before = tables()
    process = start("-c", str(config), folder=folder)
    deadline = time.monotonic() + 60
    while not any("rave-image-check" in name for name in left_over(folder)):
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.2)
    process.kill()
    process.communicate()
    assert left_over(folder) != []

    code, _ = check("--limit", "3s", "-c", str(config), folder=folder)

    assert code == 1, "no guest answers that fast"
    assert tables() <= before
