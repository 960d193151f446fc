"""One run: sets everything up, has the pictures taken, and always takes everything away."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.demo import sample
from tests.support.demo.doors import hand_over
from tests.support.pictures import figures, people
from tests.support.pictures.agents import SETTINGS as AGENTS
from tests.support.pictures.agents import AgentStory
from tests.support.pictures.album import Album
from tests.support.pictures.nheko import WIDE, Nheko
from tests.support.pictures.picture import Picture
from tests.support.pictures.programs import PictureError
from tests.support.pictures.story import SETTINGS, Story
from tests.support.stage import ROOT, Guest, Stage

_NARROW = 420
_INTERRUPTED = 130


async def run(folder: Path, docs: bool, agents: bool, dashboards: bool) -> int:
    """The exit code: 0 when every picture was taken."""
    taking = asyncio.create_task(_of_dashboards(folder, docs) if dashboards else _take(folder, docs, agents))
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


async def _take(folder: Path, docs: bool, agents: bool) -> None:
    async with AsyncExitStack() as stack:
        print("Setting up Synapse, the GitLab stand-in, a network …", flush=True)
        stage = await stack.enter_async_context(
            Stage(AGENTS, guest=Guest.DEBIAN, files=sample.FILES) if agents else Stage(SETTINGS)
        )
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
        story = AgentStory(stage, album) if agents else Story(stage, album)
        await (story.life() if docs and not agents else story.tell())
        shown = _of_agents(album, clients["wide"]) if agents else _of_life(album, clients["wide"])
        await _for_docs(shown, ROOT / "docs" if docs else folder)
    hand_over(folder, *folder.rglob("*"))


async def _of_dashboards(folder: Path, docs: bool) -> None:
    print("Setting up Synapse, the GitLab stand-in, a network, Prometheus …", flush=True)
    for path in await figures.take(folder, docs):
        hand_over(path)
        print(f"{path}: {path.stat().st_size} bytes", flush=True)
    hand_over(folder)


def _of_life(album: Album, client: Nheko) -> dict[str, Picture]:
    room, thread, merge_request = _kept(
        album, "warned/room-wide", "thread/thread-wide", "extended-again/merge-request-1"
    )
    room = client.timeline(room).without_blank_rows()
    return {"life-room": room, "life-thread": thread, "life-merge-request": merge_request}


def _of_agents(album: Album, client: Nheko) -> dict[str, Picture]:
    asked, merge_request = _kept(album, "asked/room-wide", "allowed-there/talk")
    return {
        "agent-room": client.timeline(asked).from_first_gap().without_blank_rows(),
        "agent-merge-request": merge_request,
    }


def _kept(album: Album, *names: str) -> list[Picture]:
    if missing := [name for name in names if name not in album.kept]:
        raise PictureError(f"not taken: {', '.join(missing)}")
    return [album.kept[name] for name in names]


async def _for_docs(shown: dict[str, Picture], folder: Path) -> None:
    """The pictures of the documentation."""
    for name, picture in shown.items():
        path = folder / f"{name}.png"
        await picture.save(path)
        hand_over(path)
        print(f"{path}: {path.stat().st_size} bytes", flush=True)
