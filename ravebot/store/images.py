"""How many builds from an image failed in a row, and whether it is held."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from ravebot.store.database import Transaction
from ravebot.store.rows import dump, load


@dataclass(frozen=True)
class ImageRecord:
    """`held`: why no machine is built from the image, for operators; empty when it is not held.

    `told`: the same for everybody else. `built_from`: the fingerprint of what the latest machine was built from.
    `tried_at`: when the hold or its latest trial began; `trials`: how often it was tried again with that fingerprint.
    """

    image: str
    failures: int = 0
    held: str = ""
    told: str = ""
    built_from: str = ""
    tried_at: datetime | None = None
    trials: int = 0

    @property
    def wait_reason(self) -> str:
        """Why sandboxes wait, for everybody; empty when it is not held. Older versions stored no `told`."""
        return f"no machines are built: {self.told or 'the last builds failed'}" if self.held else ""


def get(tx: Transaction, image: str) -> ImageRecord:
    row = tx.one("SELECT * FROM images WHERE image = ?", (image,))
    return load(ImageRecord, row) if row else ImageRecord(image)


def not_proved(tx: Transaction, image: str, created_at: datetime) -> None:
    """A machine that was built then is taken down before it came up or failed: if it was a trial, the next is due."""
    record = get(tx, image)
    if record.held and record.tried_at is not None and record.tried_at <= created_at:
        save(tx, replace(record, tried_at=None, trials=max(0, record.trials - 1)))


def save(tx: Transaction, record: ImageRecord) -> None:
    tx.upsert("images", ("image",), dump(record))
