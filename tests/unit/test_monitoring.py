"""The files in monitoring/ are right for the programs that read them; each alert fires and is quiet as it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ravebot.operations.resources import BUSY_FOR, MOST_BEYOND_BYTES, MOST_MEMORY_BYTES
from tests.support.dashboards import documented, metrics
from tests.support.pages import code, rows
from tests.support.prometheus import MONITORING, program

RULES = MONITORING / "prometheus" / "ravebot.rules.yml"
TESTS = MONITORING / "prometheus" / "ravebot.test.yml"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def checked(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [program(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parent)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("promtool", ("check", "rules", "--lint-fatal", RULES)),
        ("promtool", ("check", "config", MONITORING / "prometheus" / "prometheus.yml")),
        ("promtool", ("test", "rules", TESTS)),
        ("amtool", ("check-config", MONITORING / "alertmanager" / "alertmanager.yml")),
    ],
)
def test_the_programs_that_read_these_files_find_them_right(name: str, arguments: tuple[object, ...]) -> None:
    done = checked(name, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_is_changed_fails_its_tests(tmp_path: Path) -> None:
    for path in (RULES, TESTS):
        shutil.copy(path, tmp_path)
    broken = tmp_path / RULES.name
    broken.write_text(
        RULES.read_text().replace("ravebot_queue_oldest_seconds > 1800", "ravebot_queue_oldest_seconds > 18000")
    )
    done = checked("promtool", "test", "rules", tmp_path / TESTS.name)
    assert done.returncode != 0
    assert "RavebotQueueLong fires" in done.stdout + done.stderr


def test_each_alert_is_tested_firing_and_quiet() -> None:
    names = {test["name"] for test in yaml.safe_load(TESTS.read_text())["tests"]}
    assert names == {f"{rule['alert']} {how}" for rule in rules() for how in ("fires", "is quiet")}


def test_each_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        for annotation in ("summary", "runbook"):
            assert rule["annotations"][annotation].endswith((".", "?")), rule["alert"]


@pytest.mark.parametrize(
    ("alert", "bound"),
    [
        ("RavebotGuestSpins", BUSY_FOR.total_seconds()),
        ("RavebotMemoryHigh", MOST_MEMORY_BYTES),
        ("RavebotMachineMemoryHigh", MOST_BEYOND_BYTES),
    ],
)
def test_alerts_and_readyz_have_the_same_bounds(alert: str, bound: float) -> None:
    [rule] = [rule for rule in rules() if rule["alert"] == alert]
    [written] = re.findall(r"[>+]=? ([0-9^]+)$", rule["expr"])
    number, _, power = written.partition("^")
    assert int(number) ** int(power or 1) == bound


def test_alerts_ask_only_for_metrics_that_there_are() -> None:
    asked = {name for rule in rules() for name in metrics(rule["expr"])}
    assert asked - documented() - {"up"} == set()


def test_the_table_of_alerts_is_the_rules() -> None:
    told = {code(name): severity for name, severity, _ in rows("operate.md", "alert")}
    assert told == {rule["alert"]: rule["labels"]["severity"] for rule in rules()}


def test_runbooks_name_commands_that_there_are() -> None:
    known = {code(name).removeprefix("ravebot ") for name, *_ in rows("operate.md", "run")}
    for rule in rules():
        for command in re.findall(r"`ravebot ([a-z-]+)", rule["annotations"]["runbook"]):
            assert any(name.split()[0] == command for name in known), (rule["alert"], command)
