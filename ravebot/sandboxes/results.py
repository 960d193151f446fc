"""What set-up and tests gave: command by command, and what their JUnit reports say. Pure; texts are from guests."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.sandboxes.model import Stage

MOST_CASES = 20
LONGEST_NAME = 200
LONGEST_MESSAGE = 300
LONGEST_TAIL = 8_000


@dataclass(frozen=True)
class CommandResult:
    """How one command of set-up or tests went. `ok`: None until it ended; `tail`: of one that failed, the
    reason in a line, and then the end of its output."""

    stage: Stage
    position: int
    what: str
    ok: bool | None
    seconds: float = 0.0
    tail: str = ""


@dataclass(frozen=True)
class FailedCase:
    """A test that failed, as its report names it."""

    name: str
    message: str = ""


@dataclass(frozen=True)
class CaseCounts:
    """What reports say together: how many tests there were, and the first that failed.

    `problems`: what could not be read, in words.
    """

    total: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failures: tuple[FailedCase, ...] = ()
    problems: tuple[str, ...] = ()

    def __add__(self, other: CaseCounts) -> CaseCounts:
        return CaseCounts(
            self.total + other.total,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.seconds + other.seconds,
            (self.failures + other.failures)[:MOST_CASES],
            self.problems + other.problems,
        )

    @property
    def in_short(self) -> str:
        """Like `12 tests, 1 failed`; empty where no test was reported."""
        if not self.total:
            return ""
        parts = [f"{self.total} test{'s' if self.total != 1 else ''}"]
        parts.append(f"{self.failed} failed" if self.failed else "none failed")
        if self.skipped:
            parts.append(f"{self.skipped} skipped")
        return ", ".join(parts)


NO_CASES = CaseCounts()
