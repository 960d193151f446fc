"""Who may do what: one pure decision for every door (rooms, direct chats, comments on a merge request)."""

from __future__ import annotations

from dataclasses import dataclass

DEVELOPER = 30
"""GitLab's access level from which a member may push (https://docs.gitlab.com/api/access_requests/)."""

OPEN_TO_READERS = frozenset({"help", "list"})
"""What may be read by anyone who is in a mapped room; it names no way into a sandbox."""
_ALWAYS = frozenset({"help", "whoami"})

_ROLES = {10: "Guest", 15: "Planner", 20: "Reporter", 30: "Developer", 40: "Maintainer", 50: "Owner"}


@dataclass(frozen=True)
class Decision:
    """`rule` is the rule that allowed or refused, in words for the one who asked."""

    allowed: bool
    rule: str


def decide(
    verb: str,
    *,
    is_admin: bool,
    room_maps_project: bool,
    direct: bool,
    gitlab_username: str | None,
    access_level: int | None,
) -> Decision:
    """Whether somebody may do that to a project's sandboxes.

    `room_maps_project`: the place where it was said belongs to the project (always so for a comment on its merge
    request). `access_level`: theirs on that project, None when they have none.
    """
    if verb in _ALWAYS and (direct or room_maps_project or is_admin):
        return Decision(True, f"{verb} is open to everybody here")
    if not room_maps_project and not direct:
        return Decision(False, "this room is not mapped to that project: ask where it is, or in a direct chat")
    if is_admin:
        return Decision(True, "you are one of matrix.admins")
    if verb in OPEN_TO_READERS and room_maps_project:
        return Decision(True, f"{verb} is open to everybody here")
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
