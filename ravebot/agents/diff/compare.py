"""Compares what a guest says of its files with the commit: purely, in three steps.

`sort` takes the list of files and says whose hash is needed, `choose` takes the hashes and says whose content is
needed, and `finish` takes the contents and gives the changes. In doubt a file is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from ravebot.agents.diff.baseline import BaseFile, Baseline
from ravebot.agents.diff.listing import FileKind, FoundFile, GuestListing
from ravebot.agents.diff.model import MAX_CHANGES, MAX_FILE_BYTES, MAX_TOTAL_BYTES, Change, ChangeKind, LeftOut
from ravebot.agents.diff.paths import printable, refusal
from ravebot.agents.diff.rules import GitRules, folders_of

_MOST_FOLDERS = 60
_UNREAD = "the sandbox's user can't read it"
_MOVING = "it changed while it was read: ask again when nothing writes there"


@dataclass(frozen=True)
class Sorted:
    """The files by what is known of them: `same_size` may be as in the commit, `differing` are not."""

    baseline: Baseline
    found: Mapping[str, FoundFile]
    same_size: tuple[str, ...]
    differing: tuple[str, ...]
    deleted: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class ToFetch:
    """Whose content is wanted, and of which files only the mode differs. `refusal`: why this can't be committed as a
    whole; empty if it can."""

    sorted: Sorted
    wanted: tuple[str, ...]
    mode_only: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    refusal: str = ""


@dataclass(frozen=True)
class Compared:
    """The changes, in the order of their paths."""

    changes: tuple[Change, ...]
    left_out: tuple[LeftOut, ...]
    refusal: str = ""

    @property
    def with_old_content(self) -> frozenset[str]:
        """The files of the commit whose old content the text shows."""
        return frozenset(
            change.path
            for change in self.changes
            if change.kind is ChangeKind.DELETED or (change.kind is ChangeKind.UPDATED and change.content is not None)
        )


def sort(baseline: Baseline, listing: GuestListing) -> Sorted:
    """What the list of files alone tells."""
    rules = GitRules.of(baseline.rules)
    left_out = [LeftOut(printable(name), "its name has a line break") for name in listing.odd]
    same_size: list[str] = []
    differing: list[str] = []
    for path in sorted(listing.files):
        file, base = listing.files[path], baseline.files.get(path)
        if base is None and path.count("/") > _MOST_FOLDERS:  # matching each of them would take long
            left_out.append(LeftOut(printable(path), "its path is too long"))
            continue
        if base is None and rules.ignored(path):
            continue
        if why := _kind_refused(file, base):
            left_out.append(LeftOut(printable(path), why))
        elif file.kind is not FileKind.REGULAR:
            continue
        elif base is not None and base.size == file.size:
            same_size.append(path)
        elif why := refusal(path, new=base is None) or rules.refusal(path):
            left_out.append(LeftOut(printable(path), why))
        else:
            differing.append(path)
    deleted = []
    for path in sorted(baseline.files.keys() - listing.files.keys()):
        base = baseline.files[path]
        if why := (
            ("" if listing.complete else "it may be deleted, or in a folder that the sandbox's user can't read")
            or ("it is a symbolic link that is deleted" if base.link else "")
            or refusal(path, new=False)
            or rules.refusal(path)
        ):
            left_out.append(LeftOut(printable(path), why))
        else:
            deleted.append(path)
    return Sorted(baseline, listing.files, tuple(same_size), tuple(differing), tuple(deleted), tuple(left_out))


def choose(step: Sorted, hashes: Mapping[str, str]) -> ToFetch:
    """What the hashes of the files of the same size tell. A guest that lies about one hides its own change."""
    rules = GitRules.of(step.baseline.rules)
    left_out, differing = list(step.left_out), list(step.differing)
    mode_only: list[str] = []
    for path in step.same_size:
        base, file, digest = step.baseline.files[path], step.found[path], hashes.get(path)
        same = digest == base.sha256
        if same and base.executable == file.executable:
            continue
        if why := refusal(path, new=False) or rules.refusal(path) or (_UNREAD if digest is None else ""):
            left_out.append(LeftOut(printable(path), why))
        else:
            (mode_only if same else differing).append(path)
    taken = _by_case(step, differing)
    wanted: list[str] = []
    total = refused = 0
    for path in sorted(differing):
        size = step.found[path].size
        if path not in step.baseline.files and (other := _clash(taken, path)):
            left_out.append(LeftOut(printable(path), f"its name differs from {printable(other, 80)} only in case"))
        elif size > MAX_FILE_BYTES:
            left_out.append(LeftOut(printable(path), f"it is larger than {MAX_FILE_BYTES // 1024**2} MiB"))
        elif len(wanted) >= MAX_CHANGES or total + size > MAX_TOTAL_BYTES:
            refused += 1
            left_out.append(LeftOut(printable(path), "it is too much for one commit"))
        else:
            wanted.append(path)
            total += size
    count = len(wanted) + refused + len(mode_only) + len(step.deleted)
    why = ""
    if refused or count > MAX_CHANGES:
        why = (
            f"This is too much for one commit from a sandbox: {count} files differ, and at most {MAX_CHANGES} files"
            f" with {MAX_TOTAL_BYTES // 1024**2} MiB can be committed at once. Have what does not belong into the"
            " repository removed or put into .gitignore, or commit from your own clone."
        )
    return ToFetch(step, tuple(wanted), tuple(mode_only), tuple(left_out), why)


def finish(step: ToFetch, contents: Mapping[str, bytes]) -> Compared:
    """The changes. What counts is the content that was read, whatever was said of it before."""
    base_files, found = step.sorted.baseline.files, step.sorted.found
    left_out = list(step.left_out)
    changes = [Change(path, ChangeKind.DELETED) for path in step.sorted.deleted[:MAX_CHANGES]]
    for path in step.mode_only[:MAX_CHANGES]:
        changes.append(Change(path, ChangeKind.UPDATED, executable=found[path].executable))
    for path in step.wanted:
        file, base, content = found[path], base_files.get(path), contents.get(path)
        if content is None:
            left_out.append(LeftOut(printable(path), _UNREAD))
        elif len(content) != file.size:
            left_out.append(LeftOut(printable(path), _MOVING))
        elif base is None:
            changes.append(Change(path, ChangeKind.CREATED, content, executable=file.executable or None))
        else:
            mode = file.executable if file.executable != base.executable else None
            change = Change(path, ChangeKind.UPDATED, content, executable=mode)
            if sha256(content).hexdigest() == base.sha256:
                if mode is None:
                    continue
                change = replace(change, content=None)
            changes.append(change)
    changes.sort(key=lambda change: change.path)
    return Compared(tuple(changes), tuple(left_out), step.refusal)


def _kind_refused(file: FoundFile, base: BaseFile | None) -> str:
    """Why something can't be committed for what it is; empty if it can, or is as in the commit."""
    if file.kind is FileKind.SPECIAL:
        return "it is neither a file nor a folder"
    if file.kind is FileKind.LINK and (base is None or not base.link):
        return "it is a symbolic link" if base is None else "it became a symbolic link"
    if file.kind is FileKind.REGULAR and base is not None and base.link:
        return "it was a symbolic link in the commit"
    return ""


def _by_case(step: Sorted, differing: Iterable[str]) -> dict[str, str]:
    """The files and folders that there will be, by their name without case: those of the commit come first."""
    kept = step.baseline.files.keys() - set(step.deleted)
    taken: dict[str, str] = {}
    for path in (*sorted(kept), *sorted(differing)):
        for part in (path, *folders_of(path)):
            taken.setdefault(part.casefold(), part)
    return taken


def _clash(taken: Mapping[str, str], path: str) -> str:
    """The name that a new file's, or that of one of its folders, differs from only in case; empty if there is none."""
    return next((taken[part.casefold()] for part in (path, *folders_of(path)) if taken[part.casefold()] != part), "")
