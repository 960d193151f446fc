"""Writes changes as `git diff` does: for people, and for `git apply` where no file is binary or too long.

Blocking; the comparison of two long files may take any time, so it runs in the worker, which interrupts it.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ravebot.agents.diff.model import Change, ChangeKind

MAX_TEXT_BYTES = 1024**2
_SECONDS_A_FILE = 2.0
_CONTEXT = 3
_LOOKED_AT_BYTES = 8000  # as Git does to see whether a file is binary


class _TooDifferent(Exception):
    """The comparison takes too long."""


def written(changes: Sequence[Change], old: Mapping[str, bytes], executable: Mapping[str, bool]) -> tuple[
    tuple[Change, ...], str
]:  # fmt: skip
    """The changes with their counts of lines, and their text.

    `old`: the content in the commit, where it is known; `executable`: the modes there.
    """
    counted, texts, size = [], [], 0
    cut = 0
    for change in changes:
        full, text = _one(change, old.get(change.path), executable.get(change.path, False))
        counted.append(full)
        size += len(text.encode())
        if size > MAX_TEXT_BYTES:
            cut += 1
        else:
            texts.append(text)
    if cut:
        texts.append(f"{cut} more {'file differs' if cut == 1 else 'files differ'}: too long to be shown here\n")
    return tuple(counted), "".join(texts)


def is_binary(content: bytes) -> bool:
    return b"\0" in content[:_LOOKED_AT_BYTES]


def _one(change: Change, old: bytes | None, was_executable: bool) -> tuple[Change, str]:
    path = change.path
    head = [f"diff --git a/{path} b/{path}\n", *_modes(change, was_executable)]
    if change.content is None and change.kind is not ChangeKind.DELETED:
        return change, "".join(head)
    before, after = old, change.content
    if before is None and change.kind is not ChangeKind.CREATED:
        return replace(change, binary=True), "".join([*head, f"File {path} was too long to be shown\n"])
    if is_binary(before or b"") or is_binary(after or b""):
        return replace(change, binary=True), "".join([*head, f"Binary files a/{path} and b/{path} differ\n"])
    was, now = _lines(before or b""), _lines(after or b"")
    names = [
        "--- /dev/null\n" if change.kind is ChangeKind.CREATED else f"--- a/{path}\n",
        "+++ /dev/null\n" if change.kind is ChangeKind.DELETED else f"+++ b/{path}\n",
    ]
    hunks = list(_hunks(was, now))
    added = sum(1 for line in hunks if line.startswith("+"))
    removed = sum(1 for line in hunks if line.startswith("-"))
    return replace(change, added=added, removed=removed), "".join([*head, *(names if hunks else ()), *hunks])


def _modes(change: Change, was_executable: bool) -> Iterator[str]:
    is_executable = was_executable if change.executable is None else change.executable
    was, now = (f"100{'755' if executable else '644'}" for executable in (was_executable, is_executable))
    if change.kind is ChangeKind.CREATED:
        yield f"new file mode {now}\n"
    elif change.kind is ChangeKind.DELETED:
        yield f"deleted file mode {was}\n"
    elif was != now:
        yield f"old mode {was}\nnew mode {now}\n"


def _lines(content: bytes) -> list[str]:
    """Lines with their ends; only a line feed ends one, as for Git."""
    lines = content.decode("utf-8", "replace").split("\n")
    last = lines.pop()
    return [*(f"{line}\n" for line in lines), *([last] if last else [])]


def _hunks(was: list[str], now: list[str]) -> Iterator[str]:
    """The lines of a unified diff, after its two lines of names."""
    start = 0
    while start < min(len(was), len(now)) and was[start] == now[start]:
        start += 1
    start = max(0, start - _CONTEXT)  # what both begin with need not be compared
    groups: list[list[tuple[str, int, int, int, int]]]
    try:
        with _interrupted(_SECONDS_A_FILE):
            matcher = difflib.SequenceMatcher(None, was[start:], now[start:])
            groups = [list(group) for group in matcher.get_grouped_opcodes(_CONTEXT)]
    except _TooDifferent:
        groups = [[("replace", 0, len(was) - start, 0, len(now) - start)]]
    for group in groups:
        first, last = group[0], group[-1]
        yield f"@@ -{_range(start + first[1], start + last[2])} +{_range(start + first[3], start + last[4])} @@\n"
        for tag, left, left_end, right, right_end in group:
            if tag == "equal":
                yield from (_ended(" ", line) for line in was[start + left : start + left_end])
                continue
            yield from (_ended("-", line) for line in was[start + left : start + left_end])
            yield from (_ended("+", line) for line in now[start + right : start + right_end])


def _range(begin: int, end: int) -> str:
    count = end - begin
    return f"{begin + 1 if count else begin},{count}"


def _ended(mark: str, line: str) -> str:
    return mark + line if line.endswith("\n") else f"{mark}{line}\n\\ No newline at end of file\n"


@contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """Raise _TooDifferent after so much of our own time; only in a main thread, and nothing else may use the timer."""

    def over(_signal: int, _frame: object) -> None:
        raise _TooDifferent

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
