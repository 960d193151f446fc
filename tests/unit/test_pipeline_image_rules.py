"""What a look at a pipeline makes of the image that a sandbox waits for, and what `.rave.yml` and the operator say."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.config.repository import read_project_file
from ravebot.images.pipelines.unpack import packing
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.sandboxes.pipelineimages import (
    FoundJob,
    FoundPipeline,
    ImageState,
    ImageWish,
    PipelineImage,
    PipelineLook,
    after_look,
    again,
    anew,
    asked_for,
    begun,
    converting,
    interrupted,
    is_due,
    is_late,
    too_late,
    waits_for_image,
    wanted,
)
from ravebot.sandboxes.settings import SandboxSettings, resolve
from tests.support.records import NOON, A, B, make_config

MR = MergeRequestRef(7, 1)
WISH = ImageWish("build", "image/sandbox.qcow2", may_fall_back=False, wait=timedelta(minutes=20))
HEAD, MERGE = "refs/merge-requests/1/head", "refs/merge-requests/1/merge"
LATER = NOON + timedelta(minutes=1)


def look(
    status: str | None, *, sha: str = A, ref: str = HEAD, parents: tuple[str, ...] = (), of: str = "running"
) -> Any:
    """A pipeline whose job has that status; None: it has no such job."""
    pipeline = FoundPipeline(5, 7, sha, ref, of, "https://gitlab.example.org/p/5")
    return PipelineLook(pipeline, FoundJob(9, "build", status, "https://x/9", parents) if status else None)


def after(seen: PipelineLook, image: PipelineImage | None = None) -> PipelineImage:
    return after_look(image or wanted(MR, A, NOON), WISH, seen, LATER)


@pytest.mark.parametrize(
    ("seen", "state", "words"),
    [
        (PipelineLook(), ImageState.WAITING, "no pipeline of aaaaaaaa has begun yet"),
        (look("created"), ImageState.WAITING, "the job build is not done, it is created"),
        (look("pending"), ImageState.WAITING, "the job build is not done, no runner has taken it yet"),
        (look("manual"), ImageState.WAITING, "the job build is not done, a person has to start it"),
        (look("success"), ImageState.FETCHING, ""),
        (look("failed"), ImageState.WAITING, "the job build, which builds the image, ended as failed"),
        (look("canceled"), ImageState.WAITING, "the job build, which builds the image, ended as canceled"),
        (look(None, of="created"), ImageState.WAITING, "its pipeline has no job build yet"),
        (look(None), ImageState.WAITING, "the pipeline has no job build: image_job in .rave.yml names it"),
        (look("success", sha=B), ImageState.WAITING, "no pipeline of aaaaaaaa has begun yet"),
        (look("success", sha=B, ref=MERGE, parents=(B, A)), ImageState.FETCHING, ""),
        (look("success", sha=B, ref=MERGE, parents=(B,)), ImageState.WAITING, "no pipeline of aaaaaaaa has begun yet"),
        (
            look("success", sha=B, ref=MERGE, parents=(A, B)),
            ImageState.WAITING,
            "no pipeline of aaaaaaaa has begun yet",
        ),
        (look("success", sha=B, ref="main", parents=(A,)), ImageState.WAITING, "no pipeline of aaaaaaaa has begun yet"),
    ],
)
def test_what_a_look_shows_decides_what_follows(seen: PipelineLook, state: ImageState, words: str) -> None:
    found = after(seen)
    assert (found.state, found.words) == (state, words)
    assert (found.next_look_at is not None) == (state is ImageState.WAITING)


def test_what_was_announced_counts_more_than_the_file() -> None:
    told = replace(wanted(MR, A, NOON), announced_job="image", announced_path="out/disk.raw.zst")
    found = after(PipelineLook(look("x").pipeline, FoundJob(3, "image", "success", "https://x/3")), told)
    assert (found.job_id, found.path, found.state) == (3, "out/disk.raw.zst", ImageState.FETCHING)
    assert anew(found, LATER).announced_job == "image"
    assert anew(found, LATER).job_id is None


def test_waiting_ends_after_its_time_and_says_what_was_missing() -> None:
    waiting = after(look("running"))
    assert not is_late(waiting, WISH, NOON + timedelta(minutes=19))
    end = NOON + timedelta(minutes=20)
    assert not is_late(waiting, WISH, end)  # GitLab is asked once more
    assert is_late(after_look(waiting, WISH, look("running"), end), WISH, end)
    assert not is_late(after(look("success")), WISH, NOON + timedelta(hours=1))


def test_only_what_gitlab_showed_makes_it_late_and_not_that_ravebot_was_busy() -> None:
    end = NOON + timedelta(minutes=20)
    assert not is_late(wanted(MR, A, NOON), WISH, end + timedelta(hours=1))
    assert is_late(again(wanted(MR, A, NOON), "slow down", end - timedelta(minutes=1), 3600), WISH, end)


def test_what_it_was_waiting_for_is_told_when_it_is_late() -> None:
    waiting = after(look("running"))
    late = too_late(waiting, WISH, NOON + timedelta(minutes=20))
    assert late.words == "there was no image after 20 minutes: the job build is not done, it runs"


def test_a_trouble_is_tried_again_less_and_less_often() -> None:
    image, pauses = wanted(MR, A, NOON), []
    for _ in range(6):
        image = again(image, "GitLab does not answer", NOON)
        assert image.next_look_at
        pauses.append((image.next_look_at - NOON).total_seconds())
    assert pauses == [5, 10, 20, 40, 60, 60]
    assert again(image, "slow down", NOON, 300).next_look_at == NOON + timedelta(minutes=5)


def test_every_reason_to_wait_for_an_image_is_known_as_one() -> None:
    for state in (ImageState.WAITING, ImageState.FETCHING, ImageState.CONVERTING):
        assert waits_for_image(replace(wanted(MR, A, NOON), state=state, job_name="a: b").waits_for)
    assert not waits_for_image("the host is short of memory: 1 GiB left")


def settled(file: str, **images: Any) -> SandboxSettings:
    provider = {"pipeline_images": images} if images else {}
    return resolve(make_config(Path("/none"), provider=provider), read_project_file(file.encode()))


def test_the_operator_s_longest_wait_wins_and_it_is_said() -> None:
    found = settled("image_job: build\nwait_for_image: 3h\n", longest_wait="1h")
    assert found.image_wish == ImageWish("build", "image/sandbox.qcow2", may_fall_back=False, wait=timedelta(hours=1))
    assert found.remarks == ("`.rave.yml` waits 3 h for its image; it gets 1 h, the longest here",)
    assert settled("image_job: build\n", longest_wait="5m").remarks == ()


def test_where_no_pipeline_images_are_switched_on_the_default_image_is_used_and_it_is_said() -> None:
    found = settled("image_job: build\n")
    assert (found.image_wish, found.image) == (None, Path("/none/image.qcow2"))
    assert found.remarks == (
        "`.rave.yml` wants an image from a pipeline, which ravebot's operator has not switched on",
    )


@pytest.mark.parametrize(
    ("path", "end"), [("a/disk.raw.gz", ".gz"), ("DISK.XZ", ".xz"), ("d.img.zst", ".zst"), ("a.qcow2", ""), ("gz", "")]
)
def test_how_a_file_is_compressed_is_told_by_its_name(path: str, end: str) -> None:
    assert packing(path) == end


def test_an_image_with_which_ravebot_ends_each_time_is_given_up_after_five() -> None:
    image = after(look("success"))
    for _ in range(5):
        image = begun(image, LATER)
        assert image.state is ImageState.FETCHING
        image = converting(image, "a" * 64, LATER)
    given_up = begun(image, LATER)
    assert given_up.state is ImageState.FAILED
    assert given_up.words.startswith(
        "ravebot ended 5 times while it made the image that the job build left: an operator"
    )


def test_a_ravebot_that_is_stopped_in_order_gives_up_no_image_however_often() -> None:
    image = after(look("success"))
    for _ in range(20):
        image = interrupted(begun(image, LATER))
    assert (image.state, image.begun) == (ImageState.FETCHING, 0)


def test_what_ends_in_order_is_not_counted_nor_what_another_sandbox_asks_for() -> None:
    image = begun(after(look("success")), LATER)
    assert again(image, "GitLab does not answer", LATER).begun == 0
    assert asked_for(image, LATER, LATER).begun == 0
    assert asked_for(image, NOON, LATER) == image


def test_the_time_begins_when_its_sandbox_was_asked_for() -> None:
    late = too_late(after(look("running")), WISH, LATER)
    assert asked_for(late, NOON, LATER) == late
    fresh = asked_for(late, LATER + timedelta(seconds=1), LATER + timedelta(seconds=2))
    assert (fresh.state, fresh.since) == (ImageState.WAITING, LATER + timedelta(seconds=2))
    assert asked_for(wanted(MR, A, NOON), LATER, LATER).since == LATER


def test_a_trouble_with_the_same_file_is_tried_again_less_and_less_often_until_there_is_news() -> None:
    image, pauses = wanted(MR, A, NOON), []
    for _ in range(4):
        image = again(converting(begun(after(look("success"), image), NOON), "a" * 64, NOON), "no room", NOON)
        assert image.next_look_at
        pauses.append((image.next_look_at - NOON).total_seconds())
    assert pauses == [5, 10, 20, 40]
    assert after(look("running"), image).tries == 0
    assert after(PipelineLook(look("x").pipeline, FoundJob(10, "build", "success", "https://x/10")), image).tries == 0


def test_a_branch_s_pipeline_without_the_job_is_waited_past_as_that_of_the_merge_request_may_follow() -> None:
    seen = look(None, ref="feature")
    first = after(seen)
    assert (first.state, first.words) == (
        ImageState.WAITING,
        "its branch's pipeline has no job build; another may follow",
    )
    second = after_look(first, WISH, seen, NOON + timedelta(minutes=2))
    assert after_look(second, WISH, seen, NOON + timedelta(minutes=3)).state is ImageState.FAILED
    assert after(look("success"), first).state is ImageState.FETCHING


def test_the_last_look_is_at_the_end_of_the_time() -> None:
    end = NOON + timedelta(minutes=20)
    waiting = after_look(wanted(MR, A, NOON), WISH, look("running"), end - timedelta(seconds=5))
    assert waiting.next_look_at == end
    last = after_look(waiting, WISH, look("running"), end)
    assert is_late(last, WISH, end)


def test_one_trouble_at_the_end_of_the_time_is_not_the_end_but_three_are() -> None:
    end, image = NOON + timedelta(minutes=20), after(look("running"))
    late = []
    for _ in range(3):
        image = again(image, "GitLab does not answer", end)
        late.append(is_late(image, WISH, end))
    assert late == [False, False, True]


@pytest.mark.parametrize("how_far", ["fetching", "converting"])
def test_what_was_begun_for_an_earlier_sandbox_is_begun_anew_for_the_next(how_far: str) -> None:
    image = begun(after(look("success")), LATER)
    image = converting(image, "a" * 64, LATER) if how_far == "converting" else image
    fresh = asked_for(image, LATER, LATER)
    assert (fresh.state, fresh.job_id, fresh.since) == (ImageState.WAITING, None, LATER)
    assert asked_for(image, NOON, LATER) == image


def test_a_bad_end_counts_once_it_was_seen_twice_as_gitlab_runs_jobs_again_and_another_pipeline_may_follow() -> None:
    first = after(look("failed"))
    assert (first.state, first.words) == (ImageState.WAITING, "the job build, which builds the image, ended as failed")
    assert first.next_look_at == LATER + timedelta(seconds=10)
    retried = PipelineLook(look("x").pipeline, FoundJob(10, "build", "failed", "https://x/10"))
    second = after(retried, first)
    assert second.state is ImageState.WAITING
    assert after(retried, second).state is ImageState.FAILED
    assert after(look("success"), first).state is ImageState.FETCHING
    assert after(look("failed"), replace(first, words="")).state is ImageState.WAITING


def test_a_clock_that_is_set_back_neither_delays_a_look_nor_makes_an_image_late() -> None:
    waiting = after_look(wanted(MR, A, NOON), WISH, look("running"), NOON)
    assert not is_due(waiting, NOON + timedelta(seconds=19))
    assert is_due(waiting, NOON + timedelta(seconds=20))
    back = NOON - timedelta(minutes=40)
    assert is_due(waiting, back)
    assert asked_for(waiting, back, back).since == back
    assert is_due(again(waiting, "slow down", NOON, 3600), back)


def test_a_failure_of_a_time_that_has_not_come_is_an_earlier_sandbox_s() -> None:
    back = NOON - timedelta(minutes=40)
    fresh = asked_for(too_late(after(look("running")), WISH, LATER), back, back + timedelta(seconds=1))
    assert (fresh.state, fresh.since) == (ImageState.WAITING, back + timedelta(seconds=1))


def test_a_job_that_is_not_there_is_missed_at_two_looks_before_it_counts() -> None:
    first = after(look(None))
    assert first.next_look_at == LATER + timedelta(seconds=10)
    assert after(look("running"), first).state is ImageState.WAITING
    assert after(look(None), first).state is ImageState.FAILED
