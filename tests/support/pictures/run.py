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
from tests.support.pictures.programs import PictureError
from tests.support.pictures.story import SETTINGS, Story
from tests.support.stage import ROOT, Stage

_NARROW = 420
_INTERRUPTED = 130


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
        await (story.life() if docs else story.tell())
        await _for_docs(album, clients["wide"], ROOT / "docs" if docs else folder)
    hand_over(folder, *folder.rglob("*"))


async def _for_docs(album: Album, client: Nheko, folder: Path) -> None:
    """The three pictures of the documentation."""
    names = ("warned/room-wide", "thread/thread-wide", "extended-again/merge-request-1")
    if missing := [name for name in names if name not in album.kept]:
        raise PictureError(f"not taken: {', '.join(missing)}")
    room, thread, merge_request = (album.kept[name] for name in names)
    for name, picture in {
        "life-room": client.timeline(room).without_blank_rows(),
        "life-thread": thread,
        "life-merge-request": merge_request,
    }.items():
        path = folder / f"{name}.png"
        await picture.save(path)
        hand_over(path)
        print(f"{path}: {path.stat().st_size} bytes", flush=True)
