"""What the person who waits for a build sees of it."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from ravebot.images.steps import Steps
from ravebot.terminal import Output


def shown(*, terminal: bool, fails: bool = False) -> str:
    """What two steps print, the second of which may fail."""
    output, errors = Output(), io.StringIO()
    output.errors = Console(file=errors, force_terminal=terminal, width=100, highlight=False, markup=False)
    try:
        with Steps(output) as steps:
            steps.step("packages")
            steps.detail("installing [bold]\x1b[2J")
            steps.step("script")
            steps.line("its \x1b[H output")
            if fails:
                raise OSError
    except OSError:
        pass
    return errors.getvalue()


def test_each_finished_step_is_a_line_with_its_time() -> None:
    lines = re.sub(r"\d+\.\d s", "0.0 s", shown(terminal=False)).splitlines()
    assert lines == ["packages: 0.0 s", r"  its \x1b[H output", "script: 0.0 s"]


def test_a_step_that_failed_is_no_finished_one() -> None:
    assert "script: " not in shown(terminal=False, fails=True)


@pytest.mark.parametrize("fails", [False, True])
def test_a_terminal_shows_the_running_step_and_gets_no_control_characters_of_programs(fails: bool) -> None:
    text = shown(terminal=True, fails=fails)
    assert "\x1b[?25l" in text, "the cursor is hidden while a step runs"
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")
    assert "\x1b[2J" not in text
    assert "its \x1b[H" not in text
