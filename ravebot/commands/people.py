"""Looks up a person's GitLab user and role, and the merge request that they mean."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from ravebot.commands.permissions import SHELL, Decision, Right, decide
from ravebot.commands.refs import Ref
from ravebot.commands.verbs import Verb
from ravebot.config.model import Config
from ravebot.errors import Forbidden, NotFound
from ravebot.sandboxes.model import Actor, MergeRequest, MergeRequestRef, Person
from ravebot.sandboxes.projectfiles import ProjectFiles
from ravebot.store import merge_requests
from ravebot.store.database import Database

_LEVEL_SECONDS = 30.0
NOBODY_S_ROLE = Decision(
    False,
    "This needs the role Developer or more on GitLab, and the shell does not know who you are there.",
    "Answer in Matrix or on the merge request.",
)


class GitLabFacts(Protocol):
    """What is asked of GitLab. Raises `Unavailable` for now, `NotFound` or `Forbidden` for good."""

    async def user(self, username: str) -> Person | None: ...

    async def access_level(self, project_id: int, user_id: int) -> int: ...

    async def project(self, path_or_id: str | int) -> tuple[int, str]: ...

    async def merge_request(self, ref: MergeRequestRef) -> MergeRequest: ...

    async def file(self, project_id: int, path: str, ref: str, max_bytes: int) -> bytes: ...


@dataclass
class People:
    """Asks GitLab for roles; answers are cached for 30 seconds, so that a burst of commands costs one request."""

    config: Config
    database: Database
    gitlab: GitLabFacts
    _levels: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict)
    _ids: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> ProjectFiles:
        """What projects say in `.rave.yml`."""
        return ProjectFiles(self.database, self.gitlab)

    async def is_member(self, project_id: int, person: Person) -> bool:
        """Whether a GitLab user has any role in that project."""
        return await self._level(project_id, person.id) > 0

    async def level(self, username: str, project_id: int) -> int:
        """A GitLab user's access level in that project; 0 for none."""
        return await self._level_of(username, project_id)

    async def from_comment(self, right: Right, project_id: int, project: str, author: Person) -> Decision:
        """Whether the author of a comment has that right; `project` is the project's path."""
        level = await self._level(project_id, author.id)
        return decide(
            right,
            room_maps_project=True,
            gitlab_username=author.username,
            access_level=level or None,
            project=project,
        )

    async def from_room(
        self,
        right: Right,
        sender: str,
        *,
        project_id: int | None,
        mapped: bool,
        direct: bool,
        project: str = "",
        as_admin: bool = True,
    ) -> Decision:
        """Whether a Matrix user has that right on a project's sandboxes, in that room.

        `project` is the project's path, where the asker may read it. Not `as_admin`: only their role counts.
        """
        is_admin = as_admin and sender in self.config.matrix.admins
        username = self.config.matrix.users.get(sender)
        level = 0
        if not is_admin and username and project_id is not None:
            level = await self._level_of(username, project_id)
        return decide(
            right,
            is_admin=is_admin,
            room_maps_project=mapped,
            direct=direct,
            gitlab_username=username,
            access_level=level or None,
            project=project or "that project",
        )

    def is_known(self, sender: str) -> bool:
        """Whether a Matrix user is an admin, or tied to a GitLab user."""
        return sender in self.config.matrix.admins or sender in self.config.matrix.users

    async def has_role(self, sender: str, project_path: str) -> bool:
        """Whether a Matrix user has any role in a project; none where GitLab has no such project any more."""
        username = self.config.matrix.users.get(sender)
        if username is None:
            return False
        try:
            project_id, _ = await self.gitlab.project(project_path)
            return await self._level_of(username, project_id) > 0
        except (NotFound, Forbidden):
            return False

    async def may_command(self, sender: str, project_path: str, *, direct: bool) -> Decision | None:
        """Whether a Matrix user may command a project's sandboxes; None where GitLab has no such project any more."""
        try:
            project_id, _ = await self.gitlab.project(project_path)
            return await self.from_room(
                Right.COMMAND, sender, project_id=project_id, mapped=True, direct=direct, project=project_path
            )
        except (NotFound, Forbidden):
            return None

    async def project_id(self, sender: str, ref: Ref) -> int | None:
        """A project's id, from the database or GitLab; None if it does not exist or the sender needs no lookup."""
        known = await self.known(ref)
        if known is not None:
            return known.ref.project_id
        if sender in self.config.matrix.admins or not self.is_known(sender):
            return None
        try:
            return (await self.gitlab.project(ref.project_path))[0]
        except NotFound:
            return None

    async def known(self, ref: Ref) -> MergeRequest | None:
        """The merge request of a reference, from the database; None if it is not stored."""
        return await self.database.read(lambda tx: merge_requests.find(tx, ref.project_path, ref.iid))

    async def merge_request(self, ref: Ref) -> MergeRequest:
        """The merge request of a reference, from the database or else GitLab. Raises NotFound."""
        known = await self.known(ref)
        if known:
            return known
        project_id, _ = await self.gitlab.project(ref.project_path)
        return await self.gitlab.merge_request(MergeRequestRef(project_id, ref.iid))

    async def head(self, verb: Verb, ref: MergeRequestRef) -> MergeRequest | None:
        """The merge request's present state at GitLab; None for a verb that does not need it."""
        return await self.present(ref) if verb.needs_head else None

    async def may_still(self, actor: Actor, project_id: int, project: str, *, as_admin: bool = True) -> Decision:
        """Whether somebody who commanded something may command that project now, wherever they said it. Not `as_admin`:
        only their role counts."""
        if actor.kind == "shell":
            return SHELL if as_admin else NOBODY_S_ROLE
        if actor.kind == "matrix":
            return await self.from_room(
                Right.COMMAND,
                actor.name,
                project_id=project_id,
                mapped=False,
                direct=True,
                project=project,
                as_admin=as_admin,
            )
        level = await self._level_of(actor.name, project_id) if actor.kind == "gitlab" else 0
        return decide(
            Right.COMMAND,
            room_maps_project=True,
            gitlab_username=actor.name,
            access_level=level or None,
            project=project,
        )

    async def present(self, ref: MergeRequestRef) -> MergeRequest:
        """The merge request's present state at GitLab, for what may start its sandbox; and what its `.rave.yml` says.

        Raises NotFound, Forbidden, Unavailable.
        """
        mr = await self.gitlab.merge_request(ref)
        await self.files.know(mr, approves=True)
        return mr

    async def _level_of(self, username: str, project_id: int) -> int:
        if username not in self._ids:
            person = await self.gitlab.user(username)
            if person is None:
                return 0
            self._ids[username] = person.id
        return await self._level(project_id, self._ids[username])

    async def _level(self, project_id: int, user_id: int) -> int:
        """GitLab's access level; 0 for none."""
        key = (project_id, user_id)
        known = self._levels.get(key)
        if known and time.monotonic() - known[0] < _LEVEL_SECONDS:
            return known[1]
        level = await self.gitlab.access_level(project_id, user_id)
        self._levels[key] = (time.monotonic(), level)
        return level
