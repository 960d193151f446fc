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
    there = verbs.at(Door.ROOM, table)
    if (said := _text_after(text, prefix, there)) is not None:
        name, words = said[0], [said[1]] if said[1] else []
    elif len(line) > _LONGEST_LINE:
        return Mistake(None, "That is too long for a command.")
    else:
        name, *words = line[len(prefix) :].split() or ["help"]
    return verbs.parse(name, words, there, lambda word: refs.read(word, known_projects_in_room), card)


def kept(text: str, prefix: str, table: Sequence[Verb] = VERBS) -> str:
    """The part of a command to store: its line, or all of it if its verb takes a text."""
    return text if takes_text(text, prefix, table) else command_line(text)


def is_command(text: str, prefix: str) -> bool:
    """Whether a message begins with the prefix; phones capitalise what begins a message."""
    return text.lstrip()[: len(prefix)].lower() == prefix.lower()


def takes_text(text: str, prefix: str, table: Sequence[Verb] = VERBS) -> bool:
    """Whether a command's verb takes a text, which may have many lines."""
    return _text_after(text, prefix, verbs.at(Door.ROOM, table)) is not None


def _text_after(text: str, prefix: str, there: Sequence[Verb]) -> tuple[str, str] | None:
    """A verb that takes a text, and the text after it; None for any other command."""
    command = text.lstrip()[len(prefix) :].lstrip()
    name = "".join(command[:_LONGEST_LINE].split(maxsplit=1)[:1])
    if not any(verb.name == name.lower() and verb.takes_text for verb in there):
        return None
    return name, command[len(name) :].strip()


def command_line(text: str) -> str:
    """The part of a message that `parse` reads: its first line, cut just above the length limit.

    A dot that was copied from a message of ours may be written `[.]`, see `text.one_line`.
    """
    return text.lstrip()[: _LONGEST_LINE + 1].split("\n", 1)[0].rstrip().replace("[.]", ".")


def verb_in(text: str, prefix: str) -> str:
    """The verb of a command as it is listed; empty if there is none."""
    return "".join(command_line(text)[len(prefix) :].split()[:1]).lower()


def number_in(text: str, prefix: str) -> int | None:
    """The merge request's number in a command, of any project; None when there is none."""
    words = command_line(text)[len(prefix) :].split()
    return refs.number_in(words[1]) if len(words) > 1 else None
