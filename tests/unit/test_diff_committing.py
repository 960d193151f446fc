"""The commit's message, its actions, and why it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.diff import committing
from ravebot.agents.diff.model import BranchCommit, BranchHead, Change, ChangeKind, CommitOrder, Diff
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, Person

CREATED, UPDATED, DELETED = ChangeKind
SHA, OTHER = "0123456789" * 4, "f" * 40
ORDER = CommitOrder(MergeRequestRef(7, 42), SHA, "h" * 64, "coder", "alice", "bob", 12, "0a1b2c3d4e5f6071", False)
MR = MergeRequest(
    MergeRequestRef(7, 42), "group/app", "Title", "https://gitlab.example.org", "feature", 7, SHA, Person(1, "alice")
)


def test_the_message_names_agent_asker_and_approver_and_the_approval() -> None:
    assert committing.message(ORDER) == (
        "Apply the changes of coder in its sandbox\n"
        "\n"
        "Ravebot-Agent: coder\n"
        "Ravebot-Asked-By: alice\n"
        "Ravebot-Approved-By: bob\n"
        "Ravebot-Approval: 12.0a1b2c3d4e5f6071\n"
    )


@given(st.text(max_size=200))
def test_no_name_forges_a_trailer_mentions_somebody_or_closes_an_issue(name: str) -> None:
    message = committing.message(
        replace(ORDER, asked_by=name, approved_by=f"{name}\nRavebot-Approval: 1.2", agent=name)
    )
    lines = message.split("\n")
    assert len(lines) == 7
    assert len(message.splitlines()) == 6
    assert [line for line in lines if line.startswith("Ravebot-Approval:")] == ["Ravebot-Approval: 12.0a1b2c3d4e5f6071"]
    assert not set("@#!~%[]/\r\0") & set(message)


def test_a_matrix_name_stays_readable() -> None:
    assert committing.name("@alice:example.org") == "alice:example.org"
    assert committing.name("") == committing.name("///") == "unknown"


def test_the_commit_is_found_by_its_trailer_and_not_by_a_text_that_looks_like_it() -> None:
    commits = [
        BranchCommit("1" * 40, "Ravebot-Approval: 12.ffff"),
        BranchCommit("2" * 40, "Says: Ravebot-Approval: 12.0a1b2c3d4e5f6071"),
        BranchCommit("3" * 40, committing.message(ORDER)),
    ]
    found = committing.made_by(commits, ORDER)
    assert found is not None
    assert found.sha == "3" * 40
    assert committing.made_by(commits[:2], ORDER) is None


def test_the_actions_delete_first_guard_what_exists_and_set_modes_apart() -> None:
    diff = Diff(
        SHA,
        (
            Change("a", CREATED, b"\0\xff", executable=True),
            Change("b", UPDATED, b"2"),
            Change("c", UPDATED, None, executable=False),
            Change("d", DELETED),
        ),
        "",
        "h",
    )
    assert committing.guarded(diff.changes) == ("b", "c", "d")
    assert committing.actions(diff, {"b": "1" * 40, "d": "2" * 40}) == [
        {"action": "delete", "file_path": "d", "last_commit_id": "2" * 40},
        {"action": "update", "file_path": "b", "content": "Mg==", "encoding": "base64", "last_commit_id": "1" * 40},
        {"action": "chmod", "file_path": "c", "execute_filemode": False},
        {"action": "create", "file_path": "a", "content": "AP8=", "encoding": "base64"},
        {"action": "chmod", "file_path": "a", "execute_filemode": True},
    ]


@pytest.mark.parametrize(
    ("mr", "why"),
    [
        (MR, ""),
        (replace(MR, state="merged"), "is merged"),
        (replace(MR, state="closed"), "reopen it"),
        (replace(MR, source_project_id=8), "git apply"),
        (replace(MR, head_sha=OTHER), "has moved on"),
    ],
)
def test_a_merge_request_that_can_not_take_it_is_refused_with_what_to_do(mr: MergeRequest, why: str) -> None:
    assert (
        (why in committing.merge_request_refusal(mr, ORDER)) if why else not committing.merge_request_refusal(mr, ORDER)
    )


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (None, "branch is gone"),
        (BranchHead(OTHER, False, True), "has moved on"),
        (BranchHead(SHA, True, False), "is protected"),
        (BranchHead(SHA, False, False), "role Developer"),
        (BranchHead(SHA, True, True, developers_can_push=False), "not everybody who may approve this"),
    ],
)
def test_a_branch_that_can_not_take_it_is_refused_with_what_to_do(head: BranchHead | None, why: str) -> None:
    assert why in committing.branch_refusal(head, ORDER)


@pytest.mark.parametrize("protected", [False, True])
def test_a_branch_that_we_may_push_to_takes_it(protected: bool) -> None:
    assert committing.branch_refusal(BranchHead(SHA, protected, True), ORDER) == ""


def test_a_diff_that_is_empty_too_much_or_of_another_commit_is_refused() -> None:
    change = (Change("a", DELETED),)
    assert committing.diff_refusal(Diff(SHA, change, "", "h"), ORDER) == ""
    assert "nothing to commit" in committing.diff_refusal(Diff(SHA, (), "", "h"), ORDER)
    assert committing.diff_refusal(Diff(SHA, change, "", "h", refusal="Too much."), ORDER) == "Too much."
    assert "moved on" in committing.diff_refusal(Diff(OTHER, change, "", "h"), ORDER)
