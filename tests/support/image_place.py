"""A GitLab whose pipelines build images, and a pool that boots them: what the tests of images from pipelines share."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from ravebot.sandboxes.projectfiles import ProjectFiles
from ravebot.store.signals import IMAGES
from tests.support.gitlab import DEVELOPER, GitLabServer, Job, MergeRequest, Pipeline, Project, User, entities
from tests.support.records import BY_ALICE
from tests.support.yard import Yard, a_yard

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img: install qemu-utils")

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

    async def until(self, so: Callable[[], Awaitable[bool]], seconds: float = 90) -> None:
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


def an_image(folder: Path, size: str = "32M") -> Path:
    """As a job builds it; each is another."""
    raw, path = folder / "raw", folder / f"{os.urandom(4).hex()}.qcow2"
    raw.write_bytes(os.urandom(MIB))
    subprocess.run(["truncate", "-s", size, raw], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
