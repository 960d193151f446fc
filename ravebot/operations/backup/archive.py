"""The file of a backup: an uncompressed tar whose first member, the manifest, says what the others must be.

Nothing in a file that is read is trusted: not its sizes, names, modes or owners. Only plain members with names that are
known here are read, so the headers of other kinds, which tar programs follow, have no effect.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from ravebot.errors import StoreError
from ravebot.sandboxes import naming
from ravebot.store.swap import DATABASE, INSTANCE_ID, LOGIN

FORMAT = 1
MANIFEST = "manifest.json"
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1024 * 1024
_MOST_BYTES: Mapping[str, int] = {
    MANIFEST: 64 * 1024,
    INSTANCE_ID: 1024,
    LOGIN: 64 * 1024,
    DATABASE: 1024**4,
}
"""The largest size of each member that is read."""


class BackupUnusable(StoreError):
    """The file is no backup, is damaged, or is of another version."""


@dataclass(frozen=True)
class Content:
    """What one member of the file must be."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a backup says of itself. `head` is the hash of the newest of its `events`.

    `seal`: the SHA-256 of the manifest's text with an empty seal; backups of early versions have none.
    """

    format: int
    ravebot: Annotated[str, Field(max_length=100)]
    schema: Annotated[int, Field(ge=1)]
    instance: Annotated[str, Field(max_length=100)]
    instance_id: Annotated[str, Field(pattern=f"^{naming.INSTANCE_ID}$")]
    made_at: AwareDatetime
    events: int
    head: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    members: dict[str, Content]
    seal: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""


_MANIFESTS = TypeAdapter(Manifest)


def write(file: BinaryIO, manifest: Manifest, sources: Mapping[str, Path], check: Callable[[], None]) -> None:
    """Write the manifest and the files; `check` is called again and again, and may raise to break off."""
    bare = to_json(replace(manifest, seal=""), indent=2) + b"\n"
    text = bare.replace(b'"seal": ""', f'"seal": "{hashlib.sha256(bare).hexdigest()}"'.encode())
    _write_header(file, MANIFEST, len(text), manifest.made_at)
    file.write(text + _padding(len(text)))
    for name, path in sources.items():
        size = manifest.members[name].size
        _write_header(file, name, size, manifest.made_at)
        with path.open("rb") as source:
            while chunk := source.read(_CHUNK):
                check()
                file.write(chunk)
        file.write(_padding(size))
    file.write(bytes(2 * _BLOCK))


def measure(path: Path, check: Callable[[], None]) -> Content:
    """Size and hash of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            check()
            digest.update(chunk)
            size += len(chunk)
    return Content(size, digest.hexdigest())


def read(path: Path, folder: Path | None, check: Callable[[], None]) -> Manifest:
    """Check every byte of a backup, and write its members to `folder`, if one is given. Raises BackupUnusable.

    The members are new files that only their owner can read; they are on the disk when this returns.
    """
    if path.is_dir():
        raise BackupUnusable(f"{path} is a folder: name a backup in it")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BackupUnusable(f"the backup {path} can't be read ({error.strerror}): check its name and owner") from error
    with os.fdopen(descriptor, "rb") as file:
        try:
            return _read(path, file, folder, check)
        except (tarfile.TarError, ValidationError) as error:
            raise BackupUnusable(
                f"{path} is no backup of ravebot's, or it is damaged: take another one (`ravebot backup` writes them)"
            ) from error


def _read(path: Path, file: BinaryIO, folder: Path | None, check: Callable[[], None]) -> Manifest:
    name, size = _read_header(file)
    if name != MANIFEST:
        raise tarfile.ReadError("the manifest is not first")
    text = file.read(size)
    _skip_padding(file, size)
    manifest = _MANIFESTS.validate_json(text)
    if manifest.seal and manifest.seal != hashlib.sha256(text.replace(manifest.seal.encode(), b"")).hexdigest():
        raise tarfile.ReadError("the manifest is damaged")
    if manifest.format != FORMAT:
        raise BackupUnusable(f"{path} is of a newer ravebot ({manifest.ravebot}): install that one, then restore")
    if {DATABASE, INSTANCE_ID} - manifest.members.keys() or manifest.members.keys() - {DATABASE, INSTANCE_ID, LOGIN}:
        raise tarfile.ReadError("members are missing or unknown")
    if folder is not None:
        _check_space(path, folder, sum(content.size for content in manifest.members.values()))
    left = dict(manifest.members)
    while left:
        name, size = _read_header(file)
        wanted = left.pop(name, None)
        if wanted is None or size != wanted.size:
            raise tarfile.ReadError(f"{name} is not what the manifest says")
        digest = hashlib.sha256()
        target = _create(folder / name) if folder is not None else None
        try:
            rest = size
            while rest:
                check()
                chunk = file.read(min(rest, _CHUNK))
                if not chunk:
                    raise BackupUnusable(f"{path} is cut off: copy it again, or take another one")
                rest -= len(chunk)
                digest.update(chunk)
                if target is not None:
                    target.write(chunk)
            if digest.hexdigest() != wanted.sha256:
                raise BackupUnusable(f"{path} is damaged: {name} has another hash than the manifest says; take another")
            if target is not None:
                target.flush()
                os.fsync(target.fileno())
        finally:
            if target is not None:
                target.close()
        _skip_padding(file, size)
    return replace(manifest, seal="")


def _check_space(path: Path, folder: Path, needed: int) -> None:
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize
    if needed + needed // 10 > free:
        raise BackupUnusable(
            f"the disk of {folder.parent} is too full for {path}: it needs {needed} bytes, and {free} are free"
        )


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb")


def _write_header(file: BinaryIO, name: str, size: int, at: datetime) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(at.timestamp())
    file.write(info.tobuf(tarfile.GNU_FORMAT))


def _read_header(file: BinaryIO) -> tuple[str, int]:
    """Name and size of the next member. One header is parsed alone: there are none that continue in a second."""
    info = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
    if info.type != tarfile.REGTYPE or not 0 <= info.size <= _MOST_BYTES.get(info.name, -1):
        raise tarfile.ReadError(f"{info.name!r} does not belong there")
    return info.name, info.size


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _skip_padding(file: BinaryIO, size: int) -> None:
    file.read(-size % _BLOCK)
