"""The verbs: one table for all doors, from which parsing, usage, help and permissions come."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING

from ravebot.commands import refs
from ravebot.commands.permissions import Right
from ravebot.commands.refs import Ref
from ravebot.config.values import parse_duration

if TYPE_CHECKING:  # the shell reads the table too, and starts faster without the domain
    from ravebot.sandboxes.intents import Intents, Outcome
    from ravebot.sandboxes.model import Actor, MergeRequest
    from ravebot.store.database import Transaction

    Act = Callable[[Intents, Transaction, MergeRequest, Actor, "Command"], Outcome]
    """Carries a command out, inside the caller's transaction."""

TOO_MUCH = "there is something after it that does not belong there"
_COMMIT = re.compile(r"[0-9a-f]{8,64}")


class Door(Enum):
    """A way in for people."""

    ROOM = auto()
    COMMENT = auto()
    SHELL = auto()


class Takes(Enum):
    """What is typed after a verb, as its usage shows it; what is in brackets may be left out."""

    REF = "REF"
    DURATION = "[1h]"
    SHA = "[SHA]"


class Show(Enum):
    """What the verbs that change nothing show; each door renders it in its own way."""

    HELP = auto()
    WHOAMI = auto()
    LIVE = auto()  # the sandboxes that have not ended
    QUEUE = auto()
    CARD = auto()
    WHY = auto()
    LOGS = auto()


@dataclass(frozen=True)
class Verb:
    """One row of the table. `doors`: where the verb is available, each with the purpose for that door's help."""

    name: str
    does: Act | Show
    doors: Mapping[Door, str]
    takes: tuple[Takes, ...] = (Takes.REF,)
    right: Right = Right.COMMAND
    needs_head: bool = False
    """Whether the merge request's present state at GitLab is required."""

    def usage(self, door: Door, prefix: str) -> str:
        """How it is typed at a door; a comment needs no reference, because it belongs to a merge request."""
        typed = [one.value for one in self.takes if not (one is Takes.REF and door is Door.COMMENT)]
        return " ".join((prefix, self.name, *typed))


@dataclass(frozen=True)
class Command:
    """A parsed command. It may be forbidden, and `ref` may not exist."""

    verb: Verb
    ref: Ref | None = None
    duration: timedelta | None = None
    sha: str | None = None


@dataclass(frozen=True)
class Mistake:
    """A command that could not be parsed.

    `why` says what is wrong with what follows `verb`; without it, `verb` is the most similar verb.
    """

    verb: Verb | None
    why: str = ""


_ROOM, _COMMENT, _SHELL = Door
_REF, _DURATION, _SHA = Takes

# fmt: off
VERBS: tuple[Verb, ...] = (
    Verb("help", Show.HELP, dict.fromkeys((_ROOM, _COMMENT), "say what can be typed here"),
         takes=(), right=Right.NONE),
    Verb("list", Show.LIVE, {_ROOM: "show this room's sandboxes",
                             _SHELL: "Show every sandbox that is running or queued, and how to get in."},
         takes=(), right=Right.READ),
    Verb("show", Show.CARD, {_ROOM: "show one sandbox: how to get in, its state, what happened"}),
    Verb("start", lambda do, tx, mr, by, command: do.start(tx, mr, by, command.sha),
         {_ROOM: "start a sandbox; for a fork, with SHA, let this very commit in",
          _COMMENT: "start a sandbox; for a fork, let this very commit in"},
         takes=(_REF, _SHA), needs_head=True),
    Verb("stop", lambda do, tx, mr, by, _: do.stop(tx, mr, by),
         {_ROOM: "end the sandbox", _COMMENT: "end the sandbox", _SHELL: "End a merge request's sandbox."}),
    Verb("extend", lambda do, tx, mr, by, command: do.extend(tx, mr, by, command.duration),
         {_ROOM: "make it live longer, by an hour or by what you say", _COMMENT: "make it live longer, by so much"},
         takes=(_REF, _DURATION)),
    Verb("rebuild", lambda do, tx, mr, by, _: do.rebuild(tx, mr, by),
         dict.fromkeys((_ROOM, _COMMENT), "throw the machine away and start again on a new one"), needs_head=True),
    Verb("retry", lambda do, tx, mr, by, _: do.retry(tx, mr, by),
         dict.fromkeys((_ROOM, _COMMENT), "go on after failures that held things up")),
    Verb("logs", Show.LOGS, {_ROOM: "show the end of its set-up's and tests' output"}),
    Verb("why", Show.WHY, {_ROOM: "say why it is in the state it is in"}),
    Verb("queue", Show.QUEUE, {_ROOM: "show who waits for a sandbox, and for how long"}, takes=()),
    Verb("whoami", Show.WHOAMI, {_ROOM: "say who you are to ravebot and what you may do"},
         takes=(), right=Right.NONE),
)
# fmt: on


def at(door: Door, verbs: Sequence[Verb] = VERBS) -> tuple[Verb, ...]:
    """The verbs of a door."""
    return tuple(verb for verb in verbs if door in verb.doors)


def help_rows(door: Door, prefix: str, verbs: Sequence[Verb] = VERBS) -> tuple[tuple[str, str], ...]:
    """Every command of a door as it is typed, with what it does."""
    return tuple((verb.usage(door, prefix), verb.doors[door]) for verb in at(door, verbs))


def parse(
    name: str, words: Sequence[str], verbs: Sequence[Verb], read_ref: Callable[[str], Ref] | None
) -> Command | Mistake:
    """Parse a verb's name and the words after it; `verbs` are those of the door.

    `read_ref` raises ValueError for a word that names no merge request; None: the place says which one is meant.
    """
    named = {verb.name: verb for verb in verbs}
    verb = named.get(name.lower())
    if verb is None:
        near = difflib.get_close_matches(name[:50].lower(), named, n=1, cutoff=0.5)
        return Mistake(named[near[0]] if near else None)
    try:
        return _command(verb, list(words), read_ref)
    except ValueError as error:
        return Mistake(verb, str(error))


def _command(verb: Verb, rest: list[str], read_ref: Callable[[str], Ref] | None) -> Command:
    ref = duration = sha = None
    for one in verb.takes:
        if one is Takes.REF and read_ref is not None:
            if not rest:
                raise ValueError(f"say which merge request. {refs.HELP}")
            ref = read_ref(rest.pop(0))
        elif one is Takes.DURATION and rest:
            duration = read_duration(" ".join(rest))
            rest.clear()
        elif one is Takes.SHA and rest:
            sha = read_sha(rest.pop(0))
    if rest:
        raise ValueError(TOO_MUCH)
    return Command(verb, ref, duration, sha)


def read_duration(text: str) -> timedelta:
    """Raises ValueError, saying how to write one."""
    duration = parse_duration(text)
    if not duration:
        raise ValueError("write a duration that is longer than nothing")
    return duration


def read_sha(text: str) -> str:
    """Of a commit, or its beginning, in lower case. Raises ValueError, saying how to write one."""
    sha = text.lower()
    if not _COMMIT.fullmatch(sha):
        raise ValueError("a commit is at least its first 8 hexadecimal digits")
    return sha
