"""Keeps the diffs that approvals are about, each in a file named by its hash, so that what is committed is what was
approved. Blocking."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ravebot.agents.diff.model import Diff, canonical, hash_of, parse_canonical
from ravebot.errors import Refused, Unavailable
from ravebot.store.durable import write_file
from ravebot.store.owner import give

MAX_KEPT_BYTES = 256 * 1024**2
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class KeptDiffs:
    """The folder of the kept diffs."""

    folder: Path

    def keep(self, diff: Diff) -> str:
        """Store a diff, which may be there already; returns its hash. Raises Unavailable if there is no room."""
        form = canonical(diff.base_sha, diff.changes)
        found = hash_of(form)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            give(self.folder)
            path = self.folder / found
            if not path.exists():
                kept = sum(one.stat().st_size for one in self.folder.iterdir())
                if kept + len(form) > MAX_KEPT_BYTES:
                    raise Unavailable(
                        "Too many diffs wait for an answer: approve or deny some of them, then ask for this one again."
                    )
                write_file(path, form)
        except OSError as error:
            raise Unavailable(
                f"The diff can't be kept in {self.folder} ({error.strerror}): is the disk full?"
            ) from error
        return found

    def load(self, diff_hash: str) -> Diff:
        """A kept diff, without its text. Raises Refused if it is not there, or not what was kept."""
        again = "ask for the diff again, and approve that."
        if not _HASH.fullmatch(diff_hash):
            raise Refused(f"This approval names no diff: {again}")
        try:
            form = (self.folder / diff_hash).read_bytes()
        except FileNotFoundError as error:
            raise Refused(f"The diff that was approved is not kept any more: {again}") from error
        except OSError as error:
            raise Unavailable(f"The diff in {self.folder} can't be read ({error.strerror})") from error
        try:
            base_sha, changes = parse_canonical(form)
        except ValueError as error:
            raise Refused(f"The diff that was approved was damaged on this host: {again}") from error
        if hash_of(form) != diff_hash:
            raise Refused(f"The diff that was approved was changed on this host: {again}")
        return Diff(base_sha, changes, "", diff_hash)

    def forget(self, diff_hash: str) -> None:
        """Remove a diff; nothing needs it any more."""
        if _HASH.fullmatch(diff_hash):
            with suppress(FileNotFoundError):
                (self.folder / diff_hash).unlink()

    def keep_only(self, hashes: Collection[str]) -> int:
        """Remove all others, as an earlier process may have left them; returns how many."""
        removed = 0
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name not in hashes:
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed
