"""Cuts an agent's output into lines, with the offset behind each, and limits what it may send in a turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ravebot.agents.transports.acp.protocol import LONGEST_LINE
from ravebot.errors import RavebotError

MOST_BYTES = 16 * 1024 * 1024
"""Of output in a turn."""
MOST_JUNK = 500
"""Lines in a turn that are not of the protocol."""


class AgentBreaksLimits(RavebotError):
    """The agent sent more than is read of it: it is ended."""


@dataclass
class LineReader:
    """`offset`: behind the last whole line that was read."""

    offset: int
    _rest: bytes = b""

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """The lines that a piece of output completes, each with the offset behind it."""
        *whole, rest = piece.split(b"\n")
        if whole:
            whole[0] = self._rest + whole[0]
            self._rest = rest
        else:
            self._rest += rest
        for line in whole:
            self.offset += len(line) + 1
            if len(line) > LONGEST_LINE:
                raise AgentBreaksLimits(f"a line of its output is longer than {LONGEST_LINE // 1024} KiB")
            yield self.offset, line
        if len(self._rest) > LONGEST_LINE:
            raise AgentBreaksLimits(f"a line of its output is longer than {LONGEST_LINE // 1024} KiB")


@dataclass
class Allowance:
    """What an agent may still send."""

    bytes: int = MOST_BYTES
    junk: int = MOST_JUNK

    def read(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < 0:
            raise AgentBreaksLimits(f"its output was more than {MOST_BYTES // 1024**2} MiB in one turn")

    def is_junk(self) -> None:
        self.junk -= 1
        if self.junk < 0:
            raise AgentBreaksLimits(
                f"more than {MOST_JUNK} lines of its output were not of the Agent Client Protocol: "
                "does its command start it in that mode (for example, `opencode acp`)?"
            )


class Bucket:
    """Lets a number through each second, and a burst."""

    def __init__(self, per_second: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._now = per_second, burst, now
        self._left, self._at = burst, now()

    def take(self, amount: float) -> float:
        """Take that much; returns for how many seconds to pause now."""
        now = self._now()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second) - amount
        self._at = now
        return max(0.0, -self._left / self._per_second)
