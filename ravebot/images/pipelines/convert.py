"""A job's file becomes a fresh qcow2 file of ours, or is refused and why. Everything here blocks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ravebot.errors import ImageError
from ravebot.images.pipelines import cage
from ravebot.images.pipelines.qcow2 import MAGIC, PipelineImageRefused, look_into
from ravebot.images.pipelines.room import HostDiskShort, left_bytes
from ravebot.images.pipelines.unpack import packing, unpack
from ravebot.providers.libvirt.disks import image_size
from ravebot.sandboxes.view import in_bytes

_MEMORY_BYTES = 1024**3
_INFO_SECONDS, _CPU_SECONDS = 10, 900
_INFO_BYTES = 1024**2
_OVERHEAD_BYTES = 64 * 1024**2  # of qcow2's own tables, for any disk that may be


@dataclass(frozen=True)
class Converted:
    """The file that machines may start from."""

    bytes: int
    virtual_bytes: int


@dataclass(frozen=True)
class ConvertLimits:
    """`disk_bytes`: of the disk as a machine sees it; `kept_bytes`: of the file that is kept."""

    disk_bytes: int
    kept_bytes: int


def convert(
    fetched: Path,
    name: str,
    target: Path,
    limits: ConvertLimits,
    guard: Callable[[], None],
    left: Callable[[Path], int] = left_bytes,
) -> Converted:
    """Convert the only file of a folder, which is `name` among the job's artifacts; `target` is there at the end, or
    nothing. `left`: how much may still be written there. Raises PipelineImageRefused, HostDiskShort, and what `guard`
    raises."""
    folder = fetched.parent
    source, made = fetched, folder / "made"
    if end := packing(name):
        source = folder / "disk"
        unpack(fetched, end, source, limits.disk_bytes, guard)
        fetched.unlink()
    kind = _kind(source, name, bool(end), limits.disk_bytes, guard)
    source.chmod(0o400)
    for path in (folder, source):
        cage.give(path)
    virtual = _inspect(source, kind, limits.disk_bytes, guard)
    may, room = min(virtual + _OVERHEAD_BYTES, limits.kept_bytes), max(0, left(folder))
    program = ["qemu-img", "convert", "-q", "--image-opts", "-O", "qcow2", "-m", "4", "-W"]
    allowed = cage.CageLimits(_CPU_SECONDS, _MEMORY_BYTES, min(may, room))
    try:
        cage.run([*program, _options(source, kind), made.name], folder, allowed, guard, lambda _: None)
    except cage.TooLarge as error:
        if room < may:
            figures = f"it needs more than the {in_bytes(room)} that may be written"
            raise HostDiskShort(may - room, figures) from error
        raise
    return _take(made, target, virtual, guard)


def _kind(source: Path, name: str, packed: bool, most_bytes: int, guard: Callable[[], None]) -> str:
    """Its format, by our own reading: never what a program finds it to be."""
    with source.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            look_into(file.fileno(), most_bytes, guard)
            return "qcow2"
        size = os.fstat(file.fileno()).st_size
    if not packed:
        raise PipelineImageRefused(
            f"{Path(name).name} is no qcow2 file: make it with `qemu-img convert -O qcow2`, or compress the disk, to a "
            "name that ends with .gz, .xz or .zst"
        )
    if size < 512:
        raise PipelineImageRefused("there is no disk in it: look what the job packs")
    return "raw"


def _options(source: Path, kind: str) -> str:
    """Which file to read, and how: nothing in its name or content can say otherwise."""
    return f"driver={kind},file.driver=file,file.locking=off,file.filename={source.name},read-only=on"


def _inspect(source: Path, kind: str, most_bytes: int, guard: Callable[[], None]) -> int:
    """Its virtual size, after qemu-img has looked too."""
    allowed = cage.CageLimits(_INFO_SECONDS, _MEMORY_BYTES, _INFO_BYTES)
    said = bytearray()

    def hear(piece: bytes) -> None:
        said.extend(piece[: _INFO_BYTES - len(said)])

    argv = ["qemu-img", "info", "--output=json", "--image-opts", _options(source, kind)]
    cage.run(argv, source.parent, allowed, guard, hear)
    try:
        found = json.loads(said)
        specific = found.get("format-specific", {}).get("data", {})
        size, kinds = int(found["virtual-size"]), found["format"]
        refers = [key for key in ("backing-filename", "full-backing-filename", "encrypted") if found.get(key)]
        refers += [key for key in ("data-file", "encrypt", "corrupt") if specific.get(key)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineImageRefused("qemu-img says nothing of it that can be understood") from error
    if refers or kinds != kind:
        raise PipelineImageRefused(
            f"qemu-img finds that it is no plain image ({', '.join(refers) or 'another format'})"
        )
    if not 0 < size <= most_bytes:
        raise PipelineImageRefused("its disk is larger than it may be: make it smaller")
    return size


def _take(made: Path, target: Path, virtual: int, guard: Callable[[], None]) -> Converted:
    """Make what the program wrote ours, and give it its name once it is on the disk."""
    descriptor = os.open(made, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_nlink != 1 or look_into(descriptor, virtual, guard) != virtual or image_size(made) != virtual:
            raise PipelineImageRefused("qemu-img made something else of it than an image")
        if cage.user() is not None:
            os.fchown(descriptor, os.geteuid(), os.getegid())
        os.fchmod(descriptor, 0o644)  # QEMU is another user, who must know the name: the folder can't be listed
        os.fsync(descriptor)
    except ImageError as error:
        raise PipelineImageRefused("qemu-img made something else of it than an image") from error
    finally:
        os.close(descriptor)
    made.rename(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return Converted(found.st_blocks * 512, virtual)
