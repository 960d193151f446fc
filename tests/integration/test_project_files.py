"""`.rave.yml` at work: read from the stand-in at the merge request's commit, and followed by the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.gitlab import answers
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.notes import render_note
from ravebot.providers.base import MachineSpec
from ravebot.providers.memory import MemoryProvider
from ravebot.sandboxes.model import MergeRequest as KnownMergeRequest
from ravebot.sandboxes.model import Sandbox
from ravebot.sandboxes.projectfiles import ProjectFiles
from tests.support.gitlab import DEVELOPER, GitLabServer, MergeRequest, Project, User, entities
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration

GIB = 1024**3
ASKS = """\
memory: 1GiB
vcpus: 3
disk: 2GiB
lifetime: 90m
setup: ["make ready"]
smoke_tests:
  - run: make check
links:
  - {name: Grafana, path: /grafana/}
"""


class Recorder(MemoryProvider):
    """Keeps what it is asked to create."""

    def __init__(self) -> None:
        super().__init__()
        self.specs: list[MachineSpec] = []

    async def create(self, spec: MachineSpec) -> None:
        self.specs.append(spec)
        await super().create(spec)


@dataclass
class Place:
    """A GitLab with a project, our client to it, and a pool."""

    server: GitLabServer
    project: Project
    alice: User
    yard: Yard
    gitlab: GitLab
    provider: Recorder

    def open(self, file: str | bytes | None = None, **more: Any) -> MergeRequest:
        files = {} if file is None else {".rave.yml": file}
        return self.server.open_merge_request(self.project, self.alice, files=files, **more)

    async def told(self, mr: MergeRequest) -> str:
        """As when a webhook reports it."""
        known = self.known(mr)
        await ProjectFiles(self.yard.database, self.gitlab).know(known)
        return await self.yard.told(known)

    async def ready(self, mr: MergeRequest) -> None:
        known = self.known(mr)
        await self.yard.until(lambda: self.yard.is_in(known, "ready"))

    def known(self, mr: MergeRequest) -> KnownMergeRequest:
        """As GitLab's API tells of it."""
        return answers.merge_request(entities.merge_request(self.server.url, mr))

    async def latest(self, mr: MergeRequest) -> Sandbox:
        return await self.yard.latest(self.known(mr))

    async def note(self, mr: MergeRequest) -> str:
        known = self.known(mr)
        view = await self.yard.read(lambda tx: self.yard.views.latest(tx, known.ref))
        assert view
        return render_note(view, "<!-- -->")

    def commands(self) -> list[str]:
        """What was run in guests."""
        asked = (one.environment.get("RAVE_COMMAND", "") for one in self.provider.commands)
        return [command for command in asked if command]


@asynccontextmanager
async def a_place(folder: Path, **changes: Any) -> AsyncIterator[Place]:
    provider = Recorder()
    async with GitLabServer() as server, a_yard(folder, provider, **changes) as yard:
        bot, alice = server.add_user("ravebot", bot=True), server.add_user("alice")
        project = server.add_project("group/app")
        for user in (bot, alice):
            server.set_role(project, user, DEVELOPER)
        gitlab = GitLab(server.url, server.token_for(bot), yard.clock, 2)
        try:
            yield Place(server, project, alice, yard, gitlab, provider)
        finally:
            await gitlab.close()


async def test_a_merge_request_gets_the_memory_set_up_and_tests_that_its_file_asks_for(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        mr = place.open(ASKS)
        assert await place.told(mr) == "queued"
        await place.ready(mr)
        (spec,) = place.provider.specs
        assert (spec.memory_bytes, spec.vcpus, spec.disk_bytes) == (GIB, 3, 2 * GIB)
        assert place.commands() == ["make ready", "make check"]
        sandbox = await place.latest(mr)
        assert sandbox.expires_at and sandbox.ready_at
        assert sandbox.expires_at - sandbox.ready_at == timedelta(minutes=90)
        print(await place.note(mr))
