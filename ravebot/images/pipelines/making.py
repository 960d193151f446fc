"""One image, step by step: a look at GitLab, the download, the conversion. Each step ends in one transaction."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from ravebot.config.model import Config, PipelineImagesConfig
from ravebot.errors import Forbidden, NotFound, RavebotError, Refused, Unavailable
from ravebot.gitlab.pipelines import FetchedArtifact, Pipelines
from ravebot.images.pipelines.convert import ConvertLimits, convert
from ravebot.images.pipelines.qcow2 import PipelineImageRefused
from ravebot.images.pipelines.room import Abandoned, WorkGuard, left_bytes
from ravebot.images.pipelines.workshop import ImageWorkshop
from ravebot.sandboxes import pipelineimages
from ravebot.sandboxes.pipelineimages import ImageFile, ImageKey, ImageState, ImageWish, PipelineImage
from ravebot.store import merge_requests, pipeline_images
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()
T = TypeVar("T")

_FETCH_SECONDS, _CONVERT_SECONDS = 1800.0, 1200.0


@dataclass(frozen=True)
class ImageTask:
    """An image that is due, and what `.rave.yml` says of it."""

    image: PipelineImage
    wish: ImageWish


@dataclass(frozen=True)
class ImageMaker:
    """Makes images. `changed` is called in each transaction that changes a row; `threads` convert; `left`: how much may
    still be written to a folder."""

    kept: PipelineImagesConfig
    config: Config
    database: Database
    pipelines: Pipelines
    workshop: ImageWorkshop
    threads: ThreadPoolExecutor
    changed: Callable[[Transaction, PipelineImage], None]
    left: Callable[[Path], int] = left_bytes
    converting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def work(self, task: ImageTask) -> None:
        """Take every step that can be taken now."""
        key, image = task.image.key, task.image
        try:
            if image.state is ImageState.WAITING:
                look = await self.pipelines.look(image.ref, image.announced_job or task.wish.job)
                image = await self._change(
                    key, lambda known, tx: pipelineimages.after_look(known, task.wish, look, tx.now)
                )
            if image.state in (ImageState.FETCHING, ImageState.CONVERTING):
                await self._make(image)
        except Abandoned:
            pass  # the row says what is to be done, if it still is
        except (NotFound, Forbidden, Refused, PipelineImageRefused) as error:
            why = self._why(image, error)
            log.info("no image from the pipeline", mr=str(key.ref), sha=key.sha, why=why)
            await self._change(key, lambda known, tx: pipelineimages.failed(known, why, tx.now))
        except (Unavailable, OSError) as error:
            why, pause = str(error), None
            if isinstance(error, OSError):
                why = f"the host of the sandboxes can't keep it ({error.strerror}): an operator can make room"
            else:
                pause = error.retry_after_seconds
            log.info("image from the pipeline not yet", mr=str(key.ref), sha=key.sha, error=why)
            await self._change(key, lambda known, tx: pipelineimages.again(known, why, tx.now, pause))

    def _why(self, image: PipelineImage, error: RavebotError) -> str:
        if isinstance(error, NotFound | Forbidden) and image.state is ImageState.WAITING:
            return f"ravebot may not see the jobs of its pipeline, in the project where it ran ({error})"
        if isinstance(error, NotFound):
            return f"the job {image.job_name} has left no file {image.path}, or it has expired: run the job again"
        return f"the image that the job {image.job_name} left can't be used: {error}"

    async def _make(self, image: PipelineImage) -> None:
        if await self._change_with(image.key, self._reuse) is not None:
            return
        stopping = threading.Event()
        work = await asyncio.to_thread(self.workshop.begin)
        try:
            fetched = await self._ended(self._fetch(image, work, stopping), stopping)
            async with self.converting:
                if await self._change_with(image.key, partial(self._arrived, digest=fetched.sha256)) is None:
                    await self._ended(self._convert(image, work, fetched.sha256, stopping), stopping)
        finally:
            await asyncio.shield(asyncio.to_thread(self.workshop.end, work))

    async def _fetch(self, image: PipelineImage, work: Path, stopping: threading.Event) -> FetchedArtifact:
        assert image.job_project_id is not None
        assert image.job_id is not None
        late = "GitLab took more than half an hour to send it: make it smaller"
        guard = WorkGuard(self.workshop.folder, stopping, time.monotonic() + _FETCH_SECONDS, late, self.left)

        def look(to_come: int) -> None:
            guard()
            guard.needs(to_come)

        began = time.monotonic()
        target = work / "fetched"
        fetched = await self.pipelines.fetch(
            image.job_project_id, image.job_id, image.path, target, self.kept.largest, look
        )
        log.info("image fetched", job=image.job_id, bytes=fetched.bytes, seconds=round(time.monotonic() - began, 1))
        return fetched

    async def _convert(self, image: PipelineImage, work: Path, digest: str, stopping: threading.Event) -> None:
        assert image.job_project_id is not None
        late = "it took more than 20 minutes to convert it: make it with `qemu-img convert -O qcow2`"
        guard = WorkGuard(self.workshop.folder, stopping, time.monotonic() + _CONVERT_SECONDS, late, self.left)
        target = self.workshop.name(image.job_project_id, digest)
        limits = ConvertLimits(max(self.config.sandbox.disk, self.config.limits.disk), self.kept.keep)
        began = time.monotonic()
        made = await asyncio.get_running_loop().run_in_executor(
            self.threads, convert, work / "fetched", image.path, target, limits, guard
        )
        log.info("image converted", image=target.name, bytes=made.bytes, seconds=round(time.monotonic() - began, 1))

        def keep(tx: Transaction, known: PipelineImage) -> PipelineImage:
            assert image.job_project_id is not None
            file = ImageFile(image.job_project_id, digest, str(target), made.bytes, made.virtual_bytes, tx.now, tx.now)
            pipeline_images.put_file(tx, file)
            return pipelineimages.ready(known, file, tx.now)

        await self._change_with(image.key, keep)

    def _reuse(self, tx: Transaction, known: PipelineImage) -> PipelineImage | None:
        """From a file that is kept: of the same job, or with the SHA-256 that the job told. But a fork's job has to
        show the file: otherwise a digest would be enough to get an image of the project's own."""
        if known.job_project_id is None or known.job_id is None:
            return None
        digest = ""
        if same := pipeline_images.of_job(tx, known.job_project_id, known.job_id, known.path):
            digest = same.digest
        elif (mr := merge_requests.get(tx, known.ref)) and not mr.from_fork:
            digest = known.announced_sha256
        file = pipeline_images.file(tx, known.job_project_id, digest) if digest else None
        return pipelineimages.ready(known, file, tx.now) if file else None

    def _arrived(self, tx: Transaction, known: PipelineImage, digest: str) -> PipelineImage | None:
        """It is downloaded; nothing is left to do if it was converted before. Raises PipelineImageRefused if it is not
        what the job announced."""
        assert known.job_project_id is not None
        if known.announced_sha256 not in ("", digest):
            raise PipelineImageRefused(
                f"its SHA-256 is {digest}, and the job said {known.announced_sha256}: it was changed or cut off between"
                " the two"
            )
        file = pipeline_images.file(tx, known.job_project_id, digest)
        if file:
            return pipelineimages.ready(known, file, tx.now)
        self._save(tx, pipelineimages.converting(known, digest, tx.now))
        return None

    async def _ended(self, work: Awaitable[T], stopping: threading.Event) -> T:
        """Its result. When cancelled, its thread is told, and waited for."""
        running = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stopping.set()
            await asyncio.wait({running})
            if not running.cancelled():
                running.exception()
            raise

    async def _change(
        self, key: ImageKey, step: Callable[[PipelineImage, Transaction], PipelineImage]
    ) -> PipelineImage:
        changed = await self._change_with(key, lambda tx, known: step(known, tx))
        if changed is None:
            raise Abandoned("its row is gone")
        return changed

    async def _change_with(
        self, key: ImageKey, step: Callable[[Transaction, PipelineImage], PipelineImage | None]
    ) -> PipelineImage | None:
        """Change the row as it is now; nothing is changed where `step` returns nothing."""

        def write(tx: Transaction) -> PipelineImage | None:
            known = pipeline_images.get(tx, key.ref, key.sha)
            fresh = step(tx, known) if known else None
            if fresh is not None:
                self._save(tx, fresh)
            return fresh

        return await self.database.write(write)

    def _save(self, tx: Transaction, image: PipelineImage) -> None:
        pipeline_images.save(tx, image)
        self.changed(tx, image)
