"""GitLab's answers about people, as `commands.people` asks for them."""

from __future__ import annotations

from collections.abc import Mapping

from ravebot.errors import FileNotFound, NotFound
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, Person


class Levels:
    """The users with a role in every project, and their access levels; `error`: what every request ends with."""

    def __init__(self, levels: Mapping[str, int], error: Exception | None = None) -> None:
        self._names = {name: number for number, name in enumerate(levels, 1)}
        self._levels = {self._names[name]: level for name, level in levels.items()}
        self._error = error

    async def user(self, username: str) -> Person | None:
        if self._error:
            raise self._error
        return Person(self._names[username], username) if username in self._names else None

    async def access_level(self, project_id: int, user_id: int) -> int:
        assert project_id
        return self._levels[user_id]

    async def project(self, path_or_id: str | int) -> tuple[int, str]:
        raise NotFound(str(path_or_id))

    async def merge_request(self, ref: MergeRequestRef) -> MergeRequest:
        raise NotFound(str(ref))

    async def file(self, project_id: int, path: str, ref: str, max_bytes: int) -> bytes:
        raise FileNotFound(path)
