"""How a build goes on: who is told of it, and what the lines mean that its programs print."""

from __future__ import annotations

from collections import deque

from ravebot.images import programs

MARK = "ravebot-step:"  # a hook prints this before a step's name
_HINT = "ravebot-hint:"  # what an install script tells the person who builds
# mmdebstrap repeats the text of hooks, and of those that fail it tells no more than that.
_NOISE = (
    *("I: running --", "I: main() received", "E: command failed: ", "E: setup failed: E: command failed: "),
    "E: mmdebstrap failed to run",
)


class Progress:
    """Is told how a build goes on, and does nothing with it."""

    def step(self, name: str) -> None:
        """A step begins, and the one before it is over."""

    def detail(self, text: str) -> None:
        """What the step does at the moment."""

    def line(self, text: str) -> None:
        """A line that the operator's script printed."""


class Listener:
    """Hears mmdebstrap: knows the step, collects hints, and keeps the last lines that are of use after a failure."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.step = ""
        self.hints: list[str] = []
        self.last_lines: deque[str] = deque(maxlen=programs.KEPT_LINES)

    def begin(self, step: str) -> None:
        self.step = step
        self.last_lines.clear()
        self._progress.step(step)

    def hear(self, line: str) -> bool:
        """Whether the line is to be kept."""
        if line.startswith(MARK):
            self.begin(line.removeprefix(MARK))
            return False
        if line.startswith(_NOISE):
            return False
        if line.startswith(_HINT):
            self.hints.append(line.removeprefix(_HINT))
        if self.step == "script":
            self._progress.line(line)
        elif line.startswith("I: "):
            self._progress.detail(line.removeprefix("I: ").rstrip("."))
            return False
        return True
