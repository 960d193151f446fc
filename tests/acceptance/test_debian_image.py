"""The image that `ravebot image build --preset web` makes is built once for all tests. test_agents.py lives on it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from tests.support import debian_image
from tests.support.stage import DEBIAN_CACHE

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]


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
