"""What happens to an image of a pipeline while it is made: news from jobs, needs of others, a full disk, removals."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.images.pipelines.loop import RunningFlight, turn
from ravebot.images.pipelines.making import ImageMaker, ImageTask, least_used, surplus
from ravebot.images.pipelines.workshop import ImageWorkshop
from ravebot.sandboxes import pipelineimages, settings
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.sandboxes.pipelineimages import ImageState, PipelineImage
from ravebot.store import pipeline_images
from ravebot.store.database import Transaction
from tests.support.gitlab import MergeRequest
from tests.support.image_place import Place, a_place, an_image, digest, needs_qemu_img
from tests.support.records import BY_ALICE, NOON

LATER = NOON + timedelta(minutes=1)
pytestmark = [
    pytest.mark.integration,
    needs_qemu_img,
]


@dataclass
class Yards:
    """A place without its loop: steps are taken one by one."""

    place: Place
    maker: ImageMaker
    threads: ThreadPoolExecutor

    async def task(self, mr: MergeRequest) -> ImageTask:
        """As the loop finds it."""
        place, sandbox = self.place, await self.place.latest(mr)

        def plan(tx: Transaction) -> ImageTask:
            wish = settings.of_sandbox(tx, place.yard.config, sandbox).image_wish
            assert wish
            image = pipeline_images.get(tx, sandbox.mr, sandbox.sha)
            image = image or pipelineimages.wanted(sandbox.mr, sandbox.sha, tx.now)
            pipeline_images.save(tx, image)
            return ImageTask(image, wish)

        return await place.yard.write(plan)

    async def row(self, mr: MergeRequest) -> PipelineImage:
        ref = self.place.known(mr).ref
        found = await self.place.yard.read(lambda tx: pipeline_images.get(tx, ref, mr.sha))
        assert found
        return found

    async def makes(self, mr: MergeRequest) -> asyncio.Task[None]:
        """Found at GitLab, and begun."""
        await self.maker.look(await self.task(mr))
        return asyncio.create_task(self.maker.make(await self.task(mr)))

    async def until(self, so: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(10):
            while not await so():
                await asyncio.sleep(0.02)

    async def is_at(self, mr: MergeRequest, state: ImageState) -> None:
        async def so() -> bool:
            return (await self.row(mr)).state is state

        await self.until(so)


@pytest.fixture
async def yards(tmp_path: Path) -> AsyncIterator[Yards]:
    async with a_place(tmp_path) as place:
        await place.stop()
        place.loop = None
        config, database = place.yard.config, place.yard.database
        kept = config.provider.pipeline_images
        assert kept
        shop = ImageWorkshop(place.folder, database.instance_id)
        shop.prepare(())
        with ThreadPoolExecutor(1) as threads:
            maker = ImageMaker(kept, config, database, place.gitlab.pipelines, shop, threads, lambda *_: None)
            yield Yards(place, maker, threads)


async def test_what_is_announced_during_the_conversion_is_not_ready_with_the_old_file(
    yards: Yards, tmp_path: Path
) -> None:
    place, busy = yards.place, threading.Event()
    mr, old, new = await place.open(), an_image(tmp_path), an_image(tmp_path)
    job = place.builds(mr, old)
    yards.threads.submit(busy.wait)
    flight = await yards.makes(mr)
    await yards.is_at(mr, ImageState.CONVERTING)
    place.server.retry_job(job)
    assert await place.announce(mr, digest(new)) == ""
    busy.set()
    await flight
    row = await yards.row(mr)
    assert (row.state, row.digest, row.announced_sha256) == (ImageState.WAITING, "", digest(new))
    assert place.kept() == []  # what was converted in vain


@pytest.mark.parametrize("told", [{"path": "image/other.qcow2"}, {"sha256": "e" * 64}])
async def test_what_is_announced_during_the_download_is_looked_for_and_fails_nothing(
    yards: Yards, tmp_path: Path, told: dict[str, str]
) -> None:
    place = yards.place
    mr = await place.open()
    place.builds(mr, an_image(tmp_path))
    async with yards.maker.converting:  # another one is converted
        flight = await yards.makes(mr)
        await yards.is_at(mr, ImageState.FETCHING)
        assert await place.announce(mr, **told) == ""
    await flight
    row = await yards.row(mr)
    assert (row.state, row.job_id) == (ImageState.WAITING, None)
    assert place.kept() == []


async def test_an_announcement_prolongs_no_waiting(yards: Yards, tmp_path: Path) -> None:
    place = yards.place
    mr = await place.open()
    place.builds(mr, an_image(tmp_path))
    await yards.maker.look(await yards.task(mr))
    since = (await yards.row(mr)).since
    place.yard.pass_by(seconds=590)
    assert await place.announce(mr, path="image/other.qcow2") == ""
    row = await yards.row(mr)
    assert (row.state, row.since) == (ImageState.WAITING, since)


async def test_an_image_that_is_made_again_while_others_are_removed_stays(yards: Yards, tmp_path: Path) -> None:
    place, image = yards.place, an_image(tmp_path)
    first, second = await place.open(), await place.open()
    place.builds(first, image)
    await (await yards.makes(first))
    known = place.known(first)
    await place.yard.write(lambda tx: place.yard.intents.stop(tx, known, BY_ALICE))
    place.builds(second, image)
    async with yards.maker.converting:
        removal = asyncio.create_task(yards.maker.evict(lambda tx: surplus(tx, 0)))
        await asyncio.sleep(0.05)
        assert len(place.kept()) == 1
    await asyncio.gather(removal, await yards.makes(second))
    row = await yards.row(second)
    assert (row.state, Path(row.image).exists()) == (ImageState.READY, True)


async def test_a_removal_that_is_cancelled_midway_leaves_no_file_that_no_row_knows(
    yards: Yards, tmp_path: Path
) -> None:
    place, chooses, goes_on = yards.place, threading.Event(), threading.Event()
    mr = await place.open()
    place.builds(mr, an_image(tmp_path))
    await (await yards.makes(mr))
    known = place.known(mr)
    await place.yard.write(lambda tx: place.yard.intents.stop(tx, known, BY_ALICE))

    def choose(tx: Transaction) -> list[str]:
        chooses.set()
        goes_on.wait(5)
        return surplus(tx, 0)

    removal = asyncio.create_task(yards.maker.evict(choose))
    await asyncio.to_thread(chooses.wait, 5)
    removal.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with suppress(asyncio.CancelledError):
        await removal
    assert (await place.yard.read(pipeline_images.files), place.kept()) == ((), [])


async def test_another_image_for_a_sandbox_that_had_one_gets_the_whole_time(yards: Yards, tmp_path: Path) -> None:
    place = yards.place
    mr = await place.open()
    place.builds(mr, an_image(tmp_path))
    await (await yards.makes(mr))
    place.yard.pass_by(seconds=3600)
    assert await place.announce(mr, path="image/other.qcow2") == ""
    row, task = await yards.row(mr), await yards.task(mr)
    assert row.state is ImageState.WAITING
    assert not pipelineimages.is_late(pipelineimages.again(row, "x", row.since, 3600), task.wish, row.since)
    assert row.since == await place.yard.read(lambda tx: tx.now)


async def test_the_failure_of_an_earlier_sandbox_is_not_that_of_the_next(yards: Yards) -> None:
    place, config = yards.place, yards.place.yard.config
    mr = await place.open()
    place.server.finish_job(place.server.run_pipeline(mr).job("build"), "failed")
    for _ in range(2):
        await yards.maker.look(await yards.task(mr))
    sandbox = await place.latest(mr)
    place.yard.pass_by(seconds=3600)
    following = replace(sandbox, created_at=sandbox.created_at + timedelta(hours=1))
    asked, next_asked = await place.yard.read(
        lambda tx: (settings.of_sandbox(tx, config, sandbox), settings.of_sandbox(tx, config, following))
    )
    assert asked.image_failed.startswith("the job build, which builds the image, ended as failed")
    assert (next_asked.image_failed, next_asked.image_waits) == ("", pipelineimages.NOT_ASKED_YET)


async def test_images_that_nobody_uses_go_first_when_the_disk_is_short(yards: Yards, tmp_path: Path) -> None:
    place = yards.place
    first, second = await place.open(), await place.open()
    place.builds(first, an_image(tmp_path))
    await (await yards.makes(first))
    assert await place.yard.write(lambda tx: least_used(tx, 1)) == []  # a queued sandbox waits to boot it
    known = place.known(first)
    await place.yard.write(lambda tx: place.yard.intents.stop(tx, known, BY_ALICE))
    place.builds(second, an_image(tmp_path))
    yards.maker = replace(yards.maker, left=lambda _: -1)
    await (await yards.makes(second))
    assert "short of disk" in (await yards.row(second)).words
    assert place.kept() == []


async def test_downloads_that_hang_make_nobody_late(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        mr, gate = await place.open(), threading.Event()
        downloads = place.gitlab.pipelines.downloads
        for _ in range(downloads._max_workers):
            downloads.submit(gate.wait)
        place.builds(mr, an_image(tmp_path))
        await place.waits_for(mr, "its image is downloaded: from the job build")
        place.yard.pass_by(seconds=7200)
        await place.waits_for(mr, "its image is downloaded: from the job build")
        gate.set()
        await place.is_in(mr, "ready")


async def test_an_image_that_somebody_removed_is_made_again_for_the_next_sandbox(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        image = an_image(tmp_path)
        first, second = await place.open(), await place.open()
        place.builds(first, image)
        await place.is_in(first, "ready")
        await place.ends(first)
        place.started_from()[0].unlink()
        place.builds(second, image)
        await place.is_in(second, "ready")
        assert [path.exists() for path in place.started_from()] == [True, True]


async def test_retry_lifts_the_hold_of_the_sandbox_s_own_image(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        image = an_image(tmp_path)
        path = str(place.folder / f"{place.project.id}-{digest(image)}.qcow2")
        place.provider.broken.add(path)
        mr = await place.open()
        place.builds(mr, image)
        await place.is_in(mr, "ended")
        place.provider.broken.clear()
        place.yard.pass_by(seconds=1)
        known = await place.yard.mr(place.known(mr))
        assert (await place.yard.write(lambda tx: place.yard.intents.retry(tx, known, BY_ALICE))).accepted
        await place.is_in(mr, "ready")
        assert str(place.started_from()[-1]) == path


async def test_what_a_begun_work_leaves_goes_when_it_is_cancelled_at_its_very_beginning(
    yards: Yards, tmp_path: Path
) -> None:
    place, begins, goes_on = yards.place, threading.Event(), threading.Event()

    class Slow(ImageWorkshop):
        def begin(self) -> Path:
            begins.set()
            goes_on.wait(5)
            return super().begin()

    mr = await place.open()
    place.builds(mr, an_image(tmp_path))
    yards.maker = replace(yards.maker, workshop=Slow(place.folder, yards.maker.workshop.owner))
    work = await yards.makes(mr)
    await asyncio.to_thread(begins.wait, 5)
    work.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with suppress(asyncio.CancelledError):
        await work
    assert list((place.folder / "work").iterdir()) == []


async def test_an_image_of_the_same_job_is_not_taken_where_another_digest_was_announced(
    yards: Yards, tmp_path: Path
) -> None:
    place = yards.place
    first, second = await place.open(), await place.open()
    place.builds(first, an_image(tmp_path))
    await (await yards.makes(first))
    ready, ref = await yards.row(first), place.known(second).ref

    def told(tx: Transaction) -> None:  # as for two merge requests of one branch, whose pipeline is the same
        bare = pipelineimages.fetching(pipelineimages.wanted(ref, second.sha, tx.now), tx.now)
        found = replace(bare, job_project_id=ready.job_project_id, job_id=ready.job_id, path=ready.path)
        pipeline_images.save(tx, replace(found, announced_sha256="0" * 64))

    await place.yard.write(told)
    await yards.maker.make(await yards.task(second))
    row = await yards.row(second)
    assert (row.state, row.words.partition(", and")[0]) == (
        ImageState.FAILED,
        f"the image that the job  left can't be used: its SHA-256 is {ready.digest}",
    )


def test_looks_take_their_turns_by_time_so_that_one_project_s_many_hinder_no_other_s() -> None:
    many, made = MergeRequestRef(1, 1), MergeRequestRef(2, 1)
    earlier = replace(pipelineimages.wanted(made, "b" * 40, NOON), looked_at=NOON)
    later = replace(pipelineimages.wanted(many, "a" * 40, NOON), looked_at=NOON + timedelta(seconds=1))
    assert sorted((later, earlier), key=lambda one: turn(one, {2: 5})) == [earlier, later]
    making = [pipelineimages.fetching(one, NOON) for one in (earlier, later)]
    assert sorted(making, key=lambda one: turn(one, {2: 5})) == [making[1], making[0]]


async def test_work_for_an_earlier_sandbox_ends_when_the_image_is_looked_for_anew_and_a_look_goes_on() -> None:
    looked = pipelineimages.wanted(MergeRequestRef(1, 1), "a" * 40, NOON)
    made = pipelineimages.fetching(looked, NOON)
    async with asyncio.TaskGroup() as group:
        work = group.create_task(asyncio.sleep(0))
        assert RunningFlight(made, work).is_stale(pipelineimages.asked_for(made, LATER, LATER))
        assert not RunningFlight(made, work).is_stale(pipelineimages.converting(made, "b" * 64, NOON))
        assert not RunningFlight(looked, work).is_stale(looked)
        assert RunningFlight(looked, work).is_stale(None)


async def test_an_image_whose_making_is_stopped_in_order_many_times_is_not_given_up(
    yards: Yards, tmp_path: Path
) -> None:
    place = yards.place
    mr = await place.open()
    place.builds(mr, an_image(tmp_path))
    await yards.maker.look(await yards.task(mr))

    async def begun() -> bool:
        return (await yards.row(mr)).begun == 1

    for _ in range(6):
        async with yards.maker.converting:  # another one is converted
            flight = asyncio.create_task(yards.maker.make(await yards.task(mr)))
            await yards.until(begun)
            flight.cancel()
            with suppress(asyncio.CancelledError):
                await flight
        assert ((await yards.row(mr)).state, (await yards.row(mr)).begun) == (ImageState.FETCHING, 0)
    await yards.maker.make(await yards.task(mr))
    assert (await yards.row(mr)).state is ImageState.READY


async def test_a_making_that_is_stopped_just_as_it_begins_is_no_try_either(yards: Yards, tmp_path: Path) -> None:
    place = yards.place
    mr = await place.open()
    place.builds(mr, an_image(tmp_path))
    await yards.maker.look(await yards.task(mr))
    loop, flights = asyncio.get_running_loop(), list[asyncio.Task[None]]()

    def stop(_tx: Transaction, image: PipelineImage) -> None:
        if image.begun:  # in the transaction, which commits all the same
            loop.call_soon_threadsafe(flights[0].cancel)

    maker = replace(yards.maker, changed=stop)
    flights.append(asyncio.create_task(maker.make(await yards.task(mr))))
    with pytest.raises(asyncio.CancelledError):
        await flights[0]
    assert ((await yards.row(mr)).state, (await yards.row(mr)).begun) == (ImageState.FETCHING, 0)
