"""Which job, pipeline and commit an image may come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.image_place import (
    PATH,
    Place,
    an_image,
    digest,
    needs_qemu_img,
)

pytestmark = [
    pytest.mark.integration,
    needs_qemu_img,
]


async def test_a_file_that_is_not_what_the_job_announced_is_refused(place: Place, tmp_path: Path) -> None:
    mr = await place.open()
    assert await place.announce(mr, "f" * 64) == ""
    assert await place.announce(mr, "f" * 64) == ""
    assert await place.announce(mr) == ""
    place.builds(mr, an_image(tmp_path))
    await place.is_in(mr, "ended")
    assert f"and the job said {'f' * 64}" in (await place.latest(mr)).end_detail
    assert place.kept() == []


async def test_another_job_and_path_can_be_announced(place: Place, tmp_path: Path) -> None:
    mr = await place.open()
    assert await place.announce(mr, job="image", path="out/disk.qcow2") == ""
    assert await place.announce(mr) == ""  # a job that waits for the sandbox says only that it may be there
    pipeline = place.server.run_pipeline(mr, ("build", "image"))
    place.server.finish_job(pipeline.job("build"), "failed")
    place.server.finish_job(pipeline.job("image"), artifacts={"out/disk.qcow2": an_image(tmp_path)})
    await place.is_in(mr, "ready")
    without = await place.open("memory: 64MiB\n")
    assert "has no image_job at this commit" in await place.announce(without)


async def test_a_fork_gets_an_image_of_the_project_s_only_by_showing_it(place: Place, tmp_path: Path) -> None:
    image = an_image(tmp_path)
    mine = await place.open()
    place.builds(mine, image)
    await place.is_in(mine, "ready")
    theirs = await place.open(fork=place.server.add_project("mallory/app", public=True))
    place.builds(theirs, b"a file without value")  # a Developer ran the pipeline in the project itself
    await place.stop()
    await place.let_in(theirs)
    assert await place.announce(theirs, digest(image)) == ""
    place.run()
    await place.is_in(theirs, "ended")
    assert "its SHA-256 is" in (await place.latest(theirs)).end_detail
    assert len(place.started_from()) == 1


async def test_of_a_fork_only_the_image_of_the_very_commit_that_was_let_in_is_taken(
    place: Place, tmp_path: Path
) -> None:
    fork = place.server.add_project("mallory/app", public=True)
    theirs = await place.open(fork=fork)
    assert "nobody let this fork's commit in yet" in await place.announce(theirs)
    approved = await place.let_in(theirs)
    place.server.push(theirs, {"evil": "code"})
    place.builds(theirs, an_image(tmp_path), project=fork)
    await place.told(theirs)
    await place.waits_for(theirs, f"no pipeline of {approved[:8]} has begun yet")
    assert place.downloads() == 0
    assert await place.let_in(theirs) == theirs.sha
    await place.is_in(theirs, "ready")
    assert [path.name.partition("-")[0] for path in place.started_from()] == [str(fork.id)]


@pytest.mark.parametrize("kind", ["merge", "train"])
async def test_a_merged_results_pipeline_counts_for_the_head_that_it_merges(
    place: Place, tmp_path: Path, kind: str
) -> None:
    mr = await place.open()
    place.builds(mr, an_image(tmp_path), kind=kind)
    await place.is_in(mr, "ready")


async def test_a_job_of_which_gitlab_tells_in_another_form_for_a_moment_is_asked_for_again(
    place: Place, tmp_path: Path
) -> None:
    mr = await place.open()
    job = place.builds(mr, an_image(tmp_path))
    job.status = cast("Any", None)
    await place.waits_for(mr, "GitLab answered with something that is not its API")
    job.status = "success"
    await place.is_in(mr, "ready")


async def test_the_job_is_found_among_as_many_as_large_pipelines_have(place: Place, tmp_path: Path) -> None:
    mr = await place.open()
    pipeline = place.server.run_pipeline(mr, jobs=("build", *(f"test {n}/1499" for n in range(1, 1500))))
    place.server.finish_job(pipeline.job("build"), artifacts={PATH: an_image(tmp_path)})
    await place.is_in(mr, "ready")


async def test_a_pipeline_that_gitlab_does_not_show_for_a_moment_fails_nothing(place: Place, tmp_path: Path) -> None:
    mr = await place.open()
    place.server.fail(404, 1, path="/pipelines/[0-9]+/jobs")  # as from a replica of its database that lags behind
    place.builds(mr, an_image(tmp_path))
    await place.waits_for(mr, "ravebot may not see the jobs of its pipeline")
    await place.is_in(mr, "ready")
