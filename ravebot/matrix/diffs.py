"""Shows in a room what differs in a sandbox. Pure; paths and contents are the sandbox's word, and are made harmless."""

from __future__ import annotations

from ravebot.agents.diff.summary import DiffSummary
from ravebot.matrix.content import Span, bold, joined, preformatted, theirs, words
from ravebot.matrix.text import block

_PATH = 120
_EXCERPT = 4000


def diff_parts(told: DiffSummary, *, file_follows: bool = False) -> list[Span]:
    """The parts of a message. `file_follows`: the whole diff is posted as a file after it."""
    parts = [_lines([bold(told.title), *_files(told)])]
    if told.left_out:
        parts.append(_lines(_left_out(told)))
    parts.extend(words(f"⚠️ {note}") for note in told.notes)
    if told.excerpt:
        parts.append(preformatted(block(told.excerpt, _EXCERPT)))
    if told.cut:
        where = "All of it is in the file below." if file_follows else "That is not all of it."
        parts.append(words(where))
    return parts


def _files(told: DiffSummary) -> list[Span]:
    lines = [joined([words("•"), theirs(file.path, _PATH), words(f"({file.detail})")]) for file in told.files]
    if told.files_more:
        lines.append(words(f"• and {told.files_more} more"))
    return lines


def _left_out(told: DiffSummary) -> list[Span]:
    lines = [words("Left out, because it can't be committed from here:")]
    lines += [joined([words("•"), theirs(f"{one.path}: {one.why}", 2 * _PATH)]) for one in told.left_out]
    if told.left_out_more:
        lines.append(words(f"• and {told.left_out_more} more"))
    return lines


def _lines(lines: list[Span]) -> Span:
    return joined(lines, "\n", "<br>")
