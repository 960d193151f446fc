"""What the inbox keeps of an event, and that it is enough."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.gitlab.commands import command_line, parse_comment
from ravebot.gitlab.events import CommentPosted, MergeRequestChanged
from ravebot.gitlab.kept import kept, read
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, Person

ALICE, BOB = Person(1, "alice"), Person(2, "bob")
MR = MergeRequest(
    MergeRequestRef(7, 42), "g/a", "\u202e <b>", "http://h/g/a/-/merge_requests/42", "b", 9, "a" * 40, ALICE,
    people=(BOB, ALICE), draft=True, state="closed", updated_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
)  # fmt: skip
COMMENT = CommentPosted(MR.ref, "g/a", 99, ALICE, "/sandbox stop", None)


@pytest.mark.parametrize(
    "event",
    [
        MergeRequestChanged(MR, BOB),
        MergeRequestChanged(replace(MR, updated_at=None, people=(), head_sha=""), Person(0, "")),
        COMMENT,
    ],
)
def test_an_event_is_read_as_it_was_kept(event: MergeRequestChanged | CommentPosted) -> None:
    assert read(*kept(event)) == event


def test_a_change_that_an_earlier_version_kept_is_read() -> None:
    kind, body = kept(MergeRequestChanged(MR, BOB))
    assert read(kind, json.dumps(json.loads(body) | {"action": "update", "code_changed": True})) == MergeRequestChanged(
        MR, BOB
    )


def test_a_comment_is_kept_without_the_rest_of_its_text_and_of_the_merge_request() -> None:
    long = replace(COMMENT, text="said " * 100_000 + "\n/sandbox  stop\n" + "x" * 100_000, mr=MR)
    assert read(*kept(long)) == COMMENT


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("please\r\n/sandbox   start   ABCDEF12  \n/sandbox stop", "/sandbox start ABCDEF12"),
        ("/sandbox start" + " " * 10_000 + "abcdef12", "/sandbox start abcdef12"),
        ("/sandbox\tstop", "/sandbox stop"),
        ("/sandbox", "/sandbox"),
        ("```\n/sandbox stop\n```", ""),
        (">>>\n/sandbox stop\n>>>", ""),
        ("> /sandbox stop", ""),
        ("looks good", ""),
    ],
)
def test_of_a_comment_only_its_command_is_kept(text: str, line: str) -> None:
    assert command_line(text) == line


_FILLERS = st.text(alphabet=" \t\x0b\u2028\xa0ab0İ", max_size=120)


@given(st.sampled_from(["", "start", "stop", "extend", "rebuild", "help", "strat"]), st.lists(_FILLERS, max_size=6))
def test_a_kept_command_means_what_the_whole_comment_means(name: str, rest: list[str]) -> None:
    for text in (
        f"/sandbox {name}{''.join(rest)}",
        f"/sandbox\t{''.join(rest)}{name}",
        f"x\n/sandbox {' '.join(rest)}",
    ):
        line = command_line(text)
        assert parse_comment(line) == parse_comment(text)
        assert len(line) < 200


@given(st.text(alphabet="`~> \n\r/sandboxtp", max_size=200))
def test_what_is_no_command_in_the_comment_is_none_when_it_was_kept(text: str) -> None:
    assert parse_comment(command_line(text)) == parse_comment(text)
    block = f"```\n{text}\n/sandbox stop"
    assert parse_comment(command_line(block)) == parse_comment(block)
