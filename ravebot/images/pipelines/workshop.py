"""The folder of images that pipelines built: what is kept, and what is being made in a folder below it."""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from ravebot.errors import Unavailable
from ravebot.images.pipelines import cage
from ravebot.images.pipelines.room import HostDiskShort, lacking_bytes
from ravebot.store.durable import remove_parts, write_file
from ravebot.store.owner import give

log = structlog.get_logger()

MARKER = ".ravebot-images"
"""Says whose folder it is: only there is anything removed."""
_WORK = "work"
_OURS = re.compile(r"[0-9]+-[0-9a-f]{64}\.qcow2", re.ASCII)


class NotOurFolder(Unavailable):
    """Nothing there may be touched: the folder holds other things, or is another ravebot's."""


@dataclass(frozen=True)
class ImageWorkshop:
    """Every method blocks. `owner`: the id of this installation."""

    folder: Path
    owner: str = "main"

    def prepare(self, known: Collection[str], booted: Collection[str] = ()) -> frozenset[str]:
        """Make the folder and remove what an earlier process left; returns those of the known files that are gone.

        `booted`: what machines run from, which stays though it may not be known any more. QEMU's user must get there.
        Nobody else can list it, and a file's name has the digest of what is in it. Raises OSError, and NotOurFolder.
        """
        self.folder.mkdir(exist_ok=True, parents=True)
        self._claim()
        for path in (self.folder, self.folder / _WORK):
            path.mkdir(exist_ok=True)
            path.chmod(0o711)
            give(path)
        for inner in (self.folder / _WORK).iterdir():
            shutil.rmtree(inner)
        needed = {*known, *booted}
        for left in self.folder.iterdir():
            if _OURS.fullmatch(left.name) and str(left) not in needed and not left.is_dir():
                left.unlink()
        return self.gone(known)

    def _claim(self) -> None:
        """Mark an empty folder as ours; raises NotOurFolder if it is not and can't become ours."""
        owner = self._marked()
        if owner == self.owner:
            return
        if owner:
            raise NotOurFolder(f"{self.folder} has the images of another ravebot, {owner[:40]}: give this one its own")
        names = {path.name for path in self.folder.iterdir() if not path.name.startswith(f".{MARKER}.")}
        if others := names - {MARKER, "lost+found"}:
            raise NotOurFolder(f"{self.folder} holds other things, as {min(others)[:80]}: give it an empty folder")
        marker = self.folder / MARKER
        write_file(marker, f"{self.owner}\n".encode("ascii"))
        marker.chmod(0o644)
        give(marker)
        remove_parts(self.folder)

    def _marked(self) -> str:
        """Whose folder it is; nothing if nobody has marked it."""
        try:
            return (self.folder / MARKER).read_text("ascii", "replace").strip()
        except FileNotFoundError:
            return ""

    def gone(self, known: Collection[str]) -> frozenset[str]:
        """Those of the known files that are not there; what is in another folder was made before this one was named.

        Raises NotOurFolder where it can't be told, as when another disk is mounted there, and OSError.
        """
        if known and self._marked() != self.owner:
            raise NotOurFolder(
                f"{self.folder} is not marked as this ravebot's any more: mount its disk again, or restart ravebot, "
                "which begins anew in an empty folder"
            )
        return frozenset(path for path in known if Path(path).parent != self.folder or not _is_there(Path(path)))

    def begin(self) -> Path:
        """A new folder for one image; raises Unavailable if it can't be made."""
        if lacking := cage.missing(["qemu-img"]):
            raise Unavailable(f"{', '.join(lacking)} is not installed where ravebot runs: an operator can install it")
        if why := cage.refused():
            raise Unavailable(why)
        try:
            return Path(tempfile.mkdtemp(dir=self.folder / _WORK))
        except OSError as error:
            if short := lacking_bytes(error):
                raise HostDiskShort(short) from error
            log.warning("no image can be made", folder=str(self.folder), error=error.strerror)
            raise Unavailable(
                f"the host's folder of images can't be written to ({error.strerror}): an operator can mend it"
            ) from error

    def end(self, work: Path) -> None:
        """Remove such a folder with all that is in it."""
        shutil.rmtree(work, ignore_errors=True)

    def name(self, project_id: int, digest: str) -> Path:
        """Where the image is kept that was made of a file with that digest."""
        return self.folder / f"{project_id:d}-{digest}.qcow2"

    def remove(self, image: str) -> None:
        """Remove one that is kept."""
        if Path(image).parent == self.folder:
            with suppress(FileNotFoundError):
                Path(image).unlink()


def _is_there(image: Path) -> bool:
    """Whether it is a file; raises OSError where that can't be told."""
    try:
        return stat.S_ISREG(image.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
