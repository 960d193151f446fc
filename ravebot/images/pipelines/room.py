"""When work on an image must end before it is done: ravebot stops, it takes too long, or the host's disk fills up."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ravebot.errors import Unavailable
from ravebot.images.pipelines.qcow2 import PipelineImageRefused
from ravebot.sandboxes.view import in_bytes

_LEAST_BYTES = 1024**3
PERHAPS_LACKING_BYTES = 1024**3
"""Where the system says only that its disk, or our quota of it, is full."""


class Abandoned(Unavailable):
    """Nobody needs the image any more, or ravebot stops."""


def left_bytes(folder: Path) -> int:
    """How much may still be written there: the host keeps a twentieth of its disk, and at least 1 GiB."""
    disk = shutil.disk_usage(folder)
    return disk.free - max(_LEAST_BYTES, disk.total // 20)


@dataclass(frozen=True)
class WorkGuard:
    """Called now and then by whoever works; raises Abandoned, PipelineImageRefused or Unavailable. `until` is of
    `time.monotonic`, `what` is said of work that takes longer; `left`: how much may still be written to a folder."""

    folder: Path
    stopping: threading.Event
    until: float
    what: str
    left: Callable[[Path], int] = left_bytes

    def __call__(self) -> None:
        if self.stopping.is_set():
            raise Abandoned("ravebot is stopping, or nobody needs the image any more")
        if time.monotonic() > self.until:
            raise PipelineImageRefused(self.what)
        if (left := self.left(self.folder)) < 0:
            raise HostDiskShort(-left)

    def needs(self, count: int) -> None:
        """Raise unless there is room for so much more."""
        if (left := self.left(self.folder)) < count:
            figures = f"{in_bytes(count)} are needed, {in_bytes(max(0, left))} may be written"
            raise HostDiskShort(count - left, figures)


class HostDiskShort(Unavailable):
    """The host's disk has too little room for the image: `lacking` bytes."""

    def __init__(self, lacking: int, figures: str = "") -> None:
        self.lacking = lacking
        more = f": {figures}" if figures else ""
        super().__init__(f"the host of the sandboxes is short of disk for the image{more}; an operator can make room")


def lacking_bytes(error: Exception) -> int:
    """How much room would help against it; 0: none would."""
    if isinstance(error, HostDiskShort):
        return error.lacking
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return PERHAPS_LACKING_BYTES if full else 0
