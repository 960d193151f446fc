"""What set-up and tests gave, as parts of the status note. Pure; everything from guests is bounded and escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ravebot.gitlab.escape import block, code, one_line, text
from ravebot.sandboxes.model import Stage
from ravebot.sandboxes.results import LONGEST_NAME, CaseCounts, CommandResult
from ravebot.sandboxes.wording import STAGES, took

ROWS = 20
SCREENFUL_LINES = 40
SCREENFUL = 4_000
_WIDEST_NAME = 60
_LONG_WORD = re.compile(r"\S{30}(?=\S)")
_BREAK = "\u200b"
NO_BREAK = "\u00a0"
"""A space at which no line ends: beside long commands the column of times is narrow."""


def commands_table(commands: Sequence[CommandResult]) -> str:
    """Each command, how it went, and how long it took. Of too many, those that failed come first."""
    failed = [one for one in commands if one.ok is False][:ROWS]
    others = [one for one in commands if one.ok is not False]
    chosen = [*failed, *others[: ROWS - len(failed)]]
    shown = [one for one in commands if one in chosen]
    lines = ["| Command | Result | Time |", "|---|---|---|", *map(_row, shown)]
    if len(commands) > len(shown):
        lines.append(f"| and {len(commands) - len(shown):d} more | | |")
    return "\n".join(lines)


def cases_table(cases: CaseCounts) -> list[str]:
    """What the tests' reports say: the counts, those that failed, and which reports could not be used."""
    parts = []
    if cases.in_short:
        sign = "❌" if cases.failed else "✅"
        parts.append(f"{sign} **{cases.in_short}**, in {took(cases.seconds)}")
    if cases.failures:
        lines = ["| Failed test | Why |", "|---|---|"]
        lines += [
            f"| {_end_of(one.name)} | {_wrapping(one.message, 160) if one.message.strip() else '—'} |"
            for one in cases.failures[:ROWS]
        ]
        if cases.failed > len(lines) - 2:
            lines.append(f"| and {cases.failed - len(lines) + 2:d} more | |")
        parts.append("\n".join(lines))
    return parts


def log(tail: str) -> str:
    """The end of what a command printed, at most a screenful."""
    return block(tail, limit=SCREENFUL, max_lines=SCREENFUL_LINES)


def _end_of(name: str) -> str:
    """The part of a test's name that tells it from others: what does not fit makes the column beside it unseen."""
    line = one_line(name, LONGEST_NAME)
    return code(line if len(line) <= _WIDEST_NAME else f"…{line[1 - _WIDEST_NAME :]}")


def _wrapping(value: str, limit: int) -> str:
    """The text for a cell, in which also long words can go on in the next line."""
    parts = _LONG_WORD.sub(lambda match: match[0] + _BREAK, one_line(value, limit)).split(_BREAK)
    return _BREAK.join(map(text, parts))


def _row(command: CommandResult) -> str:
    why = _wrapping(command.tail.partition("\n")[0].strip() or "failed", 100)
    result = {True: "✅ done", False: f"❌ {why}", None: "⏳ not finished"}[command.ok]
    name = STAGES[command.stage] if command.stage is Stage.SETUP else "test"
    time = took(command.seconds).replace(" ", NO_BREAK) if command.ok is not None else ""
    return f"| {name} {code(command.what, 100)} | {result} | {time} |"
