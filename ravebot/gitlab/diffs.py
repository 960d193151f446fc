"""Shows in a comment what differs in a sandbox. Pure; paths and contents are the sandbox's word, and are escaped."""

from __future__ import annotations

from ravebot.agents.diff.summary import DiffSummary
from ravebot.gitlab.escape import block, code, text

_PATH = 200
_EXCERPT = 6000
_LINES = 60


def render_diff(told: DiffSummary) -> str:
    """The body of a comment, or a part of one; it begins with our own words."""
    parts = [f"**{told.title}**", _list([f"{code(file.path, _PATH)}: {file.detail}" for file in told.files],
                                        told.files_more)]  # fmt: skip
    if told.left_out:
        left_out = [f"{code(one.path, _PATH)}: {text(one.why, 200)}" for one in told.left_out]
        parts.append("Left out, because it can't be committed from here:")
        parts.append(_list(left_out, told.left_out_more))
    parts += [f"⚠️ {note}" for note in told.notes]
    if told.excerpt:
        parts.append(block(told.excerpt, _EXCERPT, _LINES))
    if told.cut:
        parts.append("That is not all of it: the room and the shell show the whole.")
    return "\n\n".join(part for part in parts if part)


def _list(items: list[str], more: int) -> str:
    return "\n".join(f"- {item}" for item in [*items, *([f"and {more} more"] if more else [])])
