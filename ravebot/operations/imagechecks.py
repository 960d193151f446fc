"""The last results of `ravebot image check`, in the state folder, so that the doctor can show them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ravebot.config.model import Config

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
    settings: str  # those that a result depends on
    failed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def changed(self, config: Config) -> str:
        """What is not as it was when the image was checked; empty if everything is. Raises OSError."""
        facts = config.provider.image.stat()
        if (self.size_bytes, self.modified_ns) != (facts.st_size, facts.st_mtime_ns):
            return "the file"
        return "" if self.settings == _settings(config) else "the configuration"


_RECORDS = TypeAdapter(tuple[Record, ...])


def _settings(config: Config) -> str:
    sandbox, provider = config.sandbox, config.provider
    boot = f"{provider.kernel} {provider.initrd} {provider.cmdline}"
    return f"{sandbox.user} {sandbox.web_port} {sandbox.disk} {provider.network} {boot}"


def keep(config: Config, failed: Sequence[str], warnings: Sequence[str]) -> bool:
    """Store the result of an image; False if the state folder does not exist yet or is not ours."""
    state_dir, path = config.state_dir, config.provider.image.resolve()
    try:
        facts = path.stat()
        record = Record(
            image=path,
            size_bytes=facts.st_size,
            modified_ns=facts.st_mtime_ns,
            at=datetime.now(UTC),
            settings=_settings(config),
            failed=tuple(failed),
            warnings=tuple(warnings),
        )
        others = [one for one in _read(state_dir) if one.image != path]
        with tempfile.NamedTemporaryFile(dir=state_dir, prefix=f".{_FILE}.", delete=False) as file:
            file.write(_RECORDS.dump_json((*others[1 - _KEPT :], record), indent=2))
            os.fchmod(file.fileno(), 0o644)  # the bot's user reads it, too
        Path(file.name).replace(state_dir / _FILE)
    except OSError:
        return False
    return True


def latest(config: Config) -> Record | None:
    """The last result of the configured image's path, if there is one. Raises OSError if the file can't be read."""
    path = config.provider.image.resolve()
    return next((one for one in _read(config.state_dir) if one.image == path), None)


def _read(state_dir: Path) -> tuple[Record, ...]:
    with suppress(FileNotFoundError, ValidationError), (state_dir / _FILE).open("rb") as file:
        return _RECORDS.validate_json(file.read(_LONGEST_BYTES))
    return ()
