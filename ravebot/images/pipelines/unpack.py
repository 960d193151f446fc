"""A compressed disk becomes a raw one with holes, piece by piece. Everything here blocks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ravebot.errors import Unavailable
from ravebot.images.pipelines import cage
from ravebot.images.pipelines.qcow2 import PipelineImageRefused
from ravebot.sandboxes.view import in_bytes

PROGRAMS = {".gz": ("gzip", "-dc"), ".xz": ("xz", "-dc", "--threads=1"), ".zst": ("zstd", "-dc", "-q")}
"""What unpacks a file, by the end of its name; each reads its input and prints the result."""
_MEMORY_BYTES = 512 * 1024**2
_CPU_SECONDS = 900
_PIECE_BYTES = 1024**2
_ZEROS = bytes(_PIECE_BYTES)


def packing(path: str) -> str:
    """How a file of that name is compressed: an end of its name, or nothing."""
    return next((end for end in PROGRAMS if path.lower().endswith(end)), "")


def unpack(packed: Path, end: str, target: Path, most_bytes: int, guard: Callable[[], None]) -> None:
    """Write what is packed to `target`, at most `most_bytes`. Raises PipelineImageRefused, and what `guard` does."""
    program = PROGRAMS[end]
    if lacking := cage.missing([program[0]]):
        raise Unavailable(f"{lacking[0]} is not installed where ravebot runs: an operator can install it")
    limits = cage.CageLimits(_CPU_SECONDS, _MEMORY_BYTES, 1024**2)
    with packed.open("rb") as source, target.open("wb") as result:
        disk = _Holed(result, most_bytes)
        cage.run(program, packed.parent, limits, guard, disk.write, source)
        result.truncate(disk.size)


@dataclass
class _Holed:
    """A file in which long runs of zeros take no room."""

    file: BinaryIO
    most_bytes: int
    size: int = 0

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > self.most_bytes:
            raise PipelineImageRefused(
                f"its disk has more than the {in_bytes(self.most_bytes)} that it may have: make it smaller, or have an "
                "operator raise limits.disk"
            )
        if piece == _ZEROS[: len(piece)]:
            self.file.seek(len(piece), os.SEEK_CUR)
        else:
            self.file.write(piece)
