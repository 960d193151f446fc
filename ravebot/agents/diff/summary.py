"""Says what a diff is about in a few lines; the doors escape and show it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ravebot.agents.diff.model import Diff

FILE_NAME = "changes.diff"
"""The name of the file that holds a whole diff."""
_LEFT_OUT = 5
_UNSEEN_ADDED = re.compile(
    "^\\+.*[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]", re.MULTILINE
)
_PIPELINE = (".gitlab-ci.yml", ".gitlab/")
_OWNERS = ("CODEOWNERS", "docs/CODEOWNERS", ".gitlab/CODEOWNERS")


@dataclass(frozen=True)
class DiffSummary:
    """A diff in a few lines.

    `notes` are sentences of ours: what to know before it is committed. `left_out` names what can't be committed from
    here, and why; the paths in it are untrusted. It is empty if there is nothing.
    """

    title: str
    notes: tuple[str, ...]
    left_out: str


def summary(diff: Diff) -> DiffSummary:
    """What a message says of a diff beside its text."""
    added = sum(change.added for change in diff.changes)
    removed = sum(change.removed for change in diff.changes)
    count = len(diff.changes)
    if not count:
        title = f"Nothing that can be committed differs from commit {diff.base_sha[:8]}."
    else:
        files = "1 file differs" if count == 1 else f"{count} files differ"
        title = f"{files} from commit {diff.base_sha[:8]}: +{added} −{removed}"
    return DiffSummary(title, _notes(diff), _left_out(diff))


def _notes(diff: Diff) -> tuple[str, ...]:
    notes = []
    paths = [change.path for change in diff.changes]
    if any(path.startswith(_PIPELINE) and path not in _OWNERS for path in paths):
        notes.append("This changes the pipeline, which GitLab's runners run once it is committed.")
    if any(path in _OWNERS for path in paths):
        notes.append("This changes who must approve changes (CODEOWNERS).")
    if _UNSEEN_ADDED.search(diff.text):
        notes.append("It adds characters that can't be seen, by which code can look other than it is.")
    if diff.refusal:
        notes.append(diff.refusal)
    return tuple(notes)


def _left_out(diff: Diff) -> str:
    if not diff.left_out:
        return ""
    named = "; ".join(f"{one.path}: {one.why}" for one in diff.left_out[:_LEFT_OUT])
    more = max(0, len(diff.left_out) - _LEFT_OUT) + diff.left_out_more
    return f"Left out: {named}; and {more} more." if more else f"Left out: {named}."
