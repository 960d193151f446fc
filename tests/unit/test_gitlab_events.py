"""Webhook bodies, ours and other projects' published ones, and what is wrong with broken ones."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.gitlab.events import CommentPosted, Ignored, MergeRequestChanged, parse
from ravebot.gitlab.fields import Malformed
from ravebot.sandboxes.model import MergeRequestRef, Person
from tests.support.gitlab import payloads
from tests.support.gitlab.state import State


def _state() -> tuple[State, Any, Any, Any]:
    state = State()
    alice, bob = state.add_user("alice", ()), state.add_user("bob", ())
    project = state.add_project("group/app", {"a": "b"})
    mr = state.add_merge_request(project, alice, "Add login", "login", {}, project, "")
    mr.reviewers, mr.assignees = [bob], [bob, alice]
    return state, alice, bob, mr


def opened() -> dict[str, Any]:
    _, alice, _, mr = _state()
    return copy.deepcopy(payloads.merge_request_event("https://gitlab.example.org", mr, alice, "open"))


def commented() -> dict[str, Any]:
    state, _alice, bob, mr = _state()
    note = state.add_note(mr, bob, "/sandbox stop")
    return copy.deepcopy(payloads.note_event("https://gitlab.example.org", mr, note, bob, "create"))


def test_a_merge_request_is_complete_from_its_payload() -> None:
    body = opened()
    attributes = body["object_attributes"]
    event = parse(body)
    assert isinstance(event, MergeRequestChanged)
    mr = event.mr
    assert mr.ref == MergeRequestRef(attributes["target_project_id"], 1)
    assert mr.full_ref == "group/app!1"
    assert mr.head_sha == attributes["last_commit"]["id"]
    assert mr.web_url == "https://gitlab.example.org/group/app/-/merge_requests/1"
    assert mr.author == Person(attributes["author_id"], "alice")
    assert [person.username for person in mr.people] == ["bob", "alice"]
    assert (mr.state, mr.draft, mr.from_fork) == ("opened", False, False)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-03-01 12:00:00 UTC", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T12:00:00.987Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T14:00:00+02:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("yesterday", None),
        ("0001-01-01T00:00:00+23:00", None),
        (1740830400, None),
        (None, None),
    ],
)
def test_the_time_of_a_change_is_read_in_both_spellings_to_the_second(written: object, read: datetime | None) -> None:
    body = opened()
    body["object_attributes"]["updated_at"] = written
    event = parse(body)
    assert isinstance(event, MergeRequestChanged)
    assert event.mr.updated_at == read


def test_an_author_who_is_named_nowhere_has_no_name() -> None:
    body = opened()
    body["user"] = {"id": 5, "username": "maintainer"}
    body["assignees"] = []
    event = parse(body)
    assert isinstance(event, MergeRequestChanged)
    assert event.mr.author.username == ""
    assert event.by == Person(5, "maintainer")


def test_what_older_or_stranger_servers_leave_out_is_no_error() -> None:
    body = opened()
    for key in ("assignees", "reviewers", "labels", "changes"):
        del body[key]
    del body["user"]["id"]
    del body["object_attributes"]["action"]
    del body["object_attributes"]["draft"]
    body["object_attributes"] |= {"last_commit": None, "source_project_id": None, "work_in_progress": True}
    event = parse(body)
    assert isinstance(event, MergeRequestChanged)
    assert (event.by.id, event.mr.head_sha, event.mr.draft) == (0, "", True)
    assert event.mr.from_fork


def test_a_comment_names_its_author_and_its_merge_request() -> None:
    body = commented()
    event = parse(body)
    assert isinstance(event, CommentPosted)
    assert event.author == Person(body["object_attributes"]["author_id"], "bob")
    assert (event.text, event.project_path, event.note_id) == (
        "/sandbox stop",
        "group/app",
        body["object_attributes"]["id"],
    )
    assert event.mr is not None
    assert event.mr.ref == event.ref
    assert [person.id for person in event.mr.people] == body["merge_request"]["assignee_ids"]


@pytest.mark.parametrize(
    "change", [{"action": "update"}, {"system": True}, {"noteable_type": "Issue"}, {"noteable_type": "Commit"}]
)
def test_other_notes_are_ignored(change: dict[str, object]) -> None:
    body = commented()
    body["object_attributes"] |= change
    assert isinstance(parse(body), Ignored)


def test_a_note_of_an_old_server_has_no_action_and_counts() -> None:
    body = commented()
    del body["object_attributes"]["action"]
    assert isinstance(parse(body), CommentPosted)


def test_a_note_of_an_old_server_gives_only_the_projects_address() -> None:
    body = commented()
    del body["merge_request"]["url"]
    event = parse(body)
    assert isinstance(event, CommentPosted)
    assert event.mr is not None
    assert event.mr.web_url == "https://gitlab.example.org/group/app/-/merge_requests/1"


@pytest.mark.parametrize("kind", ["push", "pipeline", "issue", "wiki_page", "something_new"])
def test_other_events_are_ignored(kind: str) -> None:
    assert isinstance(parse({"object_kind": kind}), Ignored)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("object_attributes", None),
        ("object_attributes", []),
        ("object_attributes.iid", 0),
        ("object_attributes.iid", -1),
        ("object_attributes.iid", True),
        ("object_attributes.iid", "1"),
        ("object_attributes.iid", 1.5),
        ("object_attributes.iid", 10**30),
        ("object_attributes.target_project_id", None),
        ("object_attributes.author_id", "root"),
        ("object_attributes.title", None),
        ("object_attributes.title", {"a": 1}),
        ("object_attributes.state", "exploded"),
        ("object_attributes.state", ["opened"]),
        ("object_attributes.url", "javascript:alert(1)"),
        ("object_attributes.url", "https://h/ onload=x"),
        ("object_attributes.url", "https://h/)[x](y"),
        ("object_attributes.last_commit", {"id": "main; rm -rf /"}),
        ("object_attributes.last_commit", {"id": "A" * 40}),
        ("object_attributes.last_commit", {"id": "a" * 41}),
        ("object_attributes.draft", "yes"),
        ("project", None),
        ("project.path_with_namespace", 3),
        ("user", "root"),
        ("user.username", None),
        ("assignees", "bob"),
        ("object_kind", None),
    ],
)
def test_nonsense_is_malformed_and_named(path: str, value: object) -> None:
    body = opened()
    target: Any = body
    *parents, last = path.split(".")
    for parent in parents:
        target = target[parent]
    target[last] = value
    with pytest.raises(Malformed) as caught:
        parse(body)
    assert str(caught.value)


def test_hostile_sizes_and_surrogates_are_bounded() -> None:
    body = opened()
    body["object_attributes"]["title"] = "x" * 10_000_000
    body["object_attributes"]["source_branch"] = "\ud800" * 5
    body["assignees"] = [{"id": number, "username": "u"} for number in range(1, 100_000)]
    event = parse(body)
    assert isinstance(event, MergeRequestChanged)
    assert len(event.mr.title) == 1024
    assert event.mr.source_branch == "?????"
    assert len(event.mr.people) <= 400
    event.mr.source_branch.encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_any_field_may_be_anything_and_the_answer_is_still_one_of_ours(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from([opened(), commented()]))
    target: Any = body
    for _ in range(data.draw(st.integers(0, 2))):
        inner = sorted(key for key, value in target.items() if value and isinstance(value, dict))
        if not inner:
            break
        target = target[data.draw(st.sampled_from(inner))]
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON)
    try:
        event = parse(json.loads(json.dumps(body)))
    except Malformed:
        return
    assert isinstance(event, MergeRequestChanged | CommentPosted | Ignored)
