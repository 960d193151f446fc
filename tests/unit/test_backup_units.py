"""The units that make backups: what they run is a command that there is, as ravebot's user and without any right."""

from __future__ import annotations

import shlex
from configparser import RawConfigParser
from pathlib import Path

from typer.core import TyperGroup
from typer.main import get_command

from ravebot.cli import app

UNITS = Path(__file__).parents[2] / "ravebot/operations/service/units"


def unit(name: str) -> RawConfigParser:
    parser = RawConfigParser(strict=False)  # systemd takes a key more than once
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNITS / name)
    return parser


def test_the_service_runs_a_backup_into_a_folder_of_the_state_folder_as_an_ordinary_user() -> None:
    service = unit("ravebot-backup.service")["Service"]
    program, name, *arguments = shlex.split(service["ExecStart"])
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    given = group.commands[name].make_context(name, arguments).params
    assert Path(program).name == "ravebot"
    assert (given["into"], given["keep"]) == (Path("/var/lib/ravebot/backups"), 14)
    assert (service["Type"], service["User"], service["CapabilityBoundingSet"]) == ("oneshot", "ravebot", "")
    assert (service["UMask"], service["PrivateNetwork"]) == ("0077", "yes")


def test_the_timer_makes_up_for_a_day_on_which_the_host_was_down() -> None:
    timer = unit("ravebot-backup.timer")
    assert (timer["Timer"]["OnCalendar"], timer["Timer"]["Persistent"]) == ("daily", "yes")
    assert timer["Install"]["WantedBy"] == "timers.target"
