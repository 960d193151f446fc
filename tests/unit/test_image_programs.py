"""Programs of the builder: what is kept of their output, and that none outlives it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from ravebot.errors import ImageBuildFailed
from ravebot.images.programs import KEPT_LINES, run


async def test_the_last_lines_of_a_program_that_fails_are_told() -> None:
    with pytest.raises(ImageBuildFailed, match=r"^/bin/sh failed$") as caught:
        await run(["/bin/sh", "-c", "seq 100; printf 'half\\rwhole' >&2; exit 3"], os.environ)
    assert caught.value.lines == (*map(str, range(100 - KEPT_LINES + 2, 101)), "whole")


async def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(ImageBuildFailed, match="failed: the disk is full"):
        await run(["/bin/sh", "-c", "head -c 9 /dev/zero >/dev/full"], {**os.environ, "LC_ALL": "C"})


async def test_credentials_in_addresses_are_not_shown() -> None:
    heard: list[str] = []

    def hear(line: str) -> bool:
        heard.append(line)
        return True

    await run(["/bin/echo", "Get:1 https://person:hush@mirror.example/debian/x@1.deb"], os.environ, hear)
    assert heard == ["Get:1 https://mirror.example/debian/x@1.deb"]


@pytest.mark.parametrize("turns", [*range(12), None])
async def test_a_program_that_is_cancelled_ends_with_all_of_its_group(tmp_path: Path, turns: int | None) -> None:
    """Cancelled after so many turns of the event loop, while it starts, or when it runs."""
    started = tmp_path / "started"
    task = asyncio.create_task(run(["/bin/sh", "-c", f"sleep 300 & echo $! >{started}; wait"], os.environ))
    for _ in range(turns or 0):
        await asyncio.sleep(0)
    while turns is None and not (started.exists() and started.read_text().strip()):
        await asyncio.sleep(0.01)
    if turns != 0:
        time.sleep(0.05)  # the program goes on; this loop does not
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if started.exists() and (child := started.read_text().strip()):
        status = Path(f"/proc/{child}/stat")
        async with asyncio.timeout(20):
            while status.exists() and status.read_text().split()[2] != "Z":
                await asyncio.sleep(0.01)
