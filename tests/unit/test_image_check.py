"""What `ravebot image check` says and keeps, without a machine."""

from __future__ import annotations

import io
import re
import stat
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from rich.console import Console

from ravebot.config.file import defaults
from ravebot.config.model import Config
from ravebot.errors import Refused
from ravebot.images.check import settings
from ravebot.images.check.contract import CONTRACT, TOOLS
from ravebot.images.check.point import Point
from ravebot.images.check.report import Report
from ravebot.images.check.trial import free_subnet, used_networks
from ravebot.operations import imagechecks
from ravebot.operations.doctor import Verdict, machines
from ravebot.providers.libvirt import guest as agent
from ravebot.providers.libvirt import parcels
from ravebot.sandboxes.chain import guestjobs
from ravebot.terminal import Output
from tests.support.pages import codes, rows
from tests.unit.test_doctor import config

# What every shell does itself; `n` and `es` are parts of texts.
_BUILT_IN = (
    *("break", "case", "cd", "continue", "do", "done", "echo", "elif", "else", "esac", "eval", "exec", "exit"),
    *(
        "export",
        "fi",
        "for",
        "if",
        "return",
        "set",
        "shift",
        "then",
        "trap",
        "true",
        "ulimit",
        "umask",
        "wait",
        "while",
    ),
    *("n", "es"),
)
_CALLED = re.compile(r"(?:^|[;|&({!]|\b(?:then|else|do|exec|if|while))\s*([a-z]+)(?=[\s;)]|$)", re.MULTILINE)


def test_the_page_about_images_has_every_point_in_the_order_of_the_check() -> None:
    shown = [point for point, _, _ in rows("image.md", "point")]
    assert shown == ["file", "guest agent", *(clause.name for clause in CONTRACT), "first boot"]


def test_the_page_about_images_names_every_tool() -> None:
    told = next(must for point, must, _ in rows("image.md", "point") if point == "tools")
    assert tuple(codes(told)) == TOOLS


def test_every_point_needs_only_points_that_come_before_it() -> None:
    before = {"file", "guest agent"}
    for clause in CONTRACT:
        assert before.issuperset(clause.needs), clause.name
        before.add(clause.name)


def test_the_tools_are_those_that_our_scripts_call() -> None:
    scripts = [
        value
        for module in (agent, parcels, guestjobs)
        for name, value in vars(module).items()
        if isinstance(value, str) and " " in value and not name.startswith("__")
    ]
    called = set(_CALLED.findall("\n".join(scripts))) - set(_BUILT_IN)
    assert called <= set(TOOLS), called - set(TOOLS)
    assert called >= set(TOOLS) - {"sh", "gzip"}, "tar calls gzip, and sh is the scripts' own"


def test_a_free_network_overlaps_nothing_that_is_taken() -> None:
    taken = [IPv4Network("10.0.0.0/8"), IPv4Network("192.168.0.0/16"), IPv4Network("172.16.0.0/13")]
    found = free_subnet(taken)
    assert found.prefixlen == 29
    assert found.subnet_of(IPv4Network("172.24.0.0/13"))


def test_the_host_s_networks_are_known_with_its_loopback() -> None:
    assert IPv4Network("127.0.0.0/8") in used_networks()


def test_a_host_without_a_free_network_is_told() -> None:
    with pytest.raises(Refused, match="no private network free"):
        free_subnet([IPv4Network("0.0.0.0/0")])


def test_another_file_is_not_checked_with_the_configured_kernel() -> None:
    own = config(provider={"image": "/images/a.qcow2", "kernel": "/images/k", "initrd": "/images/i", "cmdline": "x"})
    assert settings.for_image(own, Path("/images/../images/a.qcow2")) == own
    other = settings.for_image(own, Path("/images/b.qcow2")).provider
    assert (other.image, other.kernel, other.initrd, other.cmdline) == (Path("/images/b.qcow2"), None, None, "")


def test_without_a_configuration_the_defaults_are_used(tmp_path: Path) -> None:
    chosen = defaults(tmp_path / "image.qcow2")
    assert (chosen.provider.image, chosen.sandbox.user, chosen.pool.build_timeout) == (
        tmp_path / "image.qcow2",
        "agent",
        timedelta(minutes=5),
    )
    assert settings.with_agent_limit(chosen, timedelta(seconds=7)).pool.build_timeout == timedelta(seconds=7)


@pytest.fixture
def checked(tmp_path: Path) -> Config:
    path = tmp_path / "sandbox.qcow2"
    path.write_bytes(b"an image")
    return config(state_dir=str(tmp_path), provider={"image": str(path)})


def shown(checked: Config) -> tuple[Verdict, str]:
    finding = machines.image_check(checked)
    return finding.verdict, finding.detail


def test_the_doctor_says_that_an_image_was_never_checked(checked: Config) -> None:
    assert shown(checked) == (
        Verdict.UNKNOWN,
        f"no result of `ravebot image check` for {checked.provider.image} is kept",
    )


def test_the_doctor_shows_the_last_result_of_each_image_that_projects_may_ask_for(
    checked: Config, tmp_path: Path
) -> None:
    path = tmp_path / "13.qcow2"
    path.write_bytes(b"another image")
    named = checked.model_copy(
        update={"provider": checked.provider.model_copy(update={"images": {"debian-13": path}, "cmdline": "quiet"})}
    )
    never = machines.named_image_check(named, "debian-13")
    assert (never.name, never.verdict) == ("image check debian-13", Verdict.UNKNOWN)
    assert never.fix == "as root: ravebot image check debian-13"
    assert imagechecks.keep(settings.for_image(named, path), ["growth"], [])
    found = machines.named_image_check(named, "debian-13")
    assert (found.verdict, "growth failed" in found.detail) == (Verdict.FAILED, True)
    assert machines.image_check(named).verdict is Verdict.UNKNOWN, "that is another image"


@pytest.mark.parametrize(
    ("failed", "warnings", "verdict", "said"),
    [
        ((), (), Verdict.OK, "it meets the guest contract"),
        ((), ("web port",), Verdict.WARNING, "to look at: web port"),
        (("growth", "user"), ("web port",), Verdict.FAILED, "growth, user failed"),
    ],
)
def test_the_doctor_shows_the_last_result(
    checked: Config, failed: tuple[str, ...], warnings: tuple[str, ...], verdict: Verdict, said: str
) -> None:
    assert imagechecks.keep(checked, ["guest agent"], [])
    assert imagechecks.keep(checked, failed, warnings)
    found, detail = shown(checked)
    assert found is verdict
    assert said in detail
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC: ", detail)


def test_a_result_does_not_count_for_a_file_that_was_changed_since(checked: Config) -> None:
    imagechecks.keep(checked, [], [])
    checked.provider.image.write_bytes(b"another image")
    verdict, detail = shown(checked)
    assert (verdict, detail.partition(" the check")[0]) == (Verdict.UNKNOWN, "the file was changed after")
    imagechecks.keep(checked, [], [])
    assert shown(checked)[0] is Verdict.OK


def test_a_result_does_not_count_for_other_settings(checked: Config) -> None:
    imagechecks.keep(checked, [], [])
    other = checked.model_copy(update={"sandbox": checked.sandbox.model_copy(update={"user": "dev"})})
    verdict, detail = shown(other)
    assert (verdict, detail.partition(" the check")[0]) == (Verdict.UNKNOWN, "the configuration was changed after")


def test_results_of_other_images_stay_and_damaged_ones_are_written_anew(checked: Config, tmp_path: Path) -> None:
    (tmp_path / "other.qcow2").write_bytes(b"")
    other = settings.for_image(checked, tmp_path / "other.qcow2")
    imagechecks.keep(other, ["growth"], [])
    imagechecks.keep(checked, [], [])
    kept = imagechecks.latest(other)
    assert kept
    assert kept.failed == ("growth",)
    (tmp_path / "image-checks.json").write_text("{")
    assert imagechecks.latest(other) is None
    assert imagechecks.keep(checked, [], [])
    assert [path.name for path in tmp_path.glob("*image-checks*")] == ["image-checks.json"]
    assert stat.S_IMODE((tmp_path / "image-checks.json").stat().st_mode) == 0o644, "the bot's user reads it, too"


def test_without_a_state_folder_no_result_is_kept(checked: Config, tmp_path: Path) -> None:
    assert not imagechecks.keep(checked.model_copy(update={"state_dir": tmp_path / "none"}), [], [])


def told(points: list[Point], terminal: bool) -> tuple[str, str]:
    """What the report prints to stdout and to stderr."""
    output, out, errors = Output(), io.StringIO(), io.StringIO()
    output.console = Console(file=out, force_terminal=terminal, width=100, highlight=False, markup=False)
    output.errors = Console(file=errors, force_terminal=terminal, width=100, highlight=False, markup=False)
    report = Report(output)
    for point in points:
        report.told(point)
    report.end(points)
    return out.getvalue(), errors.getvalue()


def test_a_terminal_gets_what_a_guest_said_without_its_control_characters() -> None:
    hostile = Point("user", Verdict.FAILED, "no user \x1b[2J agent\r", "add \x1b]0;x\x07 it", 1.5, "boot \x1b[H")
    out, errors = told([hostile], terminal=True)
    assert "\x1b[2J" not in out
    assert "\x1b]0" not in out
    assert r"no user \x1b[2J agent\r" in out
    assert r"boot \x1b[H" in errors
    assert "1 failed" in errors


def test_a_silent_guest_with_an_empty_console_is_told_why_it_may_be_empty() -> None:
    _, errors = told([Point("guest agent", Verdict.FAILED, "no answer within 9 s", "install it", 9.0)], terminal=True)
    assert "console=ttyS0" in errors
