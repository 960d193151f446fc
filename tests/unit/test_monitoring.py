"""The files in monitoring/ are right for the programs that read them; each alert fires and is quiet as it should."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from ravebot.cli import app
from ravebot.config.file import fill
from ravebot.config.model import Config
from ravebot.operations.init.alerting import receiver
from ravebot.operations.resources import BUSY_FOR, MOST_BEYOND_BYTES, MOST_MEMORY_BYTES
from tests.support.dashboards import documented, metrics
from tests.support.pages import code, codes, example_keys, rows
from tests.support.prometheus import MONITORING, program

RULES = MONITORING / "prometheus" / "ravebot.rules.yml"
TESTS = MONITORING / "prometheus" / "ravebot.test.yml"
HOST = {"systemctl", "journalctl", "virsh", "nft", "df", "ls", "top", "fuser", "py-spy"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def minutes(text: str) -> int:
    """Of Prometheus' `15m` or `1h`."""
    return int(text[:-1]) * {"m": 1, "h": 60}[text[-1]]


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


def test_what_init_prints_for_alertmanager_is_right_beside_a_route(tmp_path: Path) -> None:
    lines = tmp_path / "alertmanager.yml"
    lines.write_text(f"route: {{receiver: ravebot}}\n{receiver(Config.model_validate(fill({})))}")
    done = checked("amtool", "check-config", lines)
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


def test_times_in_summaries_are_the_rule_s_own() -> None:
    """What a range looks back on, and for how long that has been so."""
    for rule in rules():
        looks_back = {minutes(one) for one in re.findall(r"\[(\w+)\]", rule["expr"])} or {0}
        said = {int(one) for one in re.findall(r"(\d+) minutes", rule["annotations"]["summary"])}
        said |= {60} if "last hour" in rule["annotations"]["summary"] else set()
        assert said <= {one + minutes(rule.get("for", "0m")) for one in looks_back}, rule["alert"]


def test_alerts_ask_only_for_metrics_that_there_are() -> None:
    asked = {name for rule in rules() for name in metrics(rule["expr"])}
    assert asked - documented() - {"up"} == set()


def test_the_table_of_alerts_is_the_rules_and_the_first_step_of_their_runbooks() -> None:
    told = {code(name): (severity, first) for name, severity, _, first in rows("operate.md", "alert")}
    assert told == {
        rule["alert"]: (rule["labels"]["severity"], rule["annotations"]["runbook"].partition(": ")[0])
        for rule in rules()
    }
    assert [name for name, (_, first) in told.items() if not first.startswith("`")] == []


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_all_that_a_runbook_names_is_there(rule: dict[str, Any]) -> None:
    named = codes(rule["annotations"]["runbook"])
    assert [name for name in named if not is_known(name)] == []


def is_known(named: str) -> bool:
    """Whether it is a command with these options, a program of the host's, a check of /readyz, or a key."""
    program, *words = shlex.split(named)
    match program:
        case "ravebot":
            return is_command(words)
        case "!rave":
            return any(code(said).split()[1] == words[0] for said, _ in rows("operate.md", "say"))
        case "/readyz":
            return not words
    checks = {code(check) for check, _ in rows("operate.md", "check")}
    return program in HOST | checks or tuple(named.split(".")) in example_keys()


def is_command(words: list[str]) -> bool:
    """Whether there is such a command of ravebot's with these options, and the kinds of events that are asked for."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return False
        command, *words = command.commands[words[0]], *words[1:]
    options = {option for parameter in command.params for option in parameter.opts}
    kinds = [code(kind) for kind, *_ in rows("operate.md", "event")]
    return {word for word in words if word.startswith("--")} <= options and all(
        any(kind.startswith(asked) for kind in kinds) for option, asked in pairwise(words) if option == "--kind"
    )


@pytest.mark.parametrize(
    "named",
    [
        "ravebot lists",
        "ravebot list --all",
        "ravebot gitlab hooks",
        "ravebot audit --kind orphans.",
        "!rave up",
        "agent",
        "poll.max_running",
        "service ravebot status",
    ],
)
def test_what_is_not_there_is_noticed(named: str) -> None:
    assert not is_known(named)
