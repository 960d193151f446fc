"""The folder of images that pipelines built: what is kept, and what is being made in a folder below it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ravebot.errors import Unavailable
from ravebot.images.pipelines import cage
from ravebot.store.owner import give

_WORK = "work"


@dataclass(frozen=True)
class ImageWorkshop:
    """Every method blocks."""

    folder: Path

    def prepare(self, known: Collection[str]) -> frozenset[str]:
        """Make the folder and remove what an earlier process left; returns those of the known files that are gone.

        QEMU's user must get there. Nobody else can list it, and a file's name has the digest of what is in it.
        """
        for path, mode in ((self.folder, 0o711), (self.folder / _WORK, 0o711)):
            path.mkdir(exist_ok=True, parents=path == self.folder)
            path.chmod(mode)
            give(path)
        for left in self.folder.iterdir():
            if left.is_dir() and not left.is_symlink():
                for inner in left.iterdir() if left.name == _WORK else ():
                    shutil.rmtree(inner)
            elif str(left) not in known:
                left.unlink()
        return self.gone(known)

    def gone(self, known: Collection[str]) -> frozenset[str]:
        """Those of the known files that are not there."""
        return frozenset(path for path in known if not Path(path).is_file())

    def begin(self) -> Path:
        """A new folder for one image; raises Unavailable if it can't be made."""
        if lacking := cage.missing(["qemu-img"]):
            raise Unavailable(f"{', '.join(lacking)} is not installed where ravebot runs: an operator can install it")
        try:
            return Path(tempfile.mkdtemp(dir=self.folder / _WORK))
        except OSError as error:
            raise Unavailable(
                f"{self.folder} can't be written to ({error.strerror}): an operator can mend it"
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
