"""Parses what the guest says of its files. It may lie, and all of it is bounded; see `guestfiles` for the scripts.

Paths are text in which bytes that are not UTF-8 are lone surrogates, as in `os.fsdecode`.
"""

from __future__ import annotations

import base64
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ravebot.agents.diff.model import MAX_FILE_BYTES

MAX_FILES = 200_000
_LINE = re.compile(rb"([0-9a-f]{1,8}) ([0-9]{1,15}) (.+)", re.DOTALL)
_END = re.compile(rb"= ([0-9]{1,3})")
_HASH = re.compile(rb"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
_LONGEST_PATH_BYTES = 4096
_ODD_NAMES = 20


class MalformedListing(ValueError):
    """The guest's answer is incomplete or of another form; the message ends a sentence."""


class FileKind(StrEnum):
    """What a path is."""

    REGULAR = "regular"
    LINK = "link"
    SPECIAL = "special"


@dataclass(frozen=True)
class FoundFile:
    """A file as the guest describes it."""

    path: str
    kind: FileKind
    size: int
    executable: bool


@dataclass(frozen=True)
class GuestListing:
    """All files of the code's folder. `complete`: every folder could be read. `odd`: printable forms of the names with
    line breaks, which are not among the files."""

    files: Mapping[str, FoundFile]
    complete: bool
    odd: tuple[str, ...] = ()


def parse_listing(text: bytes) -> GuestListing:
    """The files in the guest's answer. Raises MalformedListing if it is cut off or has another form."""
    lines = text.split(b"\n")
    files: dict[str, FoundFile] = {}
    for index, line in enumerate(lines):
        if end := _END.fullmatch(line):
            odd = tuple(path.decode(errors="replace")[2:] for path in lines[index + 1 :] if path.startswith(b"./"))
            return GuestListing(files, end[1] == b"0", odd[:_ODD_NAMES])
        found = _found(line)
        files.setdefault(found.path, found)
        if len(files) > MAX_FILES:
            raise MalformedListing(f"it has more than {MAX_FILES} files")
    raise MalformedListing("its list of files is cut off")


def parse_hashes(text: bytes) -> dict[str, str]:
    """SHA-256 by path, from the output of sha256sum; other lines are ignored, so that their files count as unread."""
    hashes: dict[str, str] = {}
    for line in text.split(b"\n"):
        if found := _HASH.fullmatch(line):
            escaped, digest, name = found.groups()
            if escaped:  # GNU's form of a name with a backslash
                name = name.replace(b"\\\\", b"\\")
            hashes.setdefault(_path(name), digest.decode())
    return hashes


def parse_contents(text: bytes, asked: Sequence[str]) -> dict[str, bytes]:
    """The contents of the files that were asked for, in that order, in Base64, each closed by a line with a dot.

    A file that is gone, no regular file any more, or larger than allowed is missing in the result. Raises
    MalformedListing if the answer is cut off.
    """
    contents: dict[str, bytes] = {}
    blocks = text.split(b"\n.\n")
    if len(blocks) != len(asked) + 1 or blocks[-1]:
        raise MalformedListing("the files' contents are cut off")
    for path, block in zip(asked, blocks[:-1], strict=True):
        if block.strip() == b"-":
            continue
        try:
            content = base64.b64decode(block.replace(b"\n", b""), validate=True)
        except ValueError as error:
            raise MalformedListing("a file's content is not Base64") from error
        if len(content) <= MAX_FILE_BYTES:
            contents[path] = content
    return contents


def as_arguments(paths: Sequence[str]) -> bytes:
    """The paths as the guest's scripts take them: each after `./`, ended by a zero byte."""
    return b"".join(b"./" + path.encode("utf-8", "surrogateescape") + b"\0" for path in paths)


def _found(line: bytes) -> FoundFile:
    parsed = _LINE.fullmatch(line)
    if parsed is None or len(parsed[3]) > _LONGEST_PATH_BYTES + 2:
        raise MalformedListing("its list of files is malformed")
    mode, size = int(parsed[1], 16), int(parsed[2])
    kinds = {stat.S_IFREG: FileKind.REGULAR, stat.S_IFLNK: FileKind.LINK}
    kind = kinds.get(stat.S_IFMT(mode), FileKind.SPECIAL)
    return FoundFile(_path(parsed[3]), kind, size, bool(mode & stat.S_IXUSR))


def _path(name: bytes) -> str:
    if b"\0" in name:
        raise MalformedListing("it names a file that can't exist")
    return name.removeprefix(b"./").decode("utf-8", "surrogateescape")
