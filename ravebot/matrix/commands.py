"""What can be typed in a room: one table, from which parsing, usage and help all come."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ravebot.config.values import parse_duration

_LONGEST_LINE = 600
_REF = re.compile(r"(?:(?P<project>[\w.-]+(?:/[\w.-]+)+)?!)?(?P<iid>[1-9]\d{0,8})", re.ASCII)
_NUMBER = re.compile(r"(?<!\d)[1-9]\d{0,8}\Z", re.ASCII)
_SHA = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Ref:
    """A merge request as people name it: `group/app!42`."""

    project_path: str
    iid: int

    def __str__(self) -> str:
        return f"{self.project_path}!{self.iid}"


@dataclass(frozen=True)
class Command:
    """A command that was understood. Nothing is said of whether it is allowed, or whether `ref` exists."""

    verb: str
    ref: Ref | None = None
    duration: timedelta | None = None
    sha: str | None = None


@dataclass(frozen=True)
class Usage:
    """A command that was not understood; `message` is for the one who typed it, and repeats nothing they typed."""

    message: str


@dataclass(frozen=True)
class Verb:
    """One row of the table."""

    name: str
    purpose: str
    takes_ref: bool = True
    takes_duration: bool = False
    takes_sha: bool = False

    def usage(self, prefix: str) -> str:
        """As it is typed; what is in brackets may be left out."""
        parts = [prefix, self.name, "REF" if self.takes_ref else ""]
        parts += ["[1h]" if self.takes_duration else "", "[SHA]" if self.takes_sha else ""]
        return " ".join(part for part in parts if part)


VERBS: tuple[Verb, ...] = (
    Verb("help", "say what can be typed here", takes_ref=False),
    Verb("list", "show this room's sandboxes", takes_ref=False),
    Verb("show", "show one sandbox: how to get in, its state, what happened"),
    Verb("start", "start a sandbox; for a fork, with SHA, let this very commit in", takes_sha=True),
    Verb("stop", "end the sandbox"),
    Verb("extend", "make it live longer, by an hour or by what you say", takes_duration=True),
    Verb("rebuild", "throw the machine away and start again on a new one"),
    Verb("retry", "go on after failures that held things up"),
    Verb("logs", "show the end of its set-up's and tests' output"),
    Verb("why", "say why it is in the state it is in"),
    Verb("queue", "show who waits for a sandbox, and for how long", takes_ref=False),
    Verb("whoami", "say who you are to ravebot and what you may do", takes_ref=False),
)
_BY_NAME = {verb.name: verb for verb in VERBS}


def parse(text: str, prefix: str, known_projects_in_room: Sequence[str]) -> Command | Usage | None:
    """What a message asks of us; None when it is not addressed to us.

    Only the first line counts. `known_projects_in_room` says what `!42` means where there is exactly one.
    """
    line = command_line(text)
    addressed = line[: len(prefix)].lower() == prefix.lower()  # phones capitalise what begins a message
    if not addressed or line[len(prefix) : len(prefix) + 1].strip():
        return None
    if len(line) > _LONGEST_LINE:
        return Usage(f"That is too long for a command; say `{prefix} help` to see what there is.")
    name, *arguments = line[len(prefix) :].split() or ["help"]
    verb = _BY_NAME.get(name.lower())
    if verb is None:
        return Usage(_unknown(name, prefix))
    try:
        return _command(verb, arguments, known_projects_in_room)
    except ValueError as error:
        return Usage(f"`{verb.usage(prefix)}`: {error}")


def command_line(text: str) -> str:
    """All of a message that `parse` reads: its first line, or as much of it as shows that it is too long."""
    return text.lstrip()[: _LONGEST_LINE + 1].split("\n", 1)[0].rstrip()


def number_in(text: str, prefix: str) -> int | None:
    """The merge request's number in a command, whatever project it means; None where none can be made out."""
    words = text.lstrip()[len(prefix) : len(prefix) + _LONGEST_LINE].split("\n", 1)[0].split()
    match = _NUMBER.search(words[1]) if len(words) > 1 else None
    return int(match[0]) if match else None


def help_rows(prefix: str) -> tuple[tuple[str, str], ...]:
    """Every command as it is typed, with what it does."""
    return tuple((verb.usage(prefix), verb.purpose) for verb in VERBS)


REF_HELP = "REF is a merge request: group/app!42, or just !42 or 42 where the room has one project."


def _unknown(name: str, prefix: str) -> str:
    near = difflib.get_close_matches(name[:30].lower(), _BY_NAME, n=1, cutoff=0.5)
    if near:
        return f"There is no such command; did you mean `{_BY_NAME[near[0]].usage(prefix)}`?"
    return f"There is no such command; say `{prefix} help` to see what there is."


def _command(verb: Verb, arguments: Sequence[str], projects: Sequence[str]) -> Command:
    rest = list(arguments)
    ref = duration = sha = None
    if verb.takes_ref:
        if not rest:
            raise ValueError(f"say which merge request. {REF_HELP}")
        ref = _ref(rest.pop(0), projects)
    if verb.takes_duration and rest:
        duration = parse_duration(" ".join(rest))
        if not duration:
            raise ValueError("write a duration that is longer than nothing")
        rest.clear()
    if verb.takes_sha and rest:
        sha = rest.pop(0).lower()
        if not _SHA.fullmatch(sha):
            raise ValueError("a commit is at least its first 8 hexadecimal digits")
    if rest:
        raise ValueError("there is something after it that does not belong there")
    return Command(verb.name, ref, duration, sha)


def _ref(word: str, projects: Sequence[str]) -> Ref:
    match = _REF.fullmatch(word) if len(word) <= 300 else None
    if match is None:
        raise ValueError(f"that is no merge request. {REF_HELP}")
    iid = int(match["iid"])
    if match["project"]:
        return Ref(match["project"], iid)
    if len(projects) == 1:
        return Ref(projects[0], iid)
    if not projects:
        raise ValueError(f"no project is known here: write it in full, like group/app!{iid}")
    shown = " or ".join(f"{project}!{iid}" for project in sorted(projects)[:3])
    raise ValueError(f"this room has several projects: write {shown}{' …' if len(projects) > 3 else ''}")
