"""Parses answers of GitLab's API (https://docs.gitlab.com/api/). Raises Malformed for an answer of another form."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ravebot.gitlab import fields
from ravebot.gitlab.events import MAX_COMMENT
from ravebot.gitlab.fields import Json, Malformed
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, Person
from ravebot.sshkeys import parse

_AT_ONCE = timedelta(seconds=1)
"""Times that GitLab sets in one step differ by at most this."""


@dataclass(frozen=True)
class Note:
    """A comment as the API lists it."""

    id: int
    author: Person
    text: str
    system: bool
    created_at: datetime | None
    changed_at: datetime | None
    """When it changed last, if that can only have been an edit or a reaction; otherwise None."""


def person(body: Json) -> Person:
    return Person(fields.identifier(body, "id"), fields.text(body, "username", 255))


def version(body: Json) -> str:
    return fields.text(body, "version", 100)


def project(body: Json) -> tuple[int, str]:
    return fields.identifier(body, "id"), fields.text(body, "path_with_namespace", 1024)


def merge_request(body: Json) -> MergeRequest:
    """`head_sha` is "" while the merge request has no commit."""
    iid = fields.identifier(body, "iid")
    path, separator, number = fields.text(fields.mapping(body, "references"), "full", 1100).rpartition("!")
    if not separator or number != str(iid):
        raise Malformed("references.full is no full reference")
    people = [
        person(item)
        for key in ("assignees", "reviewers")
        for item in fields.listing(body, key)
        if isinstance(item, dict)
    ]
    return MergeRequest(
        ref=MergeRequestRef(fields.identifier(body, "project_id"), iid),
        project_path=path,
        title=fields.text(body, "title", 1024),
        web_url=fields.web_url(body, "web_url"),
        source_branch=fields.text(body, "source_branch", 1024),
        # null when the fork was deleted; no project has the id 0, so the merge request still counts as from a fork
        source_project_id=fields.optional_identifier(body, "source_project_id") or 0,
        head_sha=fields.sha(body, "sha") if body.get("sha") else "",
        author=person(fields.mapping(body, "author")),
        people=tuple(dict.fromkeys(people)),
        target_branch=fields.text(body, "target_branch", 1024) if "target_branch" in body else "",
        labels=tuple(fields.texts(body, "labels", 255)),
        draft=fields.flag(body, "draft"),
        state=fields.state(body),
        updated_at=fields.moment(body, "updated_at"),
    )


def access_level(body: Json) -> int:
    """The role's number; 0 for a member who is blocked or still awaits approval."""
    if body.get("state") != "active" or body.get("membership_state", "active") != "active":
        return 0
    return fields.optional_identifier(body, "access_level") or 0


def ssh_key(body: Json, now: datetime) -> str | None:
    """Type and Base64 of a key for logging in; None if it expired, is only for signing, or is invalid."""
    if body.get("usage_type", "auth_and_signing") not in {"auth", "auth_and_signing"}:
        return None
    if body.get("expires_at") is not None:
        expires = fields.moment(body, "expires_at")
        if expires is None or expires <= now:
            return None
    try:
        return parse(fields.text(body, "key", 16_384))
    except ValueError:
        return None


def note(body: Json) -> Note:
    return Note(
        fields.identifier(body, "id"),
        person(fields.mapping(body, "author")),
        fields.text(body, "body", MAX_COMMENT),
        fields.flag(body, "system"),
        fields.moment(body, "created_at"),
        _changed_at(body),
    )


def _changed_at(body: Json) -> datetime | None:
    """`updated_at` moves with an edit, with a reaction, and when the note's thread is resolved."""
    created, updated = fields.moment(body, "created_at"), fields.moment(body, "updated_at")
    if created is None or updated is None or at_once(created, updated):
        return None
    return None if at_once(updated, fields.moment(body, "resolved_at")) else updated


def at_once(one: datetime, other: datetime | None) -> bool:
    """Whether two times may be of the same step of GitLab's."""
    return other is not None and abs(one - other) <= _AT_ONCE


def note_id(body: Json) -> int:
    """The id of a note just posted. GitLab's answer has no id if the text contained only quick actions."""
    return fields.identifier(body, "id")


def awarded_at(body: Json) -> datetime | None:
    return fields.moment(body, "created_at")


@dataclass(frozen=True)
class NoteAward:
    """An emoji on a comment, and who gave it."""

    id: int
    user_id: int
    name: str


def award(body: Json) -> NoteAward:
    user = fields.mapping(body, "user")
    return NoteAward(fields.identifier(body, "id"), fields.identifier(user, "id"), fields.text(body, "name", 255))


def is_active(body: Json) -> bool:
    """Whether a user may use GitLab: the other states are blocked, banned, deactivated, and kinds of these."""
    return fields.text(body, "state", 100) == "active"


def is_bot(body: Json) -> bool:
    """Whether a user is no person: a token's user, a service account, or one of GitLab's own."""
    return fields.flag(body, "bot")
