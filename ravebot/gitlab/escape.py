"""Other people's text in GitLab's Markdown: it can neither ping, nor command, nor link, nor break out of its place.

GitLab looks for references (`@all`, `group/app#1`, `:emoji:`) in the rendered text, where a backslash no longer shows,
so a sigil is parted from what follows by a word joiner, which has no width. Quick actions are looked for in the source,
by line, so no line of ours begins with a slash. https://docs.gitlab.com/user/markdown/
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

JOINER = "\u2060"
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_MEANT = {**{sign: f"\\{sign}" for sign in "\\`*_[]{}#~$^"}, "&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
_COMBINING_KEPT = 2
_LINE_START = re.compile(r"^([ \t]*)(?=/|>>>|::)", re.MULTILINE)


def text(value: str, limit: int = 200) -> str:
    """One line of plain text, at most `limit` characters of it, for any place inside a line or a table's cell."""
    line = one_line(value, limit)
    parted = "".join(_MEANT.get(sign, sign) + _joiner(sign, after) for sign, after in pairwise(line + " "))
    parted = re.sub(r"(?i)\bwww\.", lambda match: f"{match[0][:-1]}{JOINER}.", parted)
    return parted if line[:1].isalpha() else JOINER + parted


def _joiner(sign: str, after: str) -> str:
    return JOINER if sign in "@#!~%$&^:" and after != " " else ""


def code(value: str, limit: int = 200) -> str:
    """One line as inline code, where GitLab looks for nothing. A bar, which would end a table's cell, becomes `¦`."""
    line = one_line(value, limit).replace("|", "¦")
    if not line:
        return "—"
    fence = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def block(value: str, limit: int = 4_000, max_lines: int = 40) -> str:
    """The end of an output as a fenced block: bounded, without terminal codes, closed whatever it holds."""
    plain = _ANSI.sub("", value[-4 * limit :]).replace("\r\n", "\n").replace("\r", "\n")
    lines = ["".join(_visible(sign) for sign in line.rstrip()) for line in plain.split("\n")]
    kept = "\n".join(lines).strip("\n")
    tail = "\n".join(kept[-limit:].split("\n")[-max_lines:])
    if len(tail) < len(kept) or len(value) > 4 * limit:
        tail = f"…\n{tail}"
    fence = "`" * max(3, _longest_run(tail) + 1)
    defused = _LINE_START.sub(lambda match: match[1] + JOINER, tail)
    return f"{fence}text\n{defused}\n{fence}"


def one_line(value: str, limit: int) -> str:
    """The text on one line, with what is invisible or turns the writing around made visible, and cut."""
    signs: list[str] = []
    combining = 0
    for sign in " ".join(value[: 4 * limit].split()):
        combining = combining + 1 if unicodedata.combining(sign) else 0
        if combining <= _COMBINING_KEPT:
            signs.append(_visible(sign))
    line = "".join(signs)
    return line if len(line) <= limit and len(value) <= 4 * limit else line[: limit - 1].rstrip() + "…"


def _visible(sign: str) -> str:
    """Control, format (right-to-left marks, zero width), surrogate and private characters show as U+FFFD."""
    if sign == "\t":
        return sign
    return "\ufffd" if unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} else sign


def _longest_run(line: str) -> int:
    return max((len(run) for run in re.findall("`+", line)), default=0)
