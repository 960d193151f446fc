"""One run: sets everything up, has the pictures taken, and always takes everything away."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.demo.doors import hand_over
from tests.support.pictures import people
from tests.support.pictures.album import Album
from tests.support.pictures.nheko import WIDE, Nheko
from tests.support.pictures.story import SETTINGS, Story
from tests.support.stage import ROOT, Stage

_NARROW = 420
_INTERRUPTED = 130
_DOCS = {
    "life-room": "warned/room-wide",
    "life-thread": "thread/thread-wide",
    "life-merge-request": "extended-again/merge-request-1",
}
"""The three of the documentation, and which picture each is."""


async def run(folder: Path, docs: bool) -> int:
    """The exit code: 0 when every picture was taken."""
    taking = asyncio.create_task(_take(folder, docs))
    told = False

    def interrupt() -> None:
        """Once: what takes everything away must not be interrupted too."""
        nonlocal told
        if not told:
            told = taking.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    await asyncio.wait({taking})
    if taking.cancelled():
        print("Interrupted; everything that was started has ended.")
        return _INTERRUPTED
    taking.result()
    return 0


async def _take(folder: Path, docs: bool) -> None:
    async with AsyncExitStack() as stack:
        print("Setting up Synapse, the GitLab stand-in, a network …", flush=True)
        stage = await stack.enter_async_context(Stage(SETTINGS))
        bob = await people.gather(stage)
        homes = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ravebot-pictures-")))
        clients = {
            "wide": Nheko(homes / "alice", stage.matrix_alice, WIDE),
            "narrow": Nheko(homes / "bob", bob, _NARROW),
        }
        print("Starting the Matrix client for two people …", flush=True)
        for client in clients.values():
            await stack.enter_async_context(client)
        await stage.start()
        await asyncio.gather(*(client.open(stage.room) for client in clients.values()))
        names = {user.user_id: name for name, user in (("Alice", stage.matrix_alice), ("Bob", bob))}
        names |= {stage.matrix_ops.user_id: "Ops", stage.matrix_bot.user_id: "ravebot"}
        album = Album(folder, stage, clients, names)
        story = Story(stage, album)
        if docs:
            await story.life()
            await _to_docs(album)
        else:
            await story.tell()
    hand_over(folder, *folder.rglob("*"))


async def _to_docs(album: Album) -> None:
    for name, taken in _DOCS.items():
        path = ROOT / "docs" / f"{name}.png"
        await album.kept[taken].save(path)
        hand_over(path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes", flush=True)
