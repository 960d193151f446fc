"""How many builds from an image failed in a row, and whether it is held until a person says `retry`."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.store.database import Transaction


@dataclass(frozen=True)
class ImageRecord:
    """`held`: why no machine is built from the image; empty when it is not held."""

    image: str
    failures: int = 0
    held: str = ""


def get(tx: Transaction, image: str) -> ImageRecord:
    row = tx.one("SELECT * FROM images WHERE image = ?", (image,))
    return ImageRecord(row["image"], row["failures"], row["held"]) if row else ImageRecord(image)


def save(tx: Transaction, record: ImageRecord) -> None:
    tx.upsert("images", ("image",), {"image": record.image, "failures": record.failures, "held": record.held})
