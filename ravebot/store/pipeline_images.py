"""Images that pipelines built: which one a commit's sandbox boots, and the files that are kept."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import timedelta

from ravebot.clock import to_us
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.sandboxes.pipelineimages import ImageFile, ImageState, PipelineImage
from ravebot.store.database import Transaction
from ravebot.store.rows import dump, load


def get(tx: Transaction, ref: MergeRequestRef, sha: str) -> PipelineImage | None:
    row = tx.one(
        "SELECT * FROM pipeline_images WHERE project_id = ? AND iid = ? AND sha = ?", (ref.project_id, ref.iid, sha)
    )
    return _image(row) if row else None


def save(tx: Transaction, image: PipelineImage) -> None:
    """Write the whole row; `image` must have been read in this same transaction."""
    key = {"project_id": image.ref.project_id, "iid": image.ref.iid}
    tx.upsert("pipeline_images", ("project_id", "iid", "sha"), dump(image, without=("ref",)) | key)


def of_job(tx: Transaction, project_id: int, job_id: int, path: str) -> PipelineImage | None:
    """One that is ready, from that very file: what a job left does not change."""
    row = tx.one(
        "SELECT * FROM pipeline_images WHERE job_project_id = ? AND job_id = ? AND path = ? AND state = 'ready'",
        (project_id, job_id, path),
    )
    return _image(row) if row else None


def file(tx: Transaction, project_id: int, digest: str) -> ImageFile | None:
    row = tx.one("SELECT * FROM pipeline_image_files WHERE project_id = ? AND digest = ?", (project_id, digest))
    return load(ImageFile, row) if row else None


def files(tx: Transaction) -> tuple[ImageFile, ...]:
    """Every file that is kept, the least recently used one first."""
    return tuple(load(ImageFile, row) for row in tx.all("SELECT * FROM pipeline_image_files ORDER BY used_at, made_at"))


def put_file(tx: Transaction, made: ImageFile) -> None:
    tx.upsert("pipeline_image_files", ("project_id", "digest"), dump(made))


def used(tx: Transaction, images: Collection[str]) -> None:
    """These are in use now."""
    for image in images:
        tx.execute("UPDATE pipeline_image_files SET used_at = ? WHERE image = ?", (tx.now_us, image))


def drop_files(tx: Transaction, images: Iterable[str]) -> None:
    """The files go: what would boot one needs it made again."""
    for image in images:
        tx.execute("DELETE FROM pipeline_image_files WHERE image = ?", (image,))
        for row in tx.all("SELECT * FROM pipeline_images WHERE image = ?", (image,)):
            bare = replace(_image(row), state=ImageState.WAITING, image="", since=tx.now, next_look_at=None)
            save(tx, bare)


def forget(tx: Transaction, older_than: timedelta) -> int:
    """Delete rows of that age, unless they are of an open merge request's head or of a live sandbox."""
    return tx.changed(
        "DELETE FROM pipeline_images WHERE changed_at < ?"
        " AND NOT EXISTS (SELECT 1 FROM merge_requests m WHERE m.project_id = pipeline_images.project_id"
        " AND m.head_sha = pipeline_images.sha AND m.state NOT IN ('closed', 'merged'))"
        " AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.project_id = pipeline_images.project_id"
        " AND s.iid = pipeline_images.iid AND s.state <> 'ended')",
        (to_us(tx.now - older_than),),
    )


def _image(row: sqlite3.Row) -> PipelineImage:
    return load(PipelineImage, row, ref=MergeRequestRef(row["project_id"], row["iid"]))
