"""Reads the commit that was copied in, from GitLab's archive of it, as a stream: nothing is unpacked.

The archive holds what people pushed, so its sizes and names are not trusted. Blocking; run it in the worker.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ravebot.agents.diff.listing import MAX_FILES
from ravebot.agents.diff.model import MAX_FILE_BYTES

_MAX_UNPACKED_BYTES = 8 * 1024**3
_LARGEST_READ_BYTES = 4 * 1024**2
"""Headers with long names are read at once, in whatever size they claim."""
_CHUNK_BYTES = 256 * 1024
_RULES = frozenset({".gitignore", ".gitattributes", ".gitmodules"})
_MAX_RULES_BYTES = 64 * 1024
_MAX_RULE_FILES = 500


class UnreadableArchive(ValueError):
    """The archive is damaged or too large; the message is a sentence."""


@dataclass(frozen=True)
class BaseFile:
    """A file of the commit. `sha256` is empty for a link."""

    size: int
    executable: bool
    sha256: str
    link: bool = False


@dataclass(frozen=True)
class Baseline:
    """The files of the commit by path, and the content of those that hold Git's rules."""

    files: Mapping[str, BaseFile]
    rules: Mapping[str, bytes] = field(default_factory=dict)


class _Unpacked(gzip.GzipFile):
    """The archive's bytes, within limits."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LARGEST_READ_BYTES or self.tell() + size > _MAX_UNPACKED_BYTES:
            raise UnreadableArchive("GitLab's archive of the commit is too large to compare with.")
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset > _MAX_UNPACKED_BYTES:
            raise UnreadableArchive("GitLab's archive of the commit is too large to compare with.")
        return super().seek(offset, whence)


@contextmanager
def _readable() -> Iterator[None]:
    """Raise UnreadableArchive for whatever a damaged archive leads to, also while a member is read."""
    try:
        yield
    except UnreadableArchive:
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise UnreadableArchive("GitLab's archive of the commit can't be read: try again.") from error


@_readable()
def survey(archive: Path) -> Baseline:
    """Every file of the commit with its hash. Raises UnreadableArchive."""
    files: dict[str, BaseFile] = {}
    rules: dict[str, bytes] = {}
    for path, member, content in _members(archive):
        executable = bool(member.mode & 0o100)
        if member.issym():
            files[path] = BaseFile(0, executable, "", link=True)
            continue
        digest = hashlib.sha256()
        kept = bytearray()
        keeps = path.rpartition("/")[2] in _RULES and member.size <= _MAX_RULES_BYTES and len(rules) < _MAX_RULE_FILES
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
            if keeps:
                kept += chunk
        files[path] = BaseFile(member.size, executable, digest.hexdigest())
        if keeps:
            rules[path] = bytes(kept)
        if len(files) > MAX_FILES:
            raise UnreadableArchive(f"The commit has more than {MAX_FILES} files, too many to compare.")
    return Baseline(files, rules)


@_readable()
def contents(archive: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """The content of these files of the commit, except of those that are larger than a change may be."""
    found: dict[str, bytes] = {}
    for path, member, content in _members(archive):
        if path in wanted and not member.issym() and member.size <= MAX_FILE_BYTES:
            found[path] = content.read(MAX_FILE_BYTES)
            if len(found) == len(wanted):
                break
    return found


def _members(archive: Path) -> Iterator[tuple[str, tarfile.TarInfo, IO[bytes]]]:
    """Path below the archive's one folder, description and content of every file and link."""
    with (
        _Unpacked(archive, "rb") as unpacked,
        tarfile.TarFile(fileobj=unpacked, encoding="utf-8", errors="surrogateescape") as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
            _, _, path = member.name.partition("/")
            if not path or not (member.isreg() or member.issym()):
                continue
            content = io.BytesIO() if member.issym() else tar.extractfile(member)
            assert content is not None
            yield path, member, content
        while unpacked.read(_CHUNK_BYTES):  # to its end, where its checksum is
            pass
