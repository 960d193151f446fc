"""How commands are typed in a comment: its first `/sandbox …` line outside of quotes and code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ravebot.commands import verbs
from ravebot.commands.verbs import VERBS, Command, Door, Mistake, Verb
from ravebot.gitlab.escape import JOINER

WORD = "/sandbox"
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
LINES_READ = 2_000
_NAME_READ, _ARGUMENT_READ = 50, 100


def parse_comment(text: str, table: Sequence[Verb] = VERBS) -> Command | Mistake | None:
    """The first command in a comment; None when it has none. Code blocks and quotes are not commands."""
    words = _first_command(text)
    if words is None:
        return None
    name, argument = words
    return verbs.parse(name or "help", [argument] if argument else [], verbs.at(Door.COMMENT, table), None)


def command_line(text: str) -> str:
    """The part of a comment to store: a short line that `parse_comment` parses like the whole comment.

    "" when there is no command in it.
    """
    words = _first_command(text)
    return "" if words is None else f"{WORD} {' '.join(words)}".rstrip()


def _first_command(text: str) -> tuple[str, str] | None:
    """Name and argument as typed, cut to lengths that no valid name or argument reaches."""
    line = next(_command_lines(text), None)
    if line is None:
        return None
    name, _, argument = line.removeprefix(WORD).replace(JOINER, "").strip().partition(" ")
    return name[: _NAME_READ + 1], " ".join(argument.split())[:_ARGUMENT_READ]


def _command_lines(text: str) -> Iterator[str]:
    fence = ""
    quoted = False
    for line in re.split(r"\r\n|\n|\r", text, maxsplit=LINES_READ)[:LINES_READ]:
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
