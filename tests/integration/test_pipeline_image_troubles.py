"""What is killed, broken, full or gone while an image is made costs its own sandbox time, and nobody else anything."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ravebot.images.pipelines.loop import PipelineImageLoop
from ravebot.sandboxes.pipelineimages import NOT_ASKED_YET, ImageState
from ravebot.sandboxes.settings import of_sandbox
from ravebot.store import pipeline_images
from ravebot.store.database import Transaction
from ravebot.store.signals import IMAGES
from tests.support.image_place import (
    FALLS_BACK,
    MIB,
    PATH,
    Place,
    a_peer,
    a_place,
    a_place_at,
    an_image,
    digest,
    needs_qemu_img,
)
from tests.support.records import BY_ALICE

pytestmark = [
    pytest.mark.integration,
    needs_qemu_img,
]


async def test_an_image_that_does_not_start_fails_its_own_sandbox_and_nobody_else_s(
    place: Place, tmp_path: Path
) -> None:
    image = an_image(tmp_path)
    name = place.folder / f"{place.project.id}-{digest(image)}.qcow2"
    place.provider.broken.add(str(name))
    mr = await place.open()
    place.builds(mr, image)
    await place.is_in(mr, "ended")
    said = (await place.latest(mr)).end_detail
    assert "no machine comes up from the image that the job build built: the image … is no good" in said
    assert "operators" not in said
    other = await place.open("memory: 64MiB\n")
    await place.is_in(other, "ready")


async def test_the_least_recently_used_image_goes_and_none_that_a_machine_runs_from(tmp_path: Path) -> None:
    async with a_place(tmp_path, keep="2500KiB") as place:
        images = [an_image(tmp_path) for _ in range(3)]
        mrs = [await place.open() for _ in images]
        for mr, image in zip(mrs, images, strict=True):
            place.builds(mr, image)
            await place.is_in(mr, "ready")
            if mr is mrs[1]:  # the first one goes on: its image is older, but in use
                await place.ends(mr)
        names = sorted(f"{place.project.id}-{digest(image)}.qcow2" for image in (images[0], images[2]))

        async def small() -> bool:
            return place.kept() == names

        await place.until(small)
        rows = await place.yard.read(pipeline_images.files)
        assert sorted(Path(row.image).name for row in rows) == names


async def test_what_a_kill_interrupts_is_begun_anew_and_leaves_nothing(place: Place, tmp_path: Path) -> None:
    mr = await place.open()
    await place.waits_for(mr, "its pipeline")
    await place.stop()
    work = place.folder / "work" / "left"
    work.mkdir()
    (work / "fetched").write_bytes(b"half")
    (place.folder / f"7-{'0' * 64}.qcow2").write_bytes(b"converted, and not recorded")
    image = an_image(tmp_path)
    place.builds(mr, image)
    place.run()
    await place.is_in(mr, "ready")
    assert place.kept() == [f"{place.project.id}-{digest(image)}.qcow2"]


@pytest.mark.parametrize("state", [ImageState.FETCHING, ImageState.CONVERTING])
async def test_a_kill_in_the_middle_of_a_step_has_the_step_begun_anew(
    place: Place, tmp_path: Path, state: ImageState
) -> None:
    mr = await place.open()
    await place.waits_for(mr, "its pipeline")
    await place.stop()
    image = an_image(tmp_path)
    job, ref = place.builds(mr, image), place.known(mr).ref

    def die(tx: Transaction) -> None:
        known = pipeline_images.get(tx, ref, mr.sha)
        assert known
        at: dict[str, Any] = {"job_project_id": place.project.id, "job_id": job.id, "job_name": "build", "path": PATH}
        pipeline_images.save(tx, replace(known, state=state, next_look_at=None, digest=digest(image), **at))

    await place.yard.write(die)
    place.run()
    await place.is_in(mr, "ready")
    assert place.kept() == [f"{place.project.id}-{digest(image)}.qcow2"]


async def test_an_image_that_somebody_removed_is_made_again(place: Place, tmp_path: Path) -> None:
    image = an_image(tmp_path)
    mr = await place.open()
    place.builds(mr, image)
    await place.is_in(mr, "ready")
    place.started_from()[0].unlink()
    place.yard.pass_by(seconds=61)
    place.yard.database.signals.wake(IMAGES)

    async def forgotten() -> bool:
        return await place.yard.read(pipeline_images.files) == ()

    await place.until(forgotten)
    known = await place.yard.mr(place.known(mr))
    await place.yard.write(lambda tx: place.yard.intents.rebuild(tx, known, BY_ALICE))
    await place.is_in(mr, "ready")
    assert (place.downloads(), len(place.kept())) == (2, 1)


@pytest.mark.parametrize("looks", [0, 3, 4, 5])
async def test_a_disk_that_fills_meanwhile_ends_the_work_without_a_trace_until_there_is_room(
    place: Place, tmp_path: Path, looks: int
) -> None:
    place.looks_until_full = looks
    mr = await place.open()
    place.builds(mr, an_image(tmp_path))
    await place.waits_for(mr, "the host of the sandboxes is short of disk for the image")
    assert place.kept() == []
    place.looks_until_full = None
    await place.is_in(mr, "ready")


async def test_a_broken_connection_is_tried_again(place: Place, tmp_path: Path) -> None:
    image = an_image(tmp_path)
    place.server.truncate_archives()
    mr = await place.open()
    place.builds(mr, image)
    await place.waits_for(mr, "the connection to GitLab broke")
    place.server.restore()
    await place.is_in(mr, "ready")


async def test_an_image_in_a_folder_that_was_configured_before_is_made_anew(place: Place, tmp_path: Path) -> None:
    mr = await place.open()
    place.builds(mr, an_image(tmp_path))
    await place.is_in(mr, "ready")
    await place.stop()
    provider = place.yard.config.provider
    kept = provider.pipeline_images
    assert kept
    elsewhere = kept.model_copy(update={"folder": tmp_path / "elsewhere"})
    config = place.yard.config.model_copy(
        update={"provider": provider.model_copy(update={"pipeline_images": elsewhere})}
    )
    sandbox = await place.latest(mr)
    asked = await place.yard.read(lambda tx: of_sandbox(tx, config, sandbox))
    assert asked.image_waits == NOT_ASKED_YET
    yard = place.yard
    loop = asyncio.create_task(PipelineImageLoop(config, yard.database, yard.lifecycle, place.gitlab.pipelines).run())

    async def forgotten() -> bool:
        return await yard.read(pipeline_images.files) == ()

    await place.until(forgotten)
    loop.cancel()
    assert len(place.kept()) == 1  # of the folder that is configured no more nothing is removed


async def test_what_people_see_has_no_path_of_the_host(place: Place, tmp_path: Path) -> None:
    mr = await place.open()
    await place.waits_for(mr, "its pipeline")
    shutil.rmtree(place.folder / "work")
    place.builds(mr, an_image(tmp_path))
    await place.waits_for(mr, "the host's folder of images can't be written to (No such file or directory)")
    assert str(place.folder) not in (await place.latest(mr)).wait_reason


async def test_an_image_of_which_the_host_can_t_tell_whether_it_is_there_stops_nobody_else(
    place: Place, tmp_path: Path
) -> None:
    mr, other = await place.open(), await place.open()
    await place.waits_for(mr, "its pipeline")
    unreadable = str(place.folder / ("x" * 300))  # the system has no answer but an error
    ref = place.known(mr).ref

    def ready(tx: Transaction) -> None:
        known = pipeline_images.get(tx, ref, mr.sha)
        assert known
        pipeline_images.save(tx, replace(known, state=ImageState.READY, image=unreadable))

    await place.yard.write(ready)
    place.builds(other, an_image(tmp_path))
    await place.is_in(other, "ready")
    await place.is_in(mr, "ended")
    assert "its image can't be read on the host (File name too long)" in (await place.latest(mr)).end_detail
    assert place.loop
    assert not place.loop.done()


async def test_a_folder_that_is_not_ours_ends_the_waiting_as_any_other_trouble_does(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "precious").touch()
    async with a_place(tmp_path) as place:
        falls_back, fails = await place.open(FALLS_BACK + "wait_for_image: 2m\n"), await place.open()
        for mr in (falls_back, fails):
            place.builds(mr, an_image(tmp_path))
        await place.waits_for(fails, "the host's folder of images can't be used now: an operator finds the reason")
        await place.is_in(falls_back, "ready")
        assert place.started_from() == [place.yard.config.provider.image]
        await place.is_in(fails, "ended")
        assert "there was no image after 10 minutes: the host's folder" in (await place.latest(fails)).end_detail
        assert [path.name for path in place.folder.iterdir()] == ["precious"]


async def test_an_image_that_is_larger_than_the_operator_allows_by_now_is_not_booted(tmp_path: Path) -> None:
    image = an_image(tmp_path, "96M")
    async with a_peer() as peer:
        async with a_place_at(peer, tmp_path, limits={"disk": "128MiB"}) as place:
            mrs = [await place.open(), await place.open(FALLS_BACK)]
            for mr in mrs:
                place.builds(mr, image)
                await place.is_in(mr, "ready")
                await place.ends(mr)
            assert place.provider.booted[0].disk_bytes == 96 * MIB
        async with a_place_at(peer, tmp_path, limits={"disk": "64MiB"}) as place:
            for mr in mrs:
                known = await place.yard.mr(place.known(mr))
                assert (await place.yard.write(partial(place.yard.intents.start, mr=known, actor=BY_ALICE))).accepted
            await place.is_in(mrs[0], "ended")
            await place.is_in(mrs[1], "ready")
            why = (
                "the image that the job build built has a disk of 96 MiB, and may have 64 MiB: make it smaller, or have"
                " an operator raise limits.disk, and then retry"
            )
            assert (await place.latest(mrs[0])).end_detail == f"it has no image to start from: {why}"
            assert f"the default image is used: {why}" in await place.note(mrs[1])
            assert place.started_from() == [place.yard.config.provider.image]
