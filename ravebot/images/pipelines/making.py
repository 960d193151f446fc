"""One image, step by step: a look at GitLab, the download, the conversion. Each step ends in one transaction."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from ravebot.config.model import Config, PipelineImagesConfig
from ravebot.errors import Forbidden, NotFound, RavebotError, Refused, StoreError, Unavailable
from ravebot.gitlab.pipelines import FetchedArtifact, Pipelines
from ravebot.images.pipelines.convert import ConvertLimits, convert
from ravebot.images.pipelines.qcow2 import PipelineImageRefused
from ravebot.images.pipelines.room import Abandoned, WorkGuard, lacking_bytes, left_bytes
from ravebot.images.pipelines.workshop import ImageWorkshop, NotOurFolder
from ravebot.sandboxes import pipelineimages
from ravebot.sandboxes.model import SandboxState
from ravebot.sandboxes.pipelineimages import ImageFile, ImageState, ImageWish, PipelineImage
from ravebot.store import machines, merge_requests, pipeline_images, sandboxes
from ravebot.store.database import Database, Transaction, uninterrupted

log = structlog.get_logger()
T = TypeVar("T")

_NO_FOLDER = "the host's folder of images can't be used now: an operator finds the reason in ravebot's log"
_FETCH_SECONDS, _CONVERT_SECONDS = 1800.0, 1200.0


@dataclass(frozen=True)
class ImageTask:
    """An image that is due, and what `.rave.yml` says of it."""

    image: PipelineImage
    wish: ImageWish


@dataclass
class ImageWork:
    """Work on one image. `row`: as this work has seen or left it last."""

    row: PipelineImage


@dataclass(frozen=True)
class ImageMaker:
    """Makes images. `changed` is called in each transaction that changes a row; `threads` convert; `left`: how much may
    still be written to a folder; `usable`: whether the folder of images is."""

    kept: PipelineImagesConfig
    config: Config
    database: Database
    pipelines: Pipelines
    workshop: ImageWorkshop
    threads: ThreadPoolExecutor
    changed: Callable[[Transaction, PipelineImage], None]
    left: Callable[[Path], int] = left_bytes
    usable: Callable[[], bool] = lambda: True
    converting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self, task: ImageTask) -> None:
        """Look at GitLab whether the job has left it."""
        await self._step(ImageWork(task.image), partial(self._look, wish=task.wish))

    async def make(self, task: ImageTask) -> None:
        """Download and convert it, or take one that is kept."""
        await self._step(ImageWork(task.image), self._make)

    async def _step(self, flight: ImageWork, step: Callable[[ImageWork], Awaitable[None]]) -> None:
        try:
            await self._told(flight, step)
        except Abandoned:
            log.info("image from a pipeline is another one by now", mr=str(flight.row.ref), sha=flight.row.sha)

    async def _told(self, flight: ImageWork, step: Callable[[ImageWork], Awaitable[None]]) -> None:
        """Take it; what goes wrong is told in the row."""
        mr, sha = str(flight.row.ref), flight.row.sha
        try:
            await step(flight)
        except (NotFound, Forbidden, Refused, PipelineImageRefused) as error:
            words = self._why(flight.row, error)
            log.info("no image from the pipeline", mr=mr, sha=sha, why=words)
            end = pipelineimages.failed_twice if flight.row.state is ImageState.WAITING else pipelineimages.failed
            await self._change(flight, lambda tx, known: end(known, words, tx.now))
        except Abandoned:
            raise
        except (Unavailable, OSError) as error:
            why, pause = str(error), None
            if isinstance(error, OSError):
                why = f"the host of the sandboxes can't keep it ({error.strerror}): an operator can make room"
            else:
                pause = error.retry_after_seconds
            if lacking := lacking_bytes(error):
                await self.evict(lambda tx: least_used(tx, lacking))
            log.info("image from the pipeline not yet", mr=mr, sha=sha, error=why)
            await self._change(flight, lambda tx, known: pipelineimages.again(known, why, tx.now, pause))

    async def evict(self, choose: Callable[[Transaction], list[str]]) -> None:
        """Forget and remove the kept images that `choose` names. None is made meanwhile, as one of them could come back
        under the same name."""
        async with self.converting:
            await uninterrupted(self._evict(choose))  # otherwise a file could stay that no row knows

    async def _evict(self, choose: Callable[[Transaction], list[str]]) -> None:
        def forget(tx: Transaction) -> list[str]:
            images = choose(tx)
            pipeline_images.drop_files(tx, images)
            return images

        for image in await self.database.write(forget):
            log.info("image removed, as others were used more recently", image=image)
            await asyncio.to_thread(self.workshop.remove, image)

    def _why(self, image: PipelineImage, error: RavebotError) -> str:
        if isinstance(error, NotFound | Forbidden) and image.state is ImageState.WAITING:
            return f"ravebot may not see the jobs of its pipeline, in the project where it ran ({error})"
        if isinstance(error, NotFound):
            return f"the job {image.job_name} has left no file {image.path}, or it has expired: run the job again"
        return f"the image that the job {image.job_name} left can't be used: {error}"

    async def _look(self, flight: ImageWork, wish: ImageWish) -> None:
        look = await self.pipelines.look(flight.row.ref, flight.row.announced_job or wish.job)
        await self._change(flight, lambda tx, known: pipelineimages.after_look(known, wish, look, tx.now))

    async def _make(self, flight: ImageWork) -> None:
        if not self.usable():
            raise Unavailable(_NO_FOLDER)
        await self._remember_rightly()
        try:
            await uninterrupted(self._begun(flight))  # so that `flight` knows what is committed
            if flight.row.state is ImageState.FETCHING:
                await self._made(flight)
        except asyncio.CancelledError:
            if flight.row.state is not ImageState.READY:
                await uninterrupted(self._uncounted(flight))
            raise

    async def _begun(self, flight: ImageWork) -> None:
        await self._change(flight, self._begin)

    async def _uncounted(self, flight: ImageWork) -> None:
        """Take back that it was begun."""
        with suppress(Abandoned, StoreError):
            await self._change(flight, lambda _, known: pipelineimages.interrupted(known))

    async def _made(self, flight: ImageWork) -> None:
        """Download and convert what was begun."""
        image, stopping = flight.row, threading.Event()
        begun: list[Path] = []
        try:
            await self._ended(asyncio.to_thread(lambda: begun.append(self.workshop.begin())), stopping)
            work = begun[0]
            fetched = await self._ended(self._fetch(image, work, stopping), stopping)
            async with self.converting:
                await self._remember_rightly()
                image = await self._change(flight, partial(self._arrived, digest=fetched.sha256))
                if image.state is ImageState.CONVERTING:
                    await self._ended(self._convert(flight, work, fetched.sha256, stopping), stopping)
        finally:
            for work in begun:
                await asyncio.shield(asyncio.to_thread(self.workshop.end, work))

    async def _remember_rightly(self) -> None:
        """Nothing is made from the memory of a file that somebody removed."""
        try:
            await self.forget_gone(await self.database.read(kept_images))
        except NotOurFolder as error:
            log.warning("no image can be made", error=str(error))
            raise Unavailable(_NO_FOLDER) from error

    async def forget_gone(self, images: Collection[str]) -> None:
        """Forget those that somebody removed: they are made again. Raises NotOurFolder and OSError."""
        if gone := await asyncio.to_thread(self.workshop.gone, images):
            await self.database.write(lambda tx: pipeline_images.drop_files(tx, gone))

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

    async def _convert(self, flight: ImageWork, work: Path, digest: str, stopping: threading.Event) -> None:
        image = flight.row
        assert image.job_project_id is not None
        late = "it took more than 20 minutes to convert it: make it with `qemu-img convert -O qcow2`"
        guard = WorkGuard(self.workshop.folder, stopping, time.monotonic() + _CONVERT_SECONDS, late, self.left)
        target = self.workshop.name(image.job_project_id, digest)
        limits = ConvertLimits(max(self.config.sandbox.disk, self.config.limits.disk), self.kept.keep)
        began = time.monotonic()
        made = await asyncio.get_running_loop().run_in_executor(
            self.threads, convert, work / "fetched", image.path, target, limits, guard, self.left
        )
        log.info("image converted", image=target.name, bytes=made.bytes, seconds=round(time.monotonic() - began, 1))

        def keep(tx: Transaction, known: PipelineImage) -> PipelineImage:
            assert image.job_project_id is not None
            file = ImageFile(image.job_project_id, digest, str(target), made.bytes, made.virtual_bytes, tx.now, tx.now)
            pipeline_images.put_file(tx, file)
            return pipelineimages.ready(known, file, tx.now)

        try:
            await self._change(flight, keep)
        except (Abandoned, StoreError):  # no row knows it: until the next start nothing else would remove it
            with suppress(StoreError):
                if str(target) not in await self.database.read(booted_images):
                    await asyncio.to_thread(self.workshop.remove, str(target))
            raise

    def _begin(self, tx: Transaction, known: PipelineImage) -> PipelineImage:
        """Ready from a file that is kept: of the same job, or with the SHA-256 that the job told. But a fork's job has
        to show the file: otherwise a digest would be enough to get an image of the project's own."""
        assert known.job_project_id is not None
        assert known.job_id is not None
        digest = ""
        same = pipeline_images.of_job(tx, known.job_project_id, known.job_id, known.path)
        if same and known.announced_sha256 in ("", same.digest):
            digest = same.digest
        elif (mr := merge_requests.get(tx, known.ref)) and not mr.from_fork:
            digest = known.announced_sha256
        file = pipeline_images.file(tx, known.job_project_id, digest) if digest else None
        return pipelineimages.ready(known, file, tx.now) if file else pipelineimages.begun(known, tx.now)

    def _arrived(self, tx: Transaction, known: PipelineImage, digest: str) -> PipelineImage:
        """It is downloaded; nothing is left to do if it was converted before. Raises PipelineImageRefused if it is not
        what the job announced."""
        assert known.job_project_id is not None
        if known.announced_sha256 not in ("", digest):
            raise PipelineImageRefused(
                f"its SHA-256 is {digest}, and the job said {known.announced_sha256}: it was changed or cut off between"
                " the two"
            )
        file = pipeline_images.file(tx, known.job_project_id, digest)
        return pipelineimages.ready(known, file, tx.now) if file else pipelineimages.converting(known, digest, tx.now)

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
        self, flight: ImageWork, step: Callable[[Transaction, PipelineImage], PipelineImage]
    ) -> PipelineImage:
        """Change the row, unless it is not what this flight was begun for any more: then Abandoned is raised."""

        def write(tx: Transaction) -> PipelineImage:
            known = pipeline_images.get(tx, flight.row.ref, flight.row.sha)
            if known is None or not known.goes_on_from(flight.row):
                raise Abandoned("the row says what is to be done, if anything still is")
            fresh = step(tx, known)
            pipeline_images.save(tx, fresh)
            self.changed(tx, fresh)
            return fresh

        flight.row = await self.database.write(write)
        return flight.row


def kept_images(tx: Transaction) -> list[str]:
    """Every image that is kept."""
    return [file.image for file in pipeline_images.files(tx)]


def booted_images(tx: Transaction) -> set[str]:
    """What machines run from."""
    return {machine.image for machine in machines.live(tx)}


def surplus(tx: Transaction, most_bytes: int) -> list[str]:
    """Images above the limit, the least recently used ones first."""
    return least_used(tx, sum(file.bytes for file in pipeline_images.files(tx)) - most_bytes)


def least_used(tx: Transaction, least_bytes: int) -> list[str]:
    """Images of so many bytes, but none that a machine runs from or a queued sandbox waits to boot."""
    in_use = booted_images(tx)
    for sandbox in sandboxes.live(tx):
        image = pipeline_images.get(tx, sandbox.mr, sandbox.sha)
        if sandbox.state is SandboxState.QUEUED and image is not None and image.image:
            in_use.add(image.image)
    pipeline_images.used(tx, in_use)
    chosen = []
    for file in pipeline_images.files(tx):
        if least_bytes <= 0:
            break
        if file.image not in in_use:
            chosen.append(file.image)
            least_bytes -= file.bytes
    return chosen
