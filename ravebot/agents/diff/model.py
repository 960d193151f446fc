"""What a diff, a change and a commit of it are: frozen facts, and the canonical form that an approval is bound to.

An approval names the SHA-256 of the canonical form: base commit, and every change with its content. What is committed
is read back from that form, never again from the guest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum

from ravebot.errors import Refused
from ravebot.sandboxes.model import MergeRequestRef

MAX_FILE_BYTES = 1024**2
MAX_TOTAL_BYTES = 5 * 1024**2
MAX_CHANGES = 200
MAX_LEFT_OUT = 100
"""How many of the files that are left out are named."""
_FORMAT = 1
_LARGEST_HEAD_BYTES = 4 * 1024**2


class ChangeKind(StrEnum):
    """What happened to a file."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


@dataclass(frozen=True)
class Change:
    """One file that differs.

    `content`: what it holds now; None if it was deleted, or only its mode changed. `executable`: whether it may now be
    executed; None if that is as before. `added` and `removed` are lines, 0 for a binary file.
    """

    path: str
    kind: ChangeKind
    content: bytes | None = field(default=None, repr=False)
    executable: bool | None = None
    added: int = 0
    removed: int = 0
    binary: bool = False


@dataclass(frozen=True)
class LeftOut:
    """A file that differs and can't be committed from here. `path` is made printable; `why` ends a sentence."""

    path: str
    why: str


@dataclass(frozen=True)
class Diff:
    """What differs in a sandbox from the commit that was copied in.

    `text`: all of it as `git diff` shows it, of limited size. `hash`: of the canonical form. `left_out_more`: how many
    more are left out than `left_out` names. `refusal`: why it can't be committed as it is, and what to do; empty if it
    can.
    """

    base_sha: str
    changes: tuple[Change, ...]
    text: str = field(repr=False)
    hash: str
    left_out: tuple[LeftOut, ...] = ()
    left_out_more: int = 0
    refusal: str = ""

    @property
    def is_empty(self) -> bool:
        return not self.changes


@dataclass(frozen=True)
class CommitOrder:
    """A commit that a person approved.

    `approval` and `salt` make the trailer by which the commit is found again. `attempted`: an earlier call, perhaps of
    a process that was killed, may have made it. `asked_by` and `approved_by` are untrusted names.
    """

    mr: MergeRequestRef
    head_sha: str
    diff_hash: str
    agent: str
    asked_by: str
    approved_by: str
    approval: int
    salt: str
    attempted: bool

    @property
    def mark(self) -> str:
        return f"{self.approval}.{self.salt}"


@dataclass(frozen=True)
class Committed:
    """The commit that was made. `found`: an earlier call had made it."""

    sha: str
    web_url: str = ""
    found: bool = False


@dataclass(frozen=True)
class BranchHead:
    """A branch as the code host sees it. `can_push`: whether our user may push to it; `developers_can_push`: whether
    everybody with the role Developer may, as that is who approves a commit."""

    sha: str
    protected: bool
    can_push: bool
    developers_can_push: bool = True


@dataclass(frozen=True)
class BranchCommit:
    """One commit of a branch. `message` is untrusted."""

    sha: str
    message: str
    web_url: str = ""


class Overtaken(Refused):
    """The files on the branch are not those that the change was made from."""


def canonical(base_sha: str, changes: tuple[Change, ...]) -> bytes:
    """The bytes that the hash is of: a line of JSON, then the contents, one after the other."""
    head = {
        "format": _FORMAT,
        "base": base_sha,
        "changes": [
            {
                "path": change.path,
                "kind": change.kind.value,
                "executable": change.executable,
                "bytes": None if change.content is None else len(change.content),
            }
            for change in changes
        ],
    }
    line = json.dumps(head, ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode()
    return b"\n".join([line, b"".join(change.content or b"" for change in changes)])


def parse_canonical(form: bytes) -> tuple[str, tuple[Change, ...]]:
    """Base commit and changes, without their counts. Raises ValueError for anything that is not the canonical form."""
    line, _, rest = form.partition(b"\n")
    if len(line) > _LARGEST_HEAD_BYTES:
        raise ValueError("its head is too long")
    try:
        head = json.loads(line)
        base_sha, listed = str(head["base"]), list(head["changes"])
        changes = []
        for item in listed:
            size = item["bytes"]
            content = None
            if size is not None:
                content, rest = rest[: int(size)], rest[int(size) :]
            kind = ChangeKind(item["kind"])
            changes.append(Change(str(item["path"]), kind, content, item["executable"]))
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError("it is damaged") from error
    found = tuple(changes)
    if rest or canonical(base_sha, found) != form:
        raise ValueError("it is damaged")
    return base_sha, found


def hash_of(form: bytes) -> str:
    return hashlib.sha256(form).hexdigest()
