"""How commands are typed in a room: the first line of a message, after the configured prefix."""

from __future__ import annotations

from collections.abc import Sequence

from ravebot.commands import refs, verbs
from ravebot.commands.verbs import VERBS, Command, Door, Mistake, Verb

_LONGEST_LINE = 600


def parse(
    text: str, prefix: str, known_projects_in_room: Sequence[str], table: Sequence[Verb] = VERBS
) -> Command | Mistake | None:
    """Parse a message; None when it is not addressed to us.

    Only the first line counts. `known_projects_in_room` says what `!42` means where there is exactly one.
    """
    line = command_line(text)
    addressed = line[: len(prefix)].lower() == prefix.lower()  # phones capitalise what begins a message
    if not addressed or line[len(prefix) : len(prefix) + 1].strip():
        return None
    if len(line) > _LONGEST_LINE:
        return Mistake(None, "That is too long for a command")
    name, *words = line[len(prefix) :].split() or ["help"]
    return verbs.parse(name, words, verbs.at(Door.ROOM, table), lambda word: refs.read(word, known_projects_in_room))


def explain(mistake: Mistake, prefix: str) -> str:
    """The reply to a command that could not be parsed."""
    if mistake.verb is None:
        return f"{mistake.why or 'There is no such command'}; say `{prefix} help` to see what there is."
    usage = mistake.verb.usage(Door.ROOM, prefix)
    if mistake.why:
        return f"`{usage}`: {mistake.why}"
    return f"There is no such command; did you mean `{usage}`?"


def command_line(text: str) -> str:
    """The part of a message that `parse` reads: its first line, cut just above the length limit.

    A dot that was copied from a message of ours may be written `[.]`, see `text.one_line`.
    """
    return text.lstrip()[: _LONGEST_LINE + 1].split("\n", 1)[0].rstrip().replace("[.]", ".")


def number_in(text: str, prefix: str) -> int | None:
    """The merge request's number in a command, of any project; None when there is none."""
    words = text.lstrip()[len(prefix) : len(prefix) + _LONGEST_LINE].split("\n", 1)[0].split()
    return refs.number_in(words[1]) if len(words) > 1 else None
