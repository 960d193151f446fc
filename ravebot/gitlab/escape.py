"""Escapes untrusted text for GitLab's Markdown: it can't mention, command or link, or break out of its place.

GitLab looks for references (`@all`, `group/app#1`, `:emoji:`) in the rendered text, where a backslash has no effect, so
a word joiner, which has no width, parts each of them; `parse_comment` ignores it in what people copy. GitLab looks for
quick actions at the start of each source line, so no line begins with a slash. https://docs.gitlab.com/user/markdown/
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

from ravebot.sandboxes.view import without_terminal_codes

JOINER = "\u2060"
_ESCAPES = {**{char: f"\\{char}" for char in "\\`*_[]{}#~$^"}, "&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
_COMBINING_KEPT = 2
# What GitLab links without a sigil (see `reference_pattern` in its models): commits, `GL-12` and the keys of external
# trackers (Jira, YouTrack, ClickUp's CU-…, Phorge's T…), projects (`group/app>`), and `www.`.
_PARTED = re.compile(
    r"[0-9a-fA-F]{6}(?=[0-9a-fA-F])|(?<=[A-Za-z0-9_])-(?=\d)|CU-(?=\w)|\bT(?=\d)|\S(?=>)|[wW]{3}(?=\.)"
)
_LINE_START = re.compile(r"^([ \t]*)(?=/|>>>|::)", re.MULTILINE)


def text(value: str, limit: int = 200) -> str:
    """The text as one line of at most `limit` characters, for any place inside a line or a table cell."""
    line = one_line(value, limit)
    parted = _PARTED.sub(lambda match: match[0] + JOINER, line) + " "
    escaped = "".join(_ESCAPES.get(char, char) + _joiner(char, following) for char, following in pairwise(parted))
    return escaped if line[:1].isalpha() else JOINER + escaped


def _joiner(char: str, following: str) -> str:
    return JOINER if char in "@#!~%$&^:" and following != " " else ""


def code(value: str, limit: int = 200) -> str:
    """The text as inline code, in which GitLab finds no references. `|`, which would end a table cell, becomes `¦`."""
    line = one_line(value, limit).replace("|", "¦")
    if not line:
        return "—"
    fence = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def block(value: str, limit: int = 4_000, max_lines: int = 40) -> str:
    """The end of an output as a fenced block of limited size, without terminal codes; its text can't close it."""
    plain = without_terminal_codes(value[-4 * limit :]).replace("\r\n", "\n").replace("\r", "\n")
    lines = ["".join(_visible(char) for char in line.rstrip()) for line in plain.split("\n")]
    kept = "\n".join(lines).strip("\n")
    tail = "\n".join(kept[-limit:].split("\n")[-max_lines:])
    if len(tail) < len(kept) or len(value) > 4 * limit:
        tail = f"…\n{tail}"
    fence = "`" * max(3, _longest_run(tail) + 1)
    defused = _LINE_START.sub(lambda match: match[1] + JOINER, tail)
    return f"{fence}text\n{defused}\n{fence}"


def one_line(value: str, limit: int) -> str:
    """The text as one line, cut at `limit`; invisible characters and changes of direction are made visible."""
    chars: list[str] = []
    combining = 0
    for char in " ".join(value[: 4 * limit].split()):
        combining = combining + 1 if unicodedata.combining(char) else 0
        if combining <= _COMBINING_KEPT:
            chars.append(_visible(char))
    line = "".join(chars)
    return line if len(line) <= limit and len(value) <= 4 * limit else line[: limit - 1].rstrip() + "…"


def _visible(char: str) -> str:
    """Control, format (right-to-left marks, zero width), surrogate and private characters show as U+FFFD."""
    if char == "\t":
        return char
    return "\ufffd" if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} else char


def _longest_run(line: str) -> int:
    return max((len(run) for run in re.findall("`+", line)), default=0)
