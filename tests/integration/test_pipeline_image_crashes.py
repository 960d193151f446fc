"""Ravebot is killed as by a power cut while it makes or removes an image of a pipeline, and started again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ravebot.sandboxes.pipelineimages import ImageState
from ravebot.store import pipeline_images
from tests.support.gitlab import MergeRequest
from tests.support.image_dying import make_images_until_killed
from tests.support.image_place import MIB, Peer, Place, a_peer, a_place_at, an_image, digest, needs_qemu_img

pytestmark = [
    pytest.mark.integration,
    needs_qemu_img,
]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.image_dying"])


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with a_peer() as made:
        yield made


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that takes a while."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "raw").write_bytes(os.urandom(56 * MIB))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-f", "raw", folder / "raw", folder / "image"], check=True)
    return folder / "image"


def a_bot_s_place(peer: Peer, tmp_path: Path, runs: bool = True) -> AbstractAsyncContextManager[Place]:
    """In this process, before another one runs and after it."""
    return a_place_at(peer, tmp_path, largest="128MiB", runs=runs)


async def a_waiting_sandbox(peer: Peer, tmp_path: Path, image: Path) -> MergeRequest:
    """Its job has left that image, and nobody has looked yet."""
    async with a_bot_s_place(peer, tmp_path, runs=False) as place:
        mr = await place.open()
        place.builds(mr, image)
    return mr


@contextmanager
def a_bot(peer: Peer, tmp_path: Path, keep: str = "1GiB") -> Iterator[BaseProcess]:
    """A process that makes and removes images; it is killed at the end at the latest."""
    given = (tmp_path, tmp_path / "images", peer.server.url, peer.token, keep)
    process = _CONTEXT.Process(target=make_images_until_killed, args=given)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


async def until(so: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not so():
            await asyncio.sleep(0.001)


async def killed(process: BaseProcess) -> None:
    """It killed itself."""
    await until(lambda: process.exitcode is not None)
    assert process.exitcode == -signal.SIGKILL


def converting(bot: int | None) -> list[int]:
    """The programs of that process which convert."""
    found = []
    for children in Path(f"/proc/{bot}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if words[:2] == [b"qemu-img", b"convert"]:
                    found.append(int(child))
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def is_made_once(peer: Peer, tmp_path: Path, mr: MergeRequest, image: Path, after: ImageState) -> None:
    """By the next process, where the one before left its row in that state; nothing else is left of it."""
    async with a_bot_s_place(peer, tmp_path, runs=False) as place:
        ref, name = place.known(mr).ref, f"{peer.project.id}-{digest(image)}.qcow2"
        before = await place.yard.read(lambda tx: pipeline_images.get(tx, ref, mr.sha))
        assert before
        assert (before.state, await place.yard.read(pipeline_images.files)) == (after, ())
        place.run()
        await place.is_in(mr, "ready")
        made, files = await place.yard.read(
            lambda tx: (pipeline_images.get(tx, ref, mr.sha), pipeline_images.files(tx))
        )
        assert made
        assert (made.state, made.image, made.begun) == (ImageState.READY, str(place.folder / name), 0)
        assert ([file.image for file in files], place.kept()) == ([made.image], [name])
        assert list((place.folder / "work").iterdir()) == []
        assert [path.name for path in place.started_from()] == [name]
        assert [len(await place.yard.log(kind)) for kind in ("sandbox.queued", "sandbox.ready")] == [1, 1]
        assert place.downloads() == 2


async def test_a_kill_during_the_download_leaves_nothing_and_the_image_is_made_once(
    peer: Peer, tmp_path: Path, large: Path
) -> None:
    mr = await a_waiting_sandbox(peer, tmp_path, large)
    with a_bot(peer, tmp_path) as bot:
        await until(lambda: any(path.stat().st_size for path in tmp_path.glob("images/work/*/fetched")))
        bot.kill()
        bot.join()
    (half,) = tmp_path.glob("images/work/*/fetched")
    assert 0 < half.stat().st_size < large.stat().st_size
    await is_made_once(peer, tmp_path, mr, large, after=ImageState.FETCHING)


async def test_a_kill_during_the_conversion_ends_the_program_and_the_image_is_made_once(
    peer: Peer, tmp_path: Path, large: Path
) -> None:
    mr, program = await a_waiting_sandbox(peer, tmp_path, large), 0
    try:
        with a_bot(peer, tmp_path) as bot:
            await until(lambda: converting(bot.pid))
            (program,) = converting(bot.pid)
            os.kill(program, signal.SIGSTOP)  # so that it does not come to an end by itself
            bot.kill()
            bot.join()
        began = time.monotonic()
        await until(lambda: not lives(program) or time.monotonic() - began > 3)
        assert not lives(program)
    finally:
        if program and lives(program):
            os.kill(program, signal.SIGKILL)
    await is_made_once(peer, tmp_path, mr, large, after=ImageState.CONVERTING)


async def test_a_kill_between_the_file_and_the_commit_of_its_row_has_the_image_made_anew(
    peer: Peer, tmp_path: Path
) -> None:
    image = an_image(tmp_path)
    mr = await a_waiting_sandbox(peer, tmp_path, image)
    with a_bot(peer, tmp_path) as bot:
        await killed(bot)
    assert (tmp_path / "images" / f"{peer.project.id}-{digest(image)}.qcow2").exists()
    await is_made_once(peer, tmp_path, mr, image, after=ImageState.CONVERTING)


async def test_a_kill_between_the_removal_of_a_row_and_of_its_file_leaves_no_file(peer: Peer, tmp_path: Path) -> None:
    async with a_bot_s_place(peer, tmp_path) as place:
        mr = await place.open()
        place.builds(mr, an_image(tmp_path))
        await place.is_in(mr, "ready")
        await place.ends(mr)
    with a_bot(peer, tmp_path, keep="1MiB") as bot:
        await killed(bot)
    async with a_bot_s_place(peer, tmp_path, runs=False) as place:
        assert (len(place.kept()), await place.yard.read(pipeline_images.files)) == (1, ())
        place.run()

        async def removed() -> bool:
            return place.kept() == []

        await place.until(removed)
