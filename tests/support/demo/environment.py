"""GitLab's environments page in the demo: it shows the sandbox with its link, and its Stop button ends it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape

import aiohttp

from tests.support.demo.screen import Screen
from tests.support.demo.watch import DemoError, Watch, fact
from tests.support.stage import Stage

_SECONDS = 30


@dataclass(frozen=True)
class Page:
    """The page as Alice's browser gets it."""

    stage: Stage
    screen: Screen
    watch: Watch

    @property
    def url(self) -> str:
        return f"{self.stage.gitlab.url}/{self.stage.project.path}/-/environments"

    async def shows(self) -> None:
        """The sandbox is there, with the link that the note has, and its commit's deployment went well."""
        web, mr = fact(self.watch.note_rows, "Web"), self.watch.mr
        assert mr

        async def is_right() -> bool:
            text = await self._get()
            return f"review/mr-{mr.iid}" in text and f'href="{web}"' in text and await self._is_deployed()

        await self.watch.until_async("the environment with its link and deployment", is_right, _SECONDS)
        name, state, description = self.stage.gitlab.statuses(self.stage.project, mr.sha)[-1]
        self.screen.said("GitLab", "ravebot", f"environment review/mr-{mr.iid}: available, Open → {web}\n{self.url}")
        self.screen.seen(
            f"GitLab's environments page links to the sandbox, and the commit has the status {name}: {state}"
            f" ({description})"
        )

    async def stop(self) -> None:
        """Press the button."""
        action = re.search(r'action="([^"]+/stop)"', await self._get())
        if action is None:
            raise DemoError(f"{self.url} has no button that stops the environment")
        async with self._session() as session, session.post(self.stage.gitlab.url + unescape(action[1])) as answer:
            if answer.status != 200:
                raise DemoError(f"GitLab's stand-in answered {answer.status} to the button")
        self.screen.said("GitLab", "alice", f"presses Stop on {self.url}")

    async def is_gone(self) -> None:
        async def look() -> bool:
            return "review/mr-" not in await self._get()

        await self.watch.until_async("an environments page without it", look, _SECONDS)
        self.screen.seen("the environment is stopped and deleted")

    async def _is_deployed(self) -> bool:
        assert self.watch.mr
        return re.search(r">success<.*" + self.watch.mr.sha[:8], await self._get()) is not None

    async def _get(self) -> str:
        async with self._session() as session, session.get(self.url) as answer:
            return await answer.text()

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS))
