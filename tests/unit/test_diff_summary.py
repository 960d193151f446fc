"""A diff in a few lines."""

from __future__ import annotations

import re

from ravebot.agents.diff.model import Change, ChangeKind, Diff, LeftOut
from ravebot.agents.diff.summary import DiffSummary, FileLine, summary
from ravebot.gitlab.diffs import render_diff
from ravebot.matrix.content import MAX_CONTENT_BYTES, message, size_bytes
from ravebot.matrix.diffs import diff_parts

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


def test_characters_that_can_not_be_seen_are_made_visible_and_pointed_out() -> None:
    told = summary(a_diff(Change("a", UPDATED, b"x"), text="+ok \u202eevil\u2066\x1b[31m\n-gone \u200b\n"))
    assert told.excerpt == "+ok <U+202E>evil<U+2066><U+001B>[31m\n-gone <U+200B>"
    assert "can't be seen" in told.notes[0]
    assert summary(a_diff(Change("a", UPDATED, b"x"), text="+tab\there é 漢\n-gone \u200b\n")).notes == ()


HOSTILE = "`</code><script>alert(1)</script>` @room @alice:example.org @all ~bug /close\n"
HOSTILE += "/close\n```\n/merge\n[x](javascript:1)"


def hostile_summary() -> DiffSummary:
    changes = tuple(Change(f"{HOSTILE}{number}", CREATED, b"x") for number in range(30))
    left_out = tuple(LeftOut(HOSTILE, HOSTILE) for _ in range(9))
    text = "".join(f"+{line}\n" for line in HOSTILE.split("\n") * 30)
    return summary(a_diff(*changes, text=f"{HOSTILE}\n{text}", left_out=left_out))


def test_in_a_room_nothing_of_it_is_markup_or_a_mention_and_it_fits_into_an_event() -> None:
    content = message(diff_parts(hostile_summary(), file_follows=True))
    tags = set(re.findall(r"<(\w+)", content["formatted_body"]))
    assert tags <= {"strong", "br", "pre", "code"}
    assert "@room" not in content["body"]
    assert "@alice" not in content["body"]
    assert content["m.mentions"] == {}
    assert size_bytes(content) < MAX_CONTENT_BYTES
    assert "and 10 more" in content["body"]
    assert "All of it is in the file below." in content["body"]


def test_in_a_comment_nothing_of_it_is_a_quick_action_or_leaves_its_place() -> None:
    body = render_diff(hostile_summary())
    assert body.startswith("**30 files differ")
    assert not [line for line in body.split("\n") if line.lstrip().startswith("/")]
    assert "<script>" not in re.sub(r"(`+).+?\1", "", body, flags=re.DOTALL)
    assert "and 10 more" in body
    assert len(body) < 20_000


def test_a_small_diff_is_shown_plainly_in_both() -> None:
    told = summary(a_diff(Change("src/a", UPDATED, b"1", added=1), text="+one\n"))
    assert message(diff_parts(told))["body"] == (
        "1 file differs from commit 01234567: +1 −0\n• src/a (changed, +1 −0)\n+one"
    )
    assert render_diff(told) == (
        "**1 file differs from commit 01234567: +1 −0**\n\n- `src/a`: changed, +1 −0\n\n```text\n+one\n```"
    )
