"""The loop that gets each queued sandbox the image that its pipeline built, and keeps the folder of images small.

Nothing is remembered only here: each look at the database finds what is to be done, also after `kill -9`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog

from ravebot.clock import is_due
from ravebot.config.model import Config
from ravebot.errors import RavebotError, StoreError
from ravebot.gitlab.pipelines import Pipelines
from ravebot.images.pipelines.making import ImageMaker, ImageTask, booted_images, kept_images, surplus
from ravebot.images.pipelines.room import left_bytes
from ravebot.images.pipelines.workshop import ImageWorkshop, NotOurFolder
from ravebot.sandboxes import pipelineimages, settings
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import EndReason, Sandbox, SandboxState
from ravebot.sandboxes.pipelineimages import ImageKey, ImageState, PipelineImage, waits_for_image
from ravebot.store import pipeline_images, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import IMAGES, POOL

log = structlog.get_logger()

MADE_AT_ONCE, LOOKS_AT_ONCE = 4, 20
_LOOK_SECONDS, _BUG_SECONDS = 2.0, 60.0
_TIDY_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class ImagePlan:
    """What is due, and every image that a queued sandbox waits for."""

    due: tuple[ImageTask, ...]
    wanted: dict[ImageKey, PipelineImage]


@dataclass(frozen=True)
class RunningFlight:
    """Work on an image that goes on."""

    begun_with: PipelineImage
    work: asyncio.Task[None]

    @property
    def makes(self) -> bool:
        """Whether it is more than a look at GitLab."""
        return self.begun_with.state is not ImageState.WAITING

    def is_stale(self, wanted: PipelineImage | None) -> bool:
        """Whether nobody needs its image any more, or it is looked for anew."""
        if wanted is None or wanted.told != self.begun_with.told:
            return True
        return self.makes and wanted.state is ImageState.WAITING


class PipelineImageLoop:
    """Does nothing where the operator has not switched such images on."""

    def __init__(
        self,
        config: Config,
        database: Database,
        lifecycle: Lifecycle,
        pipelines: Pipelines,
        left: Callable[[Path], int] = left_bytes,
    ) -> None:
        self._left = left
        self._config = config
        self._database = database
        self._lifecycle = lifecycle
        self._pipelines = pipelines
        self._flights: dict[ImageKey, RunningFlight] = {}
        # Of each project's latest image to be made, so that no project hinders another.
        self._turns: dict[int, int] = {}
        self._tidying: asyncio.Task[None] | None = None
        self._tidied: datetime | None = None
        self._refused = self._trouble = ""

    async def run(self) -> None:
        """Run until cancelled."""
        kept = self._config.provider.pipeline_images
        if kept is None:
            return
        workshop = ImageWorkshop(self._config.pipeline_images, self._database.instance_id)
        with ThreadPoolExecutor(1, thread_name_prefix="pipeline-image") as threads:
            maker = ImageMaker(
                kept, self._config, self._database, self._pipelines, workshop, threads, self._changed, self._left,
                lambda: not self._refused,
            )  # fmt: skip
            prepared = False
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        prepared = prepared or await self._prepare(workshop)
                        await self._pass(group, maker)
                        if prepared:
                            await self._heal(maker)
                            await self._tidy(group, maker, kept.keep)
                        self._trouble = ""
                    except (StoreError, OSError, NotOurFolder) as error:
                        if str(error) != self._trouble:
                            log.warning("images from pipelines could not be read or written", error=str(error))
                        self._trouble = str(error)
                    await self._database.signals.wait(IMAGES, _LOOK_SECONDS)

    async def _prepare(self, workshop: ImageWorkshop) -> bool:
        """Remove leftovers, and forget files that are gone; whether the folder can be used."""
        known, booted = await self._database.read(lambda tx: (kept_images(tx), booted_images(tx)))
        try:
            gone = await asyncio.to_thread(workshop.prepare, known, booted)
        except (OSError, NotOurFolder) as error:
            why = str(error)
            if why != self._refused:
                log.error("provider.pipeline_images.folder can't be used", why=why)  # noqa: TRY400 - it is no bug
            self._refused = why
            return False
        self._refused = ""
        await self._database.write(lambda tx: pipeline_images.drop_files(tx, gone))
        return True

    async def _pass(self, group: asyncio.TaskGroup, maker: ImageMaker) -> None:
        if not await self._database.read(self._any_waits) and not self._flights:
            return
        plan = await self._database.write(self._plan)
        for key, flight in self._flights.items():
            if flight.is_stale(plan.wanted.get(key)) and not flight.work.cancelling():
                flight.work.cancel()
        for task in plan.due:
            if task.image.key not in self._flights and self._may_begin(task.image):
                work = group.create_task(self._fly(maker, task))
                self._flights[task.image.key] = RunningFlight(task.image, work)
                work.add_done_callback(partial(self._landed, task.image.key))

    def _may_begin(self, image: PipelineImage) -> bool:
        """A look holds up nobody, and needs no turn. Of a project one image is made at a time."""
        if image.state is ImageState.WAITING:
            return sum(not flight.makes for flight in self._flights.values()) < LOOKS_AT_ONCE
        busy = [key.ref.project_id for key, flight in self._flights.items() if flight.makes]
        project = image.ref.project_id
        if len(busy) >= MADE_AT_ONCE or project in busy:
            return False
        self._turns[project] = max(self._turns.values(), default=0) + 1
        return True

    def _landed(self, key: ImageKey, _: asyncio.Task[None]) -> None:
        del self._flights[key]
        self._database.signals.wake(IMAGES)

    async def _fly(self, maker: ImageMaker, task: ImageTask) -> None:
        try:
            await (maker.look(task) if task.image.state is ImageState.WAITING else maker.make(task))
        except RavebotError as error:
            log.warning("image from a pipeline not made", mr=str(task.image.ref), error=str(error))
        except Exception:  # a bug, which must stop neither the others nor the bot
            log.exception("image from a pipeline not made: this is a bug of ravebot's", mr=str(task.image.ref))
            await asyncio.sleep(_BUG_SECONDS)

    def _any_waits(self, tx: Transaction) -> bool:
        return any(settings.of_sandbox(tx, self._config, one).image_wish for one in _queued(tx))

    def _plan(self, tx: Transaction) -> ImagePlan:
        due: list[ImageTask] = []
        wanted: dict[ImageKey, PipelineImage] = {}
        for sandbox in _queued(tx):
            wish = settings.of_sandbox(tx, self._config, sandbox).image_wish
            if wish is None:
                continue
            known = pipeline_images.get(tx, sandbox.mr, sandbox.sha)
            image = known or pipelineimages.wanted(sandbox.mr, sandbox.sha, tx.now)
            image = pipelineimages.asked_for(image, sandbox.created_at, tx.now)
            if pipelineimages.is_late(image, wish, tx.now):
                image = pipelineimages.too_late(image, wish, tx.now)
            if image != known:
                pipeline_images.save(tx, image)
            wanted[image.key] = image
            self._tell(tx, sandbox)
            if image.state not in (ImageState.READY, ImageState.FAILED) and pipelineimages.is_due(image, tx.now):
                due.append(ImageTask(image, wish))
        due.sort(key=lambda task: turn(task.image, self._turns))
        return ImagePlan(tuple(due), wanted)

    def _changed(self, tx: Transaction, image: PipelineImage) -> None:
        sandbox = sandboxes.current(tx, image.ref)
        if sandbox and sandbox.sha == image.sha and sandbox.state is SandboxState.QUEUED:
            self._tell(tx, sandbox)

    def _tell(self, tx: Transaction, sandbox: Sandbox) -> None:
        """Say what it waits for; end it if it can't start; let it go on if it can."""
        asked = settings.of_sandbox(tx, self._config, sandbox)
        if asked.image_failed:
            why = f"it has no image to start from: {asked.image_failed}"
            self._lifecycle.happened(tx, sandbox, Happened.END_ASKED, reason=EndReason.FAILED, why=why)
        elif asked.image_waits:
            self._lifecycle.wait(tx, sandbox, asked.image_waits)
        elif waits_for_image(sandbox.wait_reason):
            self._lifecycle.wait(tx, sandbox, "")
            tx.wake(POOL)

    async def _heal(self, maker: ImageMaker) -> None:
        """Forget files that somebody removed, before a sandbox is to boot one."""
        if wanted := await self._database.read(_ready_images):
            await maker.forget_gone(wanted)

    async def _tidy(self, group: asyncio.TaskGroup, maker: ImageMaker, most_bytes: int) -> None:
        """Now and then remove the least recently used images above the limit, and forget those that somebody removed.
        It may have to wait for a conversion: nothing waits for it."""
        now = await self._database.read(lambda tx: tx.now)
        if is_due(self._tidied, _TIDY_EVERY, now) and (self._tidying is None or self._tidying.done()):
            self._tidied = now
            self._tidying = group.create_task(self._tidy_now(maker, most_bytes))

    async def _tidy_now(self, maker: ImageMaker, most_bytes: int) -> None:
        try:
            await maker.forget_gone(await self._database.read(kept_images))
            await maker.evict(lambda tx: surplus(tx, most_bytes))
        except (StoreError, OSError, NotOurFolder) as error:
            log.warning("images from pipelines were not tidied", error=str(error))


def turn(image: PipelineImage, turns: Mapping[int, int]) -> tuple[int, datetime]:
    """Who is first: with looks who has waited longest, and images are made in turn between projects."""
    mine = 0 if image.state is ImageState.WAITING else turns.get(image.ref.project_id, 0)
    return mine, image.looked_at or image.since


def _queued(tx: Transaction) -> list[Sandbox]:
    return [one for one in sandboxes.live(tx) if one.state is SandboxState.QUEUED]


def _ready_images(tx: Transaction) -> list[str]:
    """Those that queued sandboxes are to boot."""
    found = (pipeline_images.get(tx, one.mr, one.sha) for one in _queued(tx))
    return [image.image for image in found if image is not None and image.image]
