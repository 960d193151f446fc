"""Says what a diff is about in a few lines; the doors escape and show it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ravebot.agents.diff.model import Change, ChangeKind, Diff, LeftOut

FILE_NAME = "changes.diff"
"""The name of the file that holds a whole diff."""
_FILES = 20
_LEFT_OUT = 5
_LINES = 40
_CHARACTERS = 3000
_LONGEST_LINE = 200
_MARKS = {ChangeKind.CREATED: "new", ChangeKind.UPDATED: "changed", ChangeKind.DELETED: "deleted"}
_PIPELINE = (".gitlab-ci.yml", ".gitlab/")
_UNSEEN = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_UNSEEN_ADDED = re.compile(rf"^\+.*{_UNSEEN.pattern}", re.MULTILINE)
_OWNERS = ("CODEOWNERS", "docs/CODEOWNERS", ".gitlab/CODEOWNERS")


@dataclass(frozen=True)
class FileLine:
    """One changed file. `path` is untrusted; `detail` is ours, such as `new, +3 −0`."""

    path: str
    detail: str


@dataclass(frozen=True)
class DiffSummary:
    """A diff in a few lines. `excerpt`: the beginning of its text, untrusted; `cut`: whether that is not all of it.

    `notes` are ours: what to know before it is committed.
    """

    title: str
    files: tuple[FileLine, ...]
    files_more: int
    left_out: tuple[LeftOut, ...]
    left_out_more: int
    notes: tuple[str, ...]
    excerpt: str
    cut: bool


def summary(diff: Diff) -> DiffSummary:
    """What a message shows of a diff."""
    added = sum(change.added for change in diff.changes)
    removed = sum(change.removed for change in diff.changes)
    count = len(diff.changes)
    if not count:
        title = f"Nothing that can be committed differs from commit {diff.base_sha[:8]}."
    else:
        files = "1 file differs" if count == 1 else f"{count} files differ"
        title = f"{files} from commit {diff.base_sha[:8]}: +{added} −{removed}"
    excerpt, cut = _beginning(diff.text)
    return DiffSummary(
        title,
        tuple(FileLine(change.path, _detail(change)) for change in diff.changes[:_FILES]),
        max(0, count - _FILES),
        diff.left_out[:_LEFT_OUT],
        max(0, len(diff.left_out) - _LEFT_OUT) + diff.left_out_more,
        _notes(diff),
        excerpt,
        cut,
    )


def _detail(change: Change) -> str:
    words = [_MARKS[change.kind]]
    if change.kind is ChangeKind.UPDATED and change.content is None:
        words = []
    elif change.binary:
        words.append("not shown")
    else:
        words.append(f"+{change.added} −{change.removed}")
    if change.executable is not None:
        words.append("executable" if change.executable else "no longer executable")
    return ", ".join(words)


def _notes(diff: Diff) -> tuple[str, ...]:
    notes = []
    paths = [change.path for change in diff.changes]
    if any(path.startswith(_PIPELINE) and path not in _OWNERS for path in paths):
        notes.append("This changes the pipeline, which GitLab's runners run once it is committed.")
    if any(path in _OWNERS for path in paths):
        notes.append("This changes who must approve changes (CODEOWNERS).")
    if _UNSEEN_ADDED.search(diff.text):
        notes.append(
            "It has characters that can't be seen, by which code can look other than it is: see `<U+…>` in it."
        )
    if diff.refusal:
        notes.append(diff.refusal)
    return tuple(notes)


def _beginning(text: str) -> tuple[str, bool]:
    lines = [_UNSEEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", line) for line in text.split("\n", _LINES)[:_LINES]]
    shown = [line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…" for line in lines]
    kept: list[str] = []
    size = 0
    for line in shown:
        size += len(line) + 1
        if size > _CHARACTERS:
            break
        kept.append(line)
    cut = len(kept) < len(text.rstrip("\n").split("\n")) or any(len(line) > _LONGEST_LINE for line in lines)
    return "\n".join(kept).rstrip("\n"), cut
