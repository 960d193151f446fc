"""The disk with the folder of images is really full: a small file system of its own, while an image is made."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ravebot.store import pipeline_images
from tests.support.image_place import MIB, Place, a_place, an_image, needs_qemu_img

pytestmark = [
    pytest.mark.integration,
    needs_qemu_img,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system"),
]
DISK = 6 * MIB
FULL = "No space left on device"


def free(folder: Path) -> int:
    """What is free, without what a host keeps for itself: that is more than this disk has."""
    return shutil.disk_usage(folder).free


def fill(folder: Path, but: int) -> Path:
    """So much stays free."""
    filler = folder / ".filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free(folder) - but)
    return filler


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """Its folder of images is a disk of 6 MiB, and nothing looks at what is free before it writes."""
    images = tmp_path / "images"
    images.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", images], check=True)
    try:
        async with a_place(tmp_path) as made:
            yield made
    finally:
        subprocess.run(["umount", images], check=True)


@pytest.mark.parametrize(
    ("room", "says"),
    [
        (MIB // 2, f"the host of the sandboxes can't keep it ({FULL}): an operator can make room"),  # the download
        (MIB * 3 // 2, "the host of the sandboxes is short of disk for the image; an operator can make room"),
    ],
    ids=["during the download", "during the conversion"],
)
async def test_a_disk_that_is_full_is_told_keeps_nothing_and_is_tried_again(
    place: Place, tmp_path: Path, room: int, says: str
) -> None:
    mr = await place.open()
    await place.waits_for(mr, "its pipeline")
    filler = fill(place.folder, room)
    place.builds(mr, an_image(tmp_path))
    await place.waits_for(mr, says)
    other = await place.open("memory: 64MiB\n")
    await place.is_in(other, "ready")  # others go on
    await place.waits_for(mr, says)
    await place.stop()
    assert place.kept() == [filler.name]
    assert list((place.folder / "work").iterdir()) == []
    place.run()
    filler.unlink()
    await place.is_in(mr, "ready")
    assert len(place.kept()) == 1


@pytest.mark.parametrize("room", [0, MIB // 2], ids=["from the beginning", "during the download"])
async def test_an_image_that_nobody_uses_makes_room_on_a_disk_that_is_full(
    place: Place, tmp_path: Path, room: int
) -> None:
    old, new = await place.open(), await place.open()
    await place.waits_for(new, "its pipeline")
    place.builds(old, an_image(tmp_path))
    await place.is_in(old, "ready")
    await place.ends(old)
    before = place.kept()
    fill(place.folder, room)
    place.builds(new, an_image(tmp_path))
    await place.waits_for(new, "an operator can make room")

    async def gone() -> bool:
        return not set(before) & set(place.kept())

    await place.until(gone)
    rows = await place.yard.read(pipeline_images.files)
    assert not {Path(row.image).name for row in rows} & set(before)


async def test_a_disk_that_takes_no_further_file_is_told_and_tried_again(place: Place, tmp_path: Path) -> None:
    mr = await place.open()
    await place.waits_for(mr, "its pipeline")
    # no more than the folder itself, its marker and the folder for what is being made
    subprocess.run(["mount", "-o", "remount,nr_inodes=3", place.folder], check=True)
    place.builds(mr, an_image(tmp_path))
    await place.waits_for(mr, "the host of the sandboxes is short of disk for the image; an operator can make room")
    subprocess.run(["mount", "-o", "remount,nr_inodes=100", place.folder], check=True)
    await place.is_in(mr, "ready")
    assert len(place.kept()) == 1
