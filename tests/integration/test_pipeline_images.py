"""Images that pipelines build: found at the stand-in, fetched, converted, booted, shared, and told of."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.image_place import (
    FALLS_BACK,
    MIB,
    PATH,
    Place,
    an_image,
    digest,
    needs_qemu_img,
)
from tests.support.records import BY_ALICE

pytestmark = [
    pytest.mark.integration,
    needs_qemu_img,
]


async def test_a_sandbox_waits_for_its_job_says_so_and_starts_from_what_it_built(place: Place, tmp_path: Path) -> None:
    image = an_image(tmp_path)
    mr = await place.open()
    other = await place.open("memory: 64MiB\n")
    await place.is_in(other, "ready")  # others pass it
    await place.waits_for(mr, f"it waits for the image of its pipeline: no pipeline of {mr.sha[:8]} has begun yet")
    pipeline = place.server.run_pipeline(mr)
    job = place.server.start_job(pipeline.job("build"))
    await asyncio.sleep(0)
    place.yard.pass_by(seconds=30)
    place.server.finish_job(job, artifacts={PATH: image})
    await place.is_in(mr, "ready")
    booted = place.provider.booted[-1]
    assert booted.image == place.folder / f"{place.project.id}-{digest(image)}.qcow2"
    assert (booted.kernel, booted.disk_bytes) == (None, 64 * MIB)
    assert booted.image.read_bytes()[:4] == b"QFI\xfb"
    assert place.kept() == [booted.image.name]
    assert f"| **Image** | from the job [build]({place.server.url}/group/app/-/jobs/{job.id}) |" in await place.note(mr)


async def test_the_note_follows_what_it_waits_for(place: Place) -> None:
    mr = await place.open()
    place.server.run_pipeline(mr)
    await place.waits_for(mr, "its pipeline")
    assert "Sandbox waits in the queue" in await place.note(mr)


@pytest.mark.parametrize("ending", ["failed", "canceled", "skipped"])
async def test_a_job_that_built_none_fails_the_sandbox_and_the_note_leads_to_the_job(place: Place, ending: str) -> None:
    mr = await place.open()
    job = place.server.finish_job(place.server.run_pipeline(mr).job("build"), ending)
    await place.is_in(mr, "ended")
    sandbox = await place.latest(mr)
    assert sandbox.end_detail == (
        f"it has no image to start from: the job build, which builds the image, ended as {ending}"
    )
    note = await place.note(mr)
    assert "🔴 Failed" in note
    told = [body for _, _, kind, body in await place.yard.outbox() if kind == "history"]
    assert any(sandbox.end_detail in one for one in told), told
    assert f"[build]({place.server.url}/group/app/-/jobs/{job.id})" in note
    assert place.provider.booted == []


async def test_a_retry_looks_at_the_jobs_again(place: Place, tmp_path: Path) -> None:
    mr = await place.open()
    job = place.server.finish_job(place.server.run_pipeline(mr).job("build"), "failed")
    await place.is_in(mr, "ended")
    again = place.server.retry_job(job)
    place.server.finish_job(again, artifacts={PATH: an_image(tmp_path)})
    place.yard.pass_by(seconds=1)
    known = await place.yard.mr(place.known(mr))
    assert (await place.yard.write(lambda tx: place.yard.intents.retry(tx, known, BY_ALICE))).accepted
    await place.is_in(mr, "ready")


async def test_the_default_image_is_used_where_the_project_says_so_and_the_note_says_why(place: Place) -> None:
    mr = await place.open(FALLS_BACK)
    place.server.finish_job(place.server.run_pipeline(mr).job("build"), "failed")
    await place.is_in(mr, "ready")
    assert place.started_from() == [place.yard.config.provider.image]
    said = "the default image is used: the job build, which builds the image, ended as failed"
    assert said in await place.note(mr)


async def test_it_waits_no_longer_than_it_was_asked_to(place: Place) -> None:
    mr = await place.open("image_job: build\nwait_for_image: 2m\n")
    place.server.start_job(place.server.run_pipeline(mr).job("build"))
    await place.is_in(mr, "ended")
    sandbox = await place.latest(mr)
    assert "there was no image after 2 minutes: the job build is not done, it runs" in sandbox.end_detail
    assert sandbox.ended_at
    assert timedelta(minutes=2) <= sandbox.ended_at - sandbox.created_at < timedelta(minutes=3)


@pytest.mark.parametrize(
    ("artifacts", "says"),
    [
        ({"another.qcow2": b"x"}, "the job build has left no file image/sandbox.qcow2, or it has expired"),
        ({PATH: b"no image"}, "sandbox.qcow2 is no qcow2 file"),
        ({PATH: bytes(9 * MIB)}, "it is larger than 8.0 MiB"),
    ],
)
async def test_a_file_that_is_no_image_is_refused_and_leaves_no_trace(
    place: Place, artifacts: dict[str, bytes], says: str
) -> None:
    mr = await place.open()
    place.server.finish_job(place.server.run_pipeline(mr).job("build"), artifacts=artifacts)
    await place.is_in(mr, "ended")
    assert says in (await place.latest(mr)).end_detail
    assert place.kept() == []


async def test_a_second_sandbox_with_the_same_image_downloads_and_converts_nothing(
    place: Place, tmp_path: Path
) -> None:
    image = an_image(tmp_path)
    first, second, third = [await place.open() for _ in range(3)]
    place.builds(first, image)
    await place.is_in(first, "ready")
    made = place.started_from()[0].stat()
    await place.announce(second, digest(image))
    place.builds(second, image)
    await place.is_in(second, "ready")
    assert place.downloads() == 1
    await place.ends(first)
    place.builds(third, image)  # nobody told its digest: it is fetched, but not converted
    await place.is_in(third, "ready")
    assert place.downloads() == 2
    assert len(set(place.started_from())) == 1
    assert place.started_from()[0].stat().st_mtime_ns == made.st_mtime_ns


async def test_new_code_keeps_the_machine_and_a_rebuild_takes_the_new_image(place: Place, tmp_path: Path) -> None:
    mr = await place.open()
    place.builds(mr, an_image(tmp_path))
    await place.is_in(mr, "ready")
    sha = place.server.push(mr, {"new": "code"})
    await place.told(mr)
    await place.is_in(mr, "ready")
    new = an_image(tmp_path)
    place.builds(mr, new)
    assert len(place.started_from()) == 1
    assert f"with the image that the pipeline of `{sha[:8]}` builds" in await place.note(mr)
    known = await place.yard.mr(place.known(mr))
    await place.yard.write(lambda tx: place.yard.intents.rebuild(tx, known, BY_ALICE))
    await place.is_in(mr, "ready")
    assert [path.name for path in place.started_from()][1:] == [f"{place.project.id}-{digest(new)}.qcow2"]
