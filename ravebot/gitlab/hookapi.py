"""The calls of GitLab's API that read, make, edit and remove the webhooks of a project."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

from ravebot.clock import SystemClock
from ravebot.config.patterns import matches_project
from ravebot.errors import NotFound, Unavailable
from ravebot.gitlab import answers
from ravebot.gitlab.fields import Json, Malformed
from ravebot.gitlab.hooks import was_refused
from ravebot.gitlab.route import DIRECT, GitlabRoute
from ravebot.gitlab.transport import TIMEOUT_SECONDS, Transport

T = TypeVar("T")
MAINTAINER = 40
"""https://docs.gitlab.com/api/access_requests/#valid-access-levels"""


@dataclass(frozen=True)
class HookedProject:
    """A project as the bot sees it; `level` is the role of the bot's user there, 0 if GitLab names none."""

    id: int
    path: str
    level: int


class HookApi:
    """One GitLab, one token; `close` when done. Raises what `Transport` raises, but Unavailable for Malformed."""

    def __init__(
        self, url: str, token: str, timeout_seconds: float = TIMEOUT_SECONDS, route: GitlabRoute = DIRECT
    ) -> None:
        self.url = url.rstrip("/")
        self._transport = Transport(self.url, token, SystemClock(), timeout_seconds, route)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="gitlab-hooks")

    async def close(self) -> None:
        """Accept no more calls, and wait for running ones."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
        self._transport.close()

    async def me(self) -> str:
        """The name of the bot's user. Raises Unavailable if GitLab can't be used at all."""
        return await self._call(lambda: answers.person(self._transport.get("/user")).username)

    async def project(self, path_or_id: str | int) -> HookedProject:
        def ask() -> HookedProject:
            body = self._transport.get(f"/projects/{quote(str(path_or_id), safe='')}")
            identity, full = answers.project(body)
            return HookedProject(identity, full, role_level(body))

        return await self._call(ask)

    async def matching(self, patterns: tuple[str, ...]) -> list[str]:
        """The paths of the projects under the patterns that the bot's user is a member of."""

        def gather() -> list[str]:
            listed = self._transport.list("/projects", membership="true", simple="true", archived="false")
            paths = [answers.project(one)[1] for one in listed]
            return sorted(path for path in paths if matches_project(patterns, path))

        return await self._call(gather)

    async def hooks(self, project: int) -> list[Json]:
        return await self._call(lambda: list(self._transport.list(f"/projects/{project:d}/hooks")))

    async def create(self, project: int, body: dict[str, object]) -> Json:
        return await self._call(lambda: self._transport.post(f"/projects/{project:d}/hooks", body))

    async def edit(self, project: int, hook: int, body: dict[str, object]) -> Json:
        return await self._call(lambda: self._transport.put(f"/projects/{project:d}/hooks/{hook:d}", body))

    async def delete(self, project: int, hook: int) -> None:
        """Remove it; it may be gone already."""

        def remove() -> None:
            try:
                self._transport.delete(f"/projects/{project:d}/hooks/{hook:d}")
            except NotFound:
                return

        await self._call(remove)

    async def latest_was_refused(self, project: int, hook: int) -> bool:
        """Whether ravebot refused the newest delivery (401); False where GitLab doesn't tell (before 17.3)."""

        def ask() -> bool:
            events = self._transport.list(f"/projects/{project:d}/hooks/{hook:d}/events", per_page="1")
            try:
                return was_refused([next(events)])
            except (NotFound, StopIteration):
                return False

        return await self._call(ask)

    async def test(self, project: int, hook: int) -> None:
        """Let GitLab send a merge request's event now. Raises Unacceptable with GitLab's words if that failed.

        https://docs.gitlab.com/api/project_webhooks/#trigger-a-test-project-webhook
        """
        address = f"/projects/{project:d}/hooks/{hook:d}/test/merge_requests_events"
        await self._call(lambda: self._transport.post(address, {}))

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function)
        except Malformed as error:
            raise Unavailable(f"GitLab answered with something that is not its API ({error})") from error


def role_level(body: Json) -> int:
    """The role of the token's user on a project, as GitLab's answer about the project has it; 0 for none."""
    permissions = body.get("permissions")
    found = [0]
    for kind in ("project_access", "group_access"):
        access = permissions.get(kind) if isinstance(permissions, dict) else None
        level = access.get("access_level") if isinstance(access, dict) else None
        if isinstance(level, int):
            found.append(level)
    return max(found)
