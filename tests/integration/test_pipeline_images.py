"""Images that pipelines build: found at the stand-in, fetched, converted, booted, shared, and told of."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from ravebot.errors import ImageError
from ravebot.gitlab import answers
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.notes import render_note
from ravebot.images.pipelines.announcing import AnnouncedImages
from ravebot.images.pipelines.loop import PipelineImageLoop
from ravebot.images.pipelines.workshop import MARKER
from ravebot.providers.base import MachineSpec
from ravebot.providers.memory import MemoryProvider
from ravebot.sandboxes.model import MergeRequest as KnownMergeRequest
from ravebot.sandboxes.model import Sandbox
from ravebot.sandboxes.pipelineimages import NOT_ASKED_YET, ImageState
from ravebot.sandboxes.projectfiles import ProjectFiles
from ravebot.sandboxes.settings import of_sandbox
from ravebot.store import pipeline_images
from ravebot.store.database import Transaction
from ravebot.store.signals import IMAGES
from tests.support.gitlab import DEVELOPER, GitLabServer, Job, MergeRequest, Pipeline, Project, User, entities
from tests.support.records import BY_ALICE
from tests.support.yard import Yard, a_yard

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img: install qemu-utils"),
]

MIB = 1024**2
PATH = "image/sandbox.qcow2"
ASKS = "image_job: build\nwait_for_image: 10m\n"
FALLS_BACK = "image_job: {job: build, otherwise: default}\n"


class Recorder(MemoryProvider):
    """Keeps what it is asked to create; `broken` are images that no machine can start from."""

    def __init__(self) -> None:
        super().__init__()
        self.booted: list[MachineSpec] = []
        self.broken: set[str] = set()

    async def create(self, spec: MachineSpec) -> None:
        self.booted.append(spec)
        if str(spec.image) in self.broken:
            raise ImageError(f"the image {spec.image} is no good")
        await super().create(spec)


@dataclass
class Place:
    """A GitLab with a project, our client to it, a pool, and the loop of images."""

    server: GitLabServer
    project: Project
    alice: User
    yard: Yard
    gitlab: GitLab
    provider: Recorder
    folder: Path
    loop: asyncio.Task[None] | None = None
    looks_until_full: int | None = None
    """How often there is room on the host's disk; None: always."""

    def left(self, _: Path) -> int:
        if self.looks_until_full is None:
            return 1024**4
        self.looks_until_full -= 1
        return 1024**4 if self.looks_until_full >= 0 else -1

    def run(self) -> None:
        yard = self.yard
        loop = PipelineImageLoop(yard.config, yard.database, yard.lifecycle, self.gitlab.pipelines, self.left)
        self.loop = asyncio.create_task(loop.run())

    async def stop(self) -> None:
        if self.loop is not None:
            self.loop.cancel()
            with suppress(asyncio.CancelledError):
                await self.loop

    async def open(self, file: str = ASKS, fork: Project | None = None) -> MergeRequest:
        """One of the project's own branches, or of a fork's."""
        branch, files = f"feature-{len(self.server.state.merge_requests)}", {".rave.yml": file}
        target = self.project if fork else None
        mr = self.server.open_merge_request(
            fork or self.project, self.alice, files=files, branch=branch, fork_of=target
        )
        await self.told(mr)
        return mr

    async def let_in(self, mr: MergeRequest) -> str:
        """Approve the head of a fork's merge request."""
        known = await self.yard.mr(self.known(mr))
        await ProjectFiles(self.yard.database, self.gitlab).know(self.known(mr), approves=True)
        await self.yard.write(lambda tx: self.yard.intents.start(tx, known, BY_ALICE, mr.sha))
        return mr.sha

    async def told(self, mr: MergeRequest) -> str:
        known = self.known(mr)
        await ProjectFiles(self.yard.database, self.gitlab).know(known)
        return await self.yard.told(known)

    def known(self, mr: MergeRequest) -> KnownMergeRequest:
        return answers.merge_request(entities.merge_request(self.server.url, mr))

    def builds(self, mr: MergeRequest, image: bytes | Path | None, **kind: Any) -> Job:
        """Its pipeline's job leaves that image."""
        pipeline: Pipeline = self.server.run_pipeline(mr, **kind)
        return self.server.finish_job(pipeline.job("build"), artifacts={PATH: image} if image is not None else {})

    async def latest(self, mr: MergeRequest) -> Sandbox:
        return await self.yard.latest(self.known(mr))

    async def waits_for(self, mr: MergeRequest, words: str) -> None:
        async def so() -> bool:
            return words in (await self.latest(mr)).wait_reason

        await self.until(so)

    async def is_in(self, mr: MergeRequest, state: str) -> None:
        async def so() -> bool:
            return (await self.latest(mr)).state.value == state

        await self.until(so)

    async def until(self, so: Callable[[], Awaitable[bool]], seconds: float = 15) -> None:
        """Let pool and loop work until it is so, and some time pass for the looks at GitLab."""
        async with asyncio.timeout(seconds):
            while not await so():
                await self.yard.go()
                self.yard.pass_by(seconds=5)
                self.yard.database.signals.wake(IMAGES)
                await asyncio.sleep(0.02)

    async def note(self, mr: MergeRequest) -> str:
        ref = self.known(mr).ref
        view = await self.yard.read(lambda tx: self.yard.views.latest(tx, ref))
        assert view
        return render_note(view, "<!-- -->")

    async def announce(self, mr: MergeRequest, sha256: str = "", job: str = "", path: str = "") -> str:
        known = await self.yard.mr(self.known(mr))
        told = AnnouncedImages(self.yard.config)
        return await self.yard.write(lambda tx: told.announced(tx, known, known.head_sha, 1, job, path, sha256))

    async def ends(self, mr: MergeRequest) -> None:
        known = self.known(mr)
        await self.yard.write(lambda tx: self.yard.intents.stop(tx, known, BY_ALICE))
        await self.is_in(mr, "ended")

    def downloads(self) -> int:
        return sum("/artifacts/" in one.path for one in self.server.requests)

    def kept(self) -> list[str]:
        """Every file in the folder of images."""
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file() and path.name != MARKER)

    def started_from(self) -> list[Path]:
        return [spec.image for spec in self.provider.booted]


@dataclass(frozen=True)
class Peer:
    """A GitLab with a project, of which Alice and our bot are Developers."""

    server: GitLabServer
    project: Project
    alice: User
    token: str


@asynccontextmanager
async def a_peer() -> AsyncIterator[Peer]:
    async with GitLabServer() as server:
        bot, alice = server.add_user("ravebot", bot=True), server.add_user("alice")
        project = server.add_project("group/app")
        for user in (bot, alice):
            server.set_role(project, user, DEVELOPER)
        yield Peer(server, project, alice, server.token_for(bot))


@asynccontextmanager
async def a_place(tmp_path: Path, **changes: Any) -> AsyncIterator[Place]:
    """With a GitLab of its own."""
    async with a_peer() as peer, a_place_at(peer, tmp_path, **changes) as place:
        yield place


@asynccontextmanager
async def a_place_at(
    peer: Peer, tmp_path: Path, keep: str = "1GiB", largest: str = "8MiB", runs: bool = True, **changes: Any
) -> AsyncIterator[Place]:
    folder = tmp_path / "images"
    provider = Recorder()
    section: dict[str, Any] = {
        "provider": {"pipeline_images": {"folder": str(folder), "largest": largest, "keep": keep}}
    }
    server = peer.server
    section["gitlab"] = {"url": server.url}
    async with a_yard(tmp_path, provider, **section, **changes) as yard:
        gitlab = GitLab(server.url, peer.token, yard.clock, 2)
        place = Place(server, peer.project, peer.alice, yard, gitlab, provider, folder)
        if runs:
            place.run()
        try:
            yield place
        finally:
            await place.stop()
            await gitlab.close()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with a_place(tmp_path) as made:
        yield made


def an_image(folder: Path, size: str = "32M") -> Path:
    """As a job builds it; each is another."""
    raw, path = folder / "raw", folder / f"{os.urandom(4).hex()}.qcow2"
    raw.write_bytes(os.urandom(MIB))
    subprocess.run(["truncate", "-s", size, raw], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
