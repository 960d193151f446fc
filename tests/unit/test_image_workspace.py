"""Where a build works is removed in the end, and has room."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import pytest

from ravebot.errors import RavebotError
from ravebot.images import workspace


def test_folders_on_one_file_system_share_its_room(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    other = tmp_path / "other"
    other.mkdir()
    workspace.check_room((tmp_path, free // 4), (other, free // 4))
    with pytest.raises(RavebotError, match=rf"^{tmp_path} has \d+ MiB free, and the build needs \d+ MiB there$"):
        workspace.check_room((tmp_path, free // 4 * 3), (other, free // 4 * 3))


def test_the_temporary_folder_is_tmpdir_and_too_little_room_there_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert workspace.temporary_folder() == tmp_path
    with pytest.raises(RavebotError, match=r"; TMPDIR can name another folder$"):
        workspace.check_room((tmp_path, 2**60))
    monkeypatch.setenv("TMPDIR", "")
    assert workspace.temporary_folder() == Path("/var/tmp")


async def test_a_folder_goes_away_with_what_a_thread_still_writes_when_the_work_is_cancelled(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write(file: Path) -> None:
        begun.set()
        assert go_on.wait(10)
        file.write_text("late")

    async def work() -> None:
        async with workspace.new_folder(tmp_path, "work-") as folder:
            await workspace.in_thread(write, folder / "file")

    task = asyncio.create_task(work())
    while not begun.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []
