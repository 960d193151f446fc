"""What the lines mean that mmdebstrap and its hooks print."""

from __future__ import annotations

from ravebot.images.progress import MARK, Listener, Progress


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    def step(self, name: str) -> None:
        self.all.append(("step", name))

    def detail(self, text: str) -> None:
        self.all.append(("detail", text))

    def line(self, text: str) -> None:
        self.all.append(("line", text))


def heard(*lines: str) -> tuple[Listener, list[tuple[str, str]]]:
    """A listener that has heard these lines, and what it told of them."""
    told = Told()
    listener = Listener(told)
    for line in lines:
        if listener.hear(line):
            listener.last_lines.append(line)
    return listener, told.all


def test_of_a_failure_only_what_says_why_is_kept() -> None:
    why = "E: Unable to locate package no-such-package"
    listener, told = heard(
        "I: running --setup-hook in shell: sh -c 'a long hook'",
        why,
        "E: command failed: a long hook",
        "E: setup failed: E: command failed: a long hook",
        "I: main() received signal PIPE: waiting for setup...",
        "E: mmdebstrap failed to run",
    )
    assert list(listener.last_lines) == [why]
    assert told == []


def test_lines_of_a_step_are_forgotten_when_the_next_begins() -> None:
    listener, told = heard(f"{MARK}files", "tar: a warning", f"{MARK}clean-up")
    assert (listener.step, list(listener.last_lines)) == ("clean-up", [])
    assert told == [("step", "files"), ("step", "clean-up")]


def test_what_the_script_prints_is_shown_as_it_is_and_the_rest_as_a_detail() -> None:
    listener, told = heard("I: installing packages...", f"{MARK}script", "I: mine")
    assert told == [("detail", "installing packages"), ("step", "script"), ("line", "I: mine")]
    assert list(listener.last_lines) == ["I: mine"]


def test_hints_of_install_scripts_are_collected() -> None:
    listener, _ = heard("ravebot-hint:Grafana is left out of the image: no package")
    assert listener.hints == ["Grafana is left out of the image: no package"]
