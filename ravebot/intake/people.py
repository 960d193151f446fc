"""Who somebody is to GitLab, and whether they may: the permission rules of `matrix.permissions`, fed with facts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ravebot.config.model import Config
from ravebot.gitlab.client import GitLab
from ravebot.matrix.permissions import Decision, decide
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef
from ravebot.store import merge_requests
from ravebot.store.database import Database

_LEVEL_SECONDS = 30.0


@dataclass
class People:
    """Asks GitLab for roles; an answer is good for half a minute, so that a burst of commands costs one question."""

    config: Config
    database: Database
    gitlab: GitLab
    _levels: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict)
    _ids: dict[str, int] = field(default_factory=dict)

    async def from_comment(self, verb: str, project_id: int, user_id: int, username: str) -> Decision:
        """Whether the author of a comment may do that."""
        level = await self._level(project_id, user_id)
        return decide(
            verb,
            is_admin=False,
            room_maps_project=True,
            direct=False,
            gitlab_username=username,
            access_level=level or None,
        )

    async def from_room(
        self, verb: str, sender: str, *, project_id: int | None, mapped: bool, direct: bool
    ) -> Decision:
        """Whether a Matrix user may do that to a project's sandboxes, from that room."""
        is_admin = sender in self.config.matrix.admins
        username = self.config.matrix.users.get(sender)
        level = 0
        if not is_admin and username and project_id is not None:
            level = await self.level_of(username, project_id)
        return decide(
            verb,
            is_admin=is_admin,
            room_maps_project=mapped,
            direct=direct,
            gitlab_username=username,
            access_level=level or None,
        )

    def is_known(self, sender: str) -> bool:
        """Whether a Matrix user is an admin, or tied to a GitLab user."""
        return sender in self.config.matrix.admins or sender in self.config.matrix.users

    async def level_of(self, username: str, project_id: int) -> int:
        """GitLab's access level; 0 for none."""
        if username not in self._ids:
            person = await self.gitlab.user(username)
            if person is None:
                return 0
            self._ids[username] = person.id
        return await self._level(project_id, self._ids[username])

    async def _level(self, project_id: int, user_id: int) -> int:
        key = (project_id, user_id)
        known = self._levels.get(key)
        if known and time.monotonic() - known[0] < _LEVEL_SECONDS:
            return known[1]
        level = await self.gitlab.access_level(project_id, user_id)
        self._levels[key] = (time.monotonic(), level)
        return level

    async def merge_request(self, project_path: str, iid: int) -> MergeRequest:
        """By what people write; asked of GitLab where we have not heard of it. Raises NotFound."""
        known = await self.database.read(lambda tx: merge_requests.find(tx, project_path, iid))
        if known:
            return known
        project_id, _ = await self.gitlab.project(project_path)
        return await self.gitlab.merge_request(MergeRequestRef(project_id, iid))
