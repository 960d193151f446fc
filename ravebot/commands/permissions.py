"""Who may do what: one pure decision for every door (rooms, direct chats, comments, the shell)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from ravebot.sandboxes.model import Actor

DEVELOPER = 30
"""GitLab's access level from which a member may push (https://docs.gitlab.com/api/access_requests/)."""

_ROLES = {10: "Guest", 15: "Planner", 20: "Reporter", 30: "Developer", 40: "Maintainer", 50: "Owner"}


class Right(Enum):
    """The right that a verb requires."""

    NONE = auto()
    """Everybody who can use this door."""
    READ = auto()
    """Everybody in a room that is mapped to the project; such a verb never shows how to access a sandbox."""
    COMMAND = auto()
    """The role Developer or more in the project."""


@dataclass(frozen=True)
class Decision:
    """`rule` is the rule that allowed or refused, in words for the asker."""

    allowed: bool
    rule: str


@dataclass(frozen=True)
class Asker:
    """The person who gave a command, and the permission decision that was made just before."""

    actor: Actor
    decision: Decision


SHELL = Decision(True, "only root and the bot's own user can use the admin socket, and they may do everything")


def decide(
    right: Right,
    *,
    room_maps_project: bool,
    gitlab_username: str | None,
    access_level: int | None,
    is_admin: bool = False,
    direct: bool = False,
) -> Decision:
    """Whether somebody has that right on a project's sandboxes.

    `room_maps_project`: the place where it was said belongs to the project (always so for a comment on its merge
    request). `access_level`: theirs on that project, None when they have none.
    """
    if right is Right.NONE and (direct or room_maps_project or is_admin):
        return Decision(True, "it is open to everybody here")
    if not room_maps_project and not direct:
        return Decision(False, "this room is not mapped to that project: ask where it is, or in a direct chat")
    if is_admin:
        return Decision(True, "you are one of matrix.admins")
    if right is Right.READ and room_maps_project:
        return Decision(True, "it is open to everybody here")
    if gitlab_username is None:
        return Decision(
            False, "your Matrix account is not tied to a GitLab user: ask an admin to add it to matrix.users"
        )
    if access_level is None:
        return Decision(False, f"{gitlab_username} is no member of that project on GitLab")
    if access_level < DEVELOPER:
        return Decision(
            False, f"{gitlab_username} is {role(access_level)} in that project, and it takes Developer or more"
        )
    return Decision(True, f"{gitlab_username} is {role(access_level)} in that project")


def role(access_level: int) -> str:
    """GitLab's name for an access level."""
    return _ROLES.get(access_level, f"access level {access_level}")
