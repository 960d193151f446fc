"""Where the pictures go: a folder for each moment, with the room as two people see it, as text and as events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.demo.play import page
from tests.support.gitlab import MergeRequest
from tests.support.pictures import browser, words
from tests.support.pictures.nheko import Nheko
from tests.support.pictures.picture import Picture
from tests.support.stage import Stage


@dataclass
class Album:
    """`clients` are the open Nhekos, by the name that their pictures get."""

    folder: Path
    stage: Stage
    clients: Mapping[str, Nheko]
    names: Mapping[str, str]
    kept: dict[str, Picture] = field(default_factory=dict)
    _moments: int = 0

    async def moment(self, name: str, *shown: MergeRequest) -> None:
        """The room in every client, and these merge requests' pages; `kept` holds them as `name/file`."""
        folder = self.next_folder(name)
        for label, picture in (await self.windows()).items():
            await self.keep(folder, name, f"room-{label}", picture)
        await self.write_words(folder)
        for mr in shown:
            await self.page(folder, name, mr)

    async def glance(self, name: str) -> None:
        """The room in every client while somebody speaks in it: nothing is waited for."""
        folder = self.next_folder(name)
        taken = await asyncio.gather(*(client.glance() for client in self.clients.values()))
        for label, picture in zip(self.clients, taken, strict=True):
            await self.keep(folder, name, f"room-{label}", picture)
        await self.write_words(folder)

    async def page(self, folder: Path, moment: str, mr: MergeRequest) -> None:
        """The merge request as it is opened, and with everything unfolded."""
        url = page(self.stage, mr)
        await self.keep(folder, moment, f"merge-request-{mr.iid}", await browser.page(url))
        await self.keep(folder, moment, f"merge-request-{mr.iid}-unfolded", await browser.page(url, unfolded=True))

    async def talk(self, moment: str, mr: MergeRequest) -> None:
        """Of a merge request's page its head, commits and threads, for the documentation."""
        hidden = "main > .note, main > .system, main > .description { display: none }"
        self.kept[f"{moment}/talk"] = await browser.page(page(self.stage, mr), style=hidden)

    async def windows(self) -> dict[str, Picture]:
        """What every client shows."""
        taken = await asyncio.gather(*(client.settled() for client in self.clients.values()))
        return dict(zip(self.clients, taken, strict=True))

    def next_folder(self, name: str) -> Path:
        self._moments += 1
        folder = self.folder / f"{self._moments:02}-{name}"
        folder.mkdir(parents=True)
        print(f"{folder.name} …", flush=True)
        return folder

    async def keep(self, folder: Path, moment: str, name: str, picture: Picture) -> None:
        self.kept[f"{moment}/{name}"] = picture
        await picture.save(folder / f"{name}.png")

    async def write_words(self, folder: Path) -> None:
        """room.txt and room.json: the room as it stands."""
        stage = self.stage
        events = await stage.matrix_ops.events(stage.room)
        (folder / "room.json").write_text(json.dumps(events, indent=1, ensure_ascii=False))
        (folder / "room.txt").write_text(words.as_text(events, self.names, stage.matrix_bot.user_id))
