"""A sandbox's whole life on the image that `ravebot image build --preset web` makes."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import pytest

from tests.acceptance.test_sandbox_life import assert_nothing_left
from tests.support import debian_image
from tests.support.crashes import rows
from tests.support.stage import DEBIAN_CACHE, Guest, Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
_READY_SECONDS = 240
_GROWN_BYTES = 3.5 * 1024**3  # of the stage's 4 GiB; the image has less than 2


async def test_two_who_want_the_image_at_once_get_the_same_one_and_it_is_built_once() -> None:
    with tempfile.TemporaryDirectory(prefix="ravebot-debian-") as folder:
        copies = [Path(folder, name) for name in ("one", "two")]
        await asyncio.gather(*(debian_image.place(DEBIAN_CACHE, copy) for copy in copies))
        image = debian_image.cached(DEBIAN_CACHE)
        assert [copy.read_bytes() == image.read_bytes() for copy in copies] == [True, True]
        built = image.stat()
        await debian_image.place(DEBIAN_CACHE, copies[0])
        assert (image.stat().st_ino, image.stat().st_mtime_ns) == (built.st_ino, built.st_mtime_ns)
        assert [path.name for path in DEBIAN_CACHE.iterdir() if path.is_dir()] == [image.parent.name]


async def test_a_merge_request_lives_its_whole_life_on_the_debian_image() -> None:
    async with Stage(guest=Guest.DEBIAN) as stage:
        await stage.start()
        mr = stage.open_merge_request(files={"index.html": "<h1>First</h1>\n"})
        note = await stage.ready(mr, _READY_SECONDS)
        script = "id -un; cat /srv/merge-request/index.html; stat -f -c '%b %S' /srv/merge-request; sudo id -un"
        inside = await asyncio.to_thread(stage.ssh, note, "alice", script)
        assert inside.returncode == 0, inside.stderr
        user, code, file_system, root = inside.stdout.splitlines()
        assert (user, code, root) == ("agent", "<h1>First</h1>", "root")
        blocks, block_bytes = map(int, file_system.split())
        assert blocks * block_bytes > _GROWN_BYTES
        stranger = await asyncio.to_thread(stage.ssh, note, "mallory", "true")
        assert "Permission denied (publickey)" in stranger.stderr
        assert "First" in await stage.web(note)

        # A reviewer's key is let in while they are one; what they have open ends when they are none any more.
        stage.gitlab.add_key(stage.bob, stage.public_key("mallory"))
        stage.gitlab.assign(mr, stage.bob)

        async def is_let_in() -> bool:
            return (await asyncio.to_thread(stage.ssh, note, "mallory", "true")).returncode == 0

        await stage.until(is_let_in, 60, "a new reviewer is not let in")
        session = asyncio.create_task(asyncio.to_thread(stage.ssh, note, "mallory", "sleep 55; echo stayed"))
        own = asyncio.create_task(asyncio.to_thread(stage.ssh, note, "alice", "sleep 25; echo stayed"))
        await asyncio.sleep(3)
        stage.gitlab.assign(mr)
        assert ((await session).returncode, (await session).stdout) == (255, "")
        assert (await own).stdout == "stayed\n"
        (told,) = rows(
            stage, "SELECT data FROM events WHERE kind = 'access.changed' AND data LIKE '%\"out\":[\"bob\"]%'"
        )
        assert json.loads(told["data"])["ended"] == 1
        assert not await is_let_in()

        stage.gitlab.push(mr, {"index.html": "<h1>Second</h1>\n"})

        async def shows_what_was_pushed() -> bool:
            return "Second" in await stage.web(note)

        await stage.until(shows_what_was_pushed, 60, "the page does not show what was pushed")
        stage.gitlab.comment(mr, stage.alice, "/sandbox stop")
        await stage.note_says(mr, "Sandbox ended", 90)
        (ended,) = rows(stage, "SELECT end_reason, end_detail FROM sandboxes")
        assert ended["end_detail"] == ""  # nobody had to switch it off
        assert_nothing_left(stage)
