"""What a comment asks of us: `/sandbox start|stop|extend|rebuild|help`, found in the text and checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ravebot.config.values import parse_duration

WORD = "/sandbox"
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_LINES_READ = 2_000
_NAME_READ, _ARGUMENT_READ = 50, 100


@dataclass(frozen=True)
class NoteCommand:
    """A command that was understood. `argument` is "" when none was given."""

    verb: str
    argument: str = ""


@dataclass(frozen=True)
class NoteUsage:
    """A command that was not; `message` says how it would be (plain text, names nothing that was typed unchecked)."""

    message: str


@dataclass(frozen=True)
class Verb:
    """One row of the command table. `check` returns the argument as we keep it, or raises ValueError with advice."""

    name: str
    argument: str  # as help shows it; "" when it takes none
    purpose: str
    check: Callable[[str], str]

    @property
    def usage(self) -> str:
        return f"{WORD} {self.name}" + (f" [{self.argument}]" if self.argument else "")


def _nothing(argument: str) -> str:
    if argument:
        raise ValueError("it takes nothing after it")
    return ""


def _commit(argument: str) -> str:
    if not re.fullmatch(r"(?:[0-9a-f]{8,64})?", argument.lower()):
        raise ValueError("a commit is at least its first 8 hexadecimal digits")
    return argument.lower()


def _duration(argument: str) -> str:
    if argument and not parse_duration(argument):
        raise ValueError("write a duration that is longer than nothing")
    return argument


VERBS: tuple[Verb, ...] = (
    Verb("start", "SHA", "start a sandbox; for a fork, let this very commit in", _commit),
    Verb("stop", "", "end the sandbox", _nothing),
    Verb("extend", "1h", "make it live longer, by so much", _duration),
    Verb("rebuild", "", "throw the machine away and start again on a new one", _nothing),
    Verb("help", "", "say what can be typed here", _nothing),
)
_BY_NAME = {verb.name: verb for verb in VERBS}


def parse_comment(text: str) -> NoteCommand | NoteUsage | None:
    """The first command in a comment; None when it has none. Code blocks and quotes are not commands."""
    words = _first_command(text)
    if words is None:
        return None
    name, argument = words
    name = name.lower() or "help"
    verb = _BY_NAME.get(name)
    if verb is None:
        near = difflib.get_close_matches(name[:_NAME_READ], _BY_NAME, n=1, cutoff=0.5)
        hint = f"did you mean {WORD} {near[0]}?" if near else f"there are {', '.join(_BY_NAME)}"
        return NoteUsage(f"There is no such command; {hint}")
    try:
        return NoteCommand(verb.name, verb.check(argument))
    except ValueError as error:
        return NoteUsage(f"{verb.usage}: {error}")


def command_line(text: str) -> str:
    """All that must be kept of a comment: a short line that `parse_comment` reads as it reads the whole comment.

    "" when there is no command in it.
    """
    words = _first_command(text)
    return "" if words is None else f"{WORD} {' '.join(words)}".rstrip()


def _first_command(text: str) -> tuple[str, str] | None:
    """Name and argument as typed, cut to lengths that no valid name or argument reaches."""
    line = next(_command_lines(text), None)
    if line is None:
        return None
    name, _, argument = line.removeprefix(WORD).strip().partition(" ")
    return name[: _NAME_READ + 1], " ".join(argument.split())[:_ARGUMENT_READ]


def _command_lines(text: str) -> Iterator[str]:
    fence = ""
    quoted = False
    for line in re.split(r"\r\n|\n|\r", text, maxsplit=_LINES_READ)[:_LINES_READ]:
        match = _FENCE.match(line)
        if fence:
            if match and match[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif match:
            fence = match[1]
        elif line.strip() == ">>>":  # GitLab's quote of many lines
            quoted = not quoted
        elif not quoted and re.match(rf"{WORD}(?:\s|$)", line):
            yield line


def help_lines() -> tuple[tuple[str, str], ...]:
    """Every command as it is typed, with what it does."""
    return tuple((verb.usage, verb.purpose) for verb in VERBS)
