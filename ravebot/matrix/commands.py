"""How commands are typed in a room: the first line of a message, after the configured prefix."""

from __future__ import annotations

from collections.abc import Sequence

from ravebot.commands import refs, verbs
from ravebot.commands.refs import Ref
from ravebot.commands.verbs import VERBS, Command, Door, Mistake, Verb

_LONGEST_LINE = 600


def parse(
    text: str,
    prefix: str,
    known_projects_in_room: Sequence[str],
    table: Sequence[Verb] = VERBS,
    card: Ref | None = None,
) -> Command | Mistake | None:
    """Parse a message; None when it is not addressed to us.

    Only the first line counts. `known_projects_in_room` says what `!42` means where there is exactly one; `card` is
    the merge request of the card that the message is about.
    """
    line = command_line(text)
    addressed = line[: len(prefix)].lower() == prefix.lower()  # phones capitalise what begins a message
    if not addressed or line[len(prefix) : len(prefix) + 1].strip():
        return None
    if len(line) > _LONGEST_LINE:
        return Mistake(None, "That is too long for a command.")
    name, *words = line[len(prefix) :].split() or ["help"]
    there = verbs.at(Door.ROOM, table)
    return verbs.parse(name, words, there, lambda word: refs.read(word, known_projects_in_room), card)


def command_line(text: str) -> str:
    """The part of a message that `parse` reads: its first line, cut just above the length limit.

    A dot that was copied from a message of ours may be written `[.]`, see `text.one_line`.
    """
    return text.lstrip()[: _LONGEST_LINE + 1].split("\n", 1)[0].rstrip().replace("[.]", ".")


def number_in(text: str, prefix: str) -> int | None:
    """The merge request's number in a command, of any project; None when there is none."""
    words = command_line(text)[len(prefix) :].split()
    return refs.number_in(words[1]) if len(words) > 1 else None
