"""The last results of `ravebot image check`, in the state folder, so that the doctor can show them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

_FILE = "image-checks.json"
_KEPT = 20
_LONGEST_BYTES = 1024 * 1024


class Record(BaseModel):
    """What a check of one file found: the points that failed, and those to look at."""

    model_config = ConfigDict(frozen=True)

    image: Path
    size_bytes: int
    modified_ns: int
    at: datetime
    failed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def is_of(self, facts: os.stat_result) -> bool:
        """Whether the file is still the one that was checked."""
        return (self.size_bytes, self.modified_ns) == (facts.st_size, facts.st_mtime_ns)


_RECORDS = TypeAdapter(tuple[Record, ...])


def keep(state_dir: Path, image: Path, failed: Sequence[str], warnings: Sequence[str]) -> bool:
    """Store a result; False if it can't be stored, because the state folder does not exist yet or is not ours."""
    path = image.resolve()
    try:
        facts = path.stat()
        record = Record(
            image=path,
            size_bytes=facts.st_size,
            modified_ns=facts.st_mtime_ns,
            at=datetime.now(UTC),
            failed=tuple(failed),
            warnings=tuple(warnings),
        )
        others = [one for one in _read(state_dir) if one.image != path]
        with tempfile.NamedTemporaryFile(dir=state_dir, prefix=f".{_FILE}.", delete=False) as file:
            file.write(_RECORDS.dump_json((*others[1 - _KEPT :], record), indent=2))
        Path(file.name).replace(state_dir / _FILE)
    except OSError:
        return False
    return True


def latest(state_dir: Path, image: Path) -> Record | None:
    """The last result of that file's path, if there is one."""
    path = image.resolve()
    return next((one for one in _read(state_dir) if one.image == path), None)


def _read(state_dir: Path) -> tuple[Record, ...]:
    with suppress(OSError, ValidationError), (state_dir / _FILE).open("rb") as file:
        return _RECORDS.validate_json(file.read(_LONGEST_BYTES))
    return ()
