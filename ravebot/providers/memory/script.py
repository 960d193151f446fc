"""The attributes by which tests control a provider in memory and read what it was asked: faults, answers, calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from ravebot.errors import RavebotError
from ravebot.providers.base import OUTPUT_LIMIT_BYTES, HostUsage, RunResult, Usage

_GIB = 1024**3
_DONE = RunResult(0, "")


@dataclass(frozen=True)
class GuestCommand:
    """A command that a guest was asked to run."""

    machine: str
    argv: tuple[str, ...]
    timeout: timedelta
    environment: Mapping[str, str]
    stdin: bytes


class Script:
    """Attributes that a test may set at any time; they count from the next call on. Calls have the contract's names.

    Faults:

    - `fails`: the call raises this error and does nothing else. Of several errors, each is raised once.
    - `hold`: the call waits for this event before it does or raises anything.
    - `ignores`: the call has no effect: `shutdown` of guests that don't heed it, `resume` of machines that pause again
      at once.
    - `silent`: names of machines whose guests don't answer; `answering = False` silences all. What is asked of them
      fails at once, as if its time had passed.

    Guests and host:

    - `answers`: how a command ends that contains this text (the first that fits), or a function that returns it. Any
      other command ends with code 0 and prints nothing.
    - `baked_in_keys`: SSH host keys that every new guest has; without them each guest has its own.
    - `printed`: what every guest has printed on its console.
    - `used`: what a running machine has used.
    - `host_usage`: what the host has; the disks of our machines are promised in addition.

    To read: `calls` (call and machine, in order) and `commands` (that guests were asked to run).
    """

    def __init__(self) -> None:
        self.fails: dict[str, RavebotError | Sequence[RavebotError]] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.ignores: set[str] = set()
        self.silent: set[str] = set()
        self.answering = True
        self.answers: dict[str, RunResult | Callable[[GuestCommand], RunResult]] = {}
        self.baked_in_keys: tuple[str, ...] = ()
        self.printed = ""
        self.used = Usage(cpu_seconds=1.5, memory_peak_bytes=32 * 1024**2, disk_bytes=0)
        self.host_usage = HostUsage(60 * _GIB, 640 * _GIB, 0)
        self.calls: list[tuple[str, str]] = []
        self.commands: list[GuestCommand] = []

    def count(self, call: str) -> int:
        """How many times that call was made."""
        return sum(1 for one, _ in self.calls if one == call)

    async def _called(self, call: str, name: str = "") -> bool:
        """Record a call, as every method does first. Raises its error in `fails`; returns whether it takes effect."""
        self.calls.append((call, name))
        if call in self.hold:
            await self.hold[call].wait()
        error = self.fails.get(call)
        if isinstance(error, Sequence):
            error, self.fails[call] = (error[0], error[1:]) if error else (None, ())
        if error is not None:
            raise error
        return call not in self.ignores

    def _answers(self, machine: str) -> bool:
        return self.answering and machine not in self.silent

    def _end_of(self, command: GuestCommand) -> RunResult:
        self.commands.append(command)
        words = " ".join(command.argv)
        answer = next((answer for text, answer in self.answers.items() if text in words), _DONE)
        done = answer(command) if callable(answer) else answer
        return replace(done, output=done.output.encode()[-OUTPUT_LIMIT_BYTES:].decode(errors="replace"))
