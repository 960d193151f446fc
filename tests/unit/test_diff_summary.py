"""A diff in a few lines."""

from __future__ import annotations

from ravebot.agents.diff.model import Change, ChangeKind, Diff, LeftOut
from ravebot.agents.diff.summary import summary

CREATED, UPDATED, DELETED = ChangeKind
SHA = "0123456789" * 4


def a_diff(*changes: Change, text: str = "", left_out: tuple[LeftOut, ...] = (), more: int = 0, no: str = "") -> Diff:
    return Diff(SHA, changes, text, "hash", left_out, more, no)


def test_files_and_lines_are_counted() -> None:
    told = summary(a_diff(Change("a", UPDATED, b"1", added=3, removed=1), Change("b", DELETED, removed=7)))
    assert told.title == "2 files differ from commit 01234567: +3 −8"
    assert (told.notes, told.left_out) == ((), "")
    assert summary(a_diff(Change("a", CREATED, b"1", added=1))).title == "1 file differs from commit 01234567: +1 −0"


def test_what_is_left_out_is_named_with_its_reason_also_where_nothing_else_differs() -> None:
    told = summary(a_diff(left_out=(LeftOut("a", "it is a symbolic link"), LeftOut("b", "it is too long"))))
    assert told.title == "Nothing that can be committed differs from commit 01234567."
    assert told.left_out == "Left out: a: it is a symbolic link; b: it is too long."
    many = summary(a_diff(left_out=tuple(LeftOut(str(number), "why") for number in range(7)), more=3))
    assert many.left_out.endswith("4: why; and 5 more.")


def test_changes_of_the_pipeline_and_of_owners_are_pointed_out() -> None:
    told = summary(a_diff(Change(".gitlab-ci.yml", UPDATED, b"x"), Change("CODEOWNERS", UPDATED, b"x"), no="Too much."))
    assert [note.split(",")[0] for note in told.notes] == [
        "This changes the pipeline",
        "This changes who must approve changes (CODEOWNERS).",
        "Too much.",
    ]
    assert summary(a_diff(Change(".gitlab/CODEOWNERS", UPDATED, b"x"))).notes == (
        "This changes who must approve changes (CODEOWNERS).",
    )


def test_characters_that_can_not_be_seen_are_pointed_out_where_they_are_added() -> None:
    change = Change("a", UPDATED, b"x")
    for unseen in ("\u202e", "\u2066", "\u200b", "\x1b"):
        assert "can't be seen" in summary(a_diff(change, text=f" same\n+if {unseen}admin\n")).notes[0]
    assert summary(a_diff(change, text="+tab\there é 漢 \r\n-gone \u200b\n  same \u200b\n")).notes == ()
