"""How builds from an image go: failures in a row, and the hold that only a person lifts."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.store.database import Transaction


@dataclass(frozen=True)
class ImageRecord:
    """`held`: why nothing is built from it any more; empty while builds go on."""

    image: str
    failures: int = 0
    held: str = ""


def get(tx: Transaction, image: str) -> ImageRecord:
    row = tx.one("SELECT * FROM images WHERE image = ?", (image,))
    return ImageRecord(row["image"], row["failures"], row["held"]) if row else ImageRecord(image)


def save(tx: Transaction, record: ImageRecord) -> None:
    tx.upsert("images", ("image",), {"image": record.image, "failures": record.failures, "held": record.held})
