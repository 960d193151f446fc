"""Parses the body of a webhook into an event. Pure; no field is trusted.

https://docs.gitlab.com/user/project/integrations/webhook_events/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ravebot.gitlab import fields
from ravebot.gitlab.fields import Malformed
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, Person

MAX_COMMENT = 1_000_000  # characters, GitLab's own limit


class ApprovalChange(StrEnum):
    """What became of somebody's approval, by GitLab's names for the action; `*ED`: of all that are needed, too.

    https://docs.gitlab.com/user/project/integrations/webhook_events/#merge-request-events
    """

    GIVEN = "approval"
    COMPLETED = "approved"
    TAKEN_BACK = "unapproval"
    INCOMPLETED = "unapproved"


@dataclass(frozen=True)
class MergeRequestChanged:
    """A merge request was opened, changed, closed, …; `mr` has everything that the payload has.

    The payload has no field for the author's user name: it is "" unless the author also acted, is assigned or reviews.
    `by.id` is 0 on old servers.
    """

    mr: MergeRequest
    by: Person
    approval: ApprovalChange | None = None
    by_gitlab: bool = False  # GitLab did it by itself, as when a push takes approvals back


@dataclass(frozen=True)
class CommentPosted:
    """A person's new comment on a merge request.

    `mr` names people by id only; it is None, and `created_at` is set, when the comment was found by polling. Then
    `discussion_id` is empty, as it is from old servers.
    """

    ref: MergeRequestRef
    project_path: str
    note_id: int
    author: Person
    text: str
    mr: MergeRequest | None
    created_at: datetime | None = None
    discussion_id: str = ""


@dataclass(frozen=True)
class Ignored:
    """An event that ravebot ignores."""

    why: str


def parse(body: Mapping[str, object]) -> MergeRequestChanged | CommentPosted | Ignored:
    """Parse a webhook's body. Raises Malformed if a merge request or comment lacks a field that is needed."""
    kind = body.get("object_kind")
    if kind == "merge_request":
        return _merge_request_changed(body)
    if kind == "note":
        return _comment(body)
    if isinstance(kind, str) or isinstance(body.get("event_name"), str):
        return Ignored("an event of another kind")
    raise Malformed("object_kind is missing: this is not a GitLab webhook")


def _merge_request_changed(body: Mapping[str, object]) -> MergeRequestChanged:
    attributes = fields.mapping(body, "object_attributes")
    by = _person(fields.mapping(body, "user"))
    people = _people(body, "assignees") + _people(body, "reviewers")
    mr = _merge_request(body, attributes, tuple(dict.fromkeys(people)), (by, *people))
    return MergeRequestChanged(mr, by, _approval(attributes.get("action")), fields.flag(attributes, "system"))


def _approval(action: object) -> ApprovalChange | None:
    return ApprovalChange(action) if isinstance(action, str) and action in frozenset(ApprovalChange) else None


def _comment(body: Mapping[str, object]) -> CommentPosted | Ignored:
    attributes = fields.mapping(body, "object_attributes")
    if attributes.get("noteable_type") != "MergeRequest":
        return Ignored("a comment on something other than a merge request")
    if attributes.get("action", "create") != "create":  # absent before GitLab 16.11
        return Ignored("an edited comment")
    if fields.flag(attributes, "system"):
        return Ignored("a note that GitLab wrote itself")
    author = Person(
        fields.identifier(attributes, "author_id"), fields.text(fields.mapping(body, "user"), "username", 255)
    )
    told = fields.mapping(body, "merge_request")
    people = tuple(Person(one, "") for one in dict.fromkeys((*_ids(told, "assignee_ids"), *_ids(told, "reviewer_ids"))))
    mr = _merge_request(body, told, people, (author,))
    note = fields.text(attributes, "note", MAX_COMMENT)
    return CommentPosted(
        mr.ref,
        mr.project_path,
        fields.identifier(attributes, "id"),
        author,
        note,
        mr,
        discussion_id=fields.discussion_id(attributes, "discussion_id"),
    )


def _merge_request(
    body: Mapping[str, object],
    attributes: Mapping[str, object],
    people: tuple[Person, ...],
    known: tuple[Person, ...],
) -> MergeRequest:
    author_id = fields.identifier(attributes, "author_id")
    names = (person.username for person in known if person.id == author_id and person.username)
    commit = attributes.get("last_commit")
    project_id, iid = fields.identifier(attributes, "target_project_id"), fields.identifier(attributes, "iid")
    return MergeRequest(
        ref=MergeRequestRef(project_id, iid),
        project_path=fields.text(fields.mapping(body, "project"), "path_with_namespace", 1024),
        title=fields.text(attributes, "title", 1024),
        web_url=_address(body, attributes, iid),
        source_branch=fields.text(attributes, "source_branch", 1024),
        # null when the fork was deleted; no project has the id 0, so the merge request still counts as from a fork
        source_project_id=fields.optional_identifier(attributes, "source_project_id") or 0,
        head_sha=fields.sha(commit, "id") if isinstance(commit, Mapping) else "",
        author=Person(author_id, next(names, "")),
        people=people,
        target_branch=fields.text(attributes, "target_branch", 1024) if "target_branch" in attributes else "",
        labels=_labels(body, attributes),
        draft=fields.flag(attributes, "draft") or fields.flag(attributes, "work_in_progress"),
        state=fields.state(attributes),
        updated_at=fields.moment(attributes, "updated_at"),
    )


def _address(body: Mapping[str, object], attributes: Mapping[str, object], iid: int) -> str:
    """The merge request's web address; comments of older servers have only the project's."""
    if "url" in attributes:
        return fields.web_url(attributes, "url")
    return f"{fields.web_url(fields.mapping(body, 'project'), 'web_url')}/-/merge_requests/{iid:d}"


def _person(body: Mapping[str, object]) -> Person:
    return Person(fields.optional_identifier(body, "id") or 0, fields.text(body, "username", 255))


def _people(body: Mapping[str, object], key: str) -> list[Person]:
    people = [_person(item) for item in fields.listing(body, key) if isinstance(item, Mapping)]
    return [person for person in people if person.id]


def _labels(body: Mapping[str, object], attributes: Mapping[str, object]) -> tuple[str, ...]:
    """The names of its labels: changes have them beside the attributes, comments in them."""
    listed = fields.listing(attributes if "labels" in attributes else body, "labels")
    labels = [item for item in listed if isinstance(item, Mapping)]
    return tuple(fields.text(label, "title", 255) for label in labels if isinstance(label.get("title"), str))


def _ids(body: Mapping[str, object], key: str) -> list[int]:
    found = [item for item in fields.listing(body, key) if isinstance(item, int) and not isinstance(item, bool)]
    return [item for item in found if item > 0]
