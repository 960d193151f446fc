"""A diff in a few lines."""

from __future__ import annotations

from ravebot.agents.diff.model import Change, ChangeKind, Diff, LeftOut
from ravebot.agents.diff.summary import FileLine, summary

CREATED, UPDATED, DELETED = ChangeKind
SHA = "0123456789" * 4


def a_diff(*changes: Change, text: str = "", left_out: tuple[LeftOut, ...] = (), more: int = 0, no: str = "") -> Diff:
    return Diff(SHA, changes, text, "hash", left_out, more, no)


def test_files_and_lines_are_counted() -> None:
    told = summary(
        a_diff(
            Change("a", UPDATED, b"1", added=3, removed=1),
            Change("b", CREATED, b"1", executable=True, added=1),
            Change("c", DELETED, removed=7),
            Change("d", UPDATED, b"\0", binary=True),
            Change("e", UPDATED, None, executable=False),
        )
    )
    assert told.title == "5 files differ from commit 01234567: +4 −8"
    assert told.files == (
        FileLine("a", "changed, +3 −1"),
        FileLine("b", "new, +1 −0, executable"),
        FileLine("c", "deleted, +0 −7"),
        FileLine("d", "changed, not shown"),
        FileLine("e", "no longer executable"),
    )
    assert (told.files_more, told.notes, told.cut) == (0, (), False)


def test_no_difference_is_said_and_what_is_left_out_is_named_all_the_same() -> None:
    told = summary(a_diff(left_out=tuple(LeftOut(str(number), "why") for number in range(7)), more=3))
    assert told.title == "Nothing that can be committed differs from commit 01234567."
    assert (len(told.left_out), told.left_out_more) == (5, 5)


def test_a_long_diff_is_shown_by_its_beginning() -> None:
    text = "".join(f"+{'x' * 500}{number}\n" for number in range(300))
    told = summary(a_diff(*(Change(str(number), DELETED) for number in range(50)), text=text))
    assert (len(told.files), told.files_more, told.cut) == (20, 30, True)
    assert len(told.excerpt) <= 3000
    assert all(len(line) <= 200 for line in told.excerpt.split("\n"))


def test_a_short_diff_is_shown_whole() -> None:
    told = summary(a_diff(Change("a", DELETED), text="one\ntwo\n"))
    assert (told.excerpt, told.cut) == ("one\ntwo", False)


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
