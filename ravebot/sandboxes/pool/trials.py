"""When a held image is tried again: one machine is built from it, and if that comes up, the hold ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from ravebot.backoff import Backoff
from ravebot.clock import is_due
from ravebot.config.model import Config
from ravebot.sandboxes.model import Machine, MachineState
from ravebot.store import images
from ravebot.store.database import Transaction
from ravebot.store.images import ImageRecord

_PAUSES = Backoff.growing(600.0, 6 * 3600.0)
_SHORTEST_PAUSE = timedelta(seconds=20)
_SETTLED_SECONDS = 10.0
"""How long nobody wrote to the files: an image that is being copied into place changes all the time."""


def fingerprints(config: Config, now: datetime) -> Mapping[str, str]:
    """The fingerprint of each image, by its path. Blocks."""
    images = {config.provider.image, *config.provider.images.values()}
    return {str(image): fingerprint(config, now, image) for image in images}


def fingerprint(config: Config, now: datetime, image: Path | None = None) -> str:
    """What a machine is built from: another text when the configuration or one of the files has changed.

    `image`: the one that is asked for, if not the usual. Empty while a file is being written. Blocks.
    """
    sandbox, provider = config.sandbox, config.provider
    parts = [provider.model_dump_json(), str((sandbox.memory, sandbox.vcpus, sandbox.disk))]
    usual = (provider.image, provider.kernel, provider.initrd)
    for path in usual if image in (None, provider.image) else (image,):
        if path is None:
            continue
        try:
            found = path.stat()
        except OSError as error:
            parts.append(f"{path} {error.strerror}")
            continue
        if 0 <= now.timestamp() - found.st_mtime < _SETTLED_SECONDS:
            return ""
        parts.append(f"{path} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_mode}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def may_try(record: ImageRecord, built_from: str, machines: Iterable[Machine], now: datetime) -> bool:
    """Whether a machine may be built from a held image: what it is built from has changed, or a pause is over."""
    if any(machine.image == record.image and machine.state is MachineState.BUILDING for machine in machines):
        return False  # one at a time
    changed = built_from not in ("", record.built_from)
    pause = _SHORTEST_PAUSE if changed else timedelta(seconds=_PAUSES.after(record.trials + 1))
    return is_due(record.tried_at, pause, now)


def begun(tx: Transaction, record: ImageRecord, built_from: str) -> None:
    """Record that a machine is built from the image; if that is held, as a trial."""
    built_from = built_from or record.built_from
    fresh = replace(record, built_from=built_from)
    if record.held:
        trials = record.trials + 1 if record.built_from == built_from else 0
        fresh = replace(fresh, tried_at=tx.now, trials=trials)
    if fresh != record:
        images.save(tx, fresh)
