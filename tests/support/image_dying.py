"""The loop of images from pipelines in a process of its own, which a test kills, or which kills itself at a step."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ravebot.gitlab.client import GitLab
from ravebot.images.pipelines.loop import PipelineImageLoop
from ravebot.store import pipeline_images
from ravebot.store.database import Database, Transaction
from tests.support.yard import a_yard

T = TypeVar("T")


class StruckDatabase(Database):
    """Dies where a file's row is written but not committed, and right after the commit that removes one."""

    async def write(self, function: Callable[[Transaction], T], *, urgent: bool = False, synced: bool = True) -> T:
        counts = [0, 0]

        def watched(tx: Transaction) -> T:
            counts[0] = len(pipeline_images.files(tx))
            result = function(tx)
            counts[1] = len(pipeline_images.files(tx))
            if counts[1] > counts[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        result = await super().write(watched, urgent=urgent, synced=synced)
        if counts[1] < counts[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def make_images_until_killed(folder: Path, images: Path, url: str, token: str, keep: str) -> None:
    """What the process runs, with the database and the folder of images that are there."""
    asyncio.run(_make(folder, images, url, token, keep))


async def _make(folder: Path, images: Path, url: str, token: str, keep: str) -> None:
    kept = {"folder": str(images), "largest": "128MiB", "keep": keep}
    async with a_yard(folder, opens=StruckDatabase, provider={"pipeline_images": kept}, gitlab={"url": url}) as yard:
        gitlab = GitLab(url, token, yard.clock, 5)
        await PipelineImageLoop(yard.config, yard.database, yard.lifecycle, gitlab.pipelines, lambda _: 1024**4).run()
