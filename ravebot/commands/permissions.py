"""Who may do what: one pure decision for every door (rooms, direct chats, comments, the shell)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from ravebot.sandboxes.model import Actor

DEVELOPER = 30
"""GitLab's access level from which a member may push (https://docs.gitlab.com/api/access_requests/)."""

_ROLES = {
    5: "Minimal Access",
    10: "Guest",
    15: "Planner",
    20: "Reporter",
    30: "Developer",
    40: "Maintainer",
    50: "Owner",
}


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
    """`rule` is the rule that allowed or refused, in a sentence for the asker; `advice` says what would help."""

    allowed: bool
    rule: str
    advice: str = ""

    @property
    def refusal(self) -> str:
        """The reply to whoever may not."""
        return f"Refused: {self.rule} {self.advice}".rstrip()


@dataclass(frozen=True)
class Asker:
    """The person who gave a command, and the permission decision that was made just before."""

    actor: Actor
    decision: Decision


SHELL = Decision(True, "Only root and the bot's own user can use the admin socket, and they may do everything.")


def decide(
    right: Right,
    *,
    room_maps_project: bool,
    gitlab_username: str | None,
    access_level: int | None,
    is_admin: bool = False,
    direct: bool = False,
    project: str = "that project",
) -> Decision:
    """Whether somebody has that right on a project's sandboxes.

    `room_maps_project`: the place where it was said belongs to the project (always so for a comment on its merge
    request). `access_level`: theirs on that project, None when they have none. `project`:
    its path, where the asker may read it.
    """
    if right is Right.NONE and (direct or room_maps_project or is_admin):
        return Decision(True, "It is open to everybody here.")
    if not room_maps_project and not direct:
        where = "Ask in a room that is, or in a direct chat with me."
        return Decision(False, "This room is not mapped to that project.", where)
    if is_admin:
        return Decision(True, "You are an admin of ravebot.")
    if right is Right.READ and room_maps_project:
        return Decision(True, "It is open to everybody here.")
    if gitlab_username is None:
        whom = "Ask an admin of ravebot to add it to the users in its configuration."
        return Decision(False, "Your Matrix account is not tied to a GitLab user.", whom)
    whom = f"This needs the role Developer or more: ask a Maintainer of {project}."
    if access_level is None:
        return Decision(False, f"{gitlab_username} is no member of {project} on GitLab.", whom)
    return Decision(access_level >= DEVELOPER, f"{gitlab_username} is {role(access_level)} in {project}.", whom)


def role(access_level: int) -> str:
    """GitLab's name for an access level."""
    return _ROLES.get(access_level, f"access level {access_level}")
