"""A diff's text: Git takes it back, and it is bounded."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.diff.model import Change, ChangeKind
from ravebot.agents.diff.text import MAX_TEXT_BYTES, written

CREATED, UPDATED, DELETED = ChangeKind


def test_lines_are_shown_with_their_surroundings_and_counted() -> None:
    old = "".join(f"{number}\n" for number in range(20)).encode()
    new = old.replace(b"10\n", b"ten\nand more\n")
    (change,), text = written([Change("a", UPDATED, new)], {"a": old}, {})
    assert text == (
        "diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -8,7 +8,8 @@\n 7\n 8\n 9\n-10\n+ten\n+and more\n 11\n 12\n 13\n"
    )
    assert (change.added, change.removed) == (2, 1)


def test_modes_binary_files_and_missing_line_ends_are_told() -> None:
    changes = [
        Change("bin", UPDATED, b"\0\1"),
        Change("mode", UPDATED, None, executable=True),
        Change("new", CREATED, b"x", executable=True),
        Change("old", DELETED),
        Change("empty", CREATED, b""),
        Change("huge", DELETED),
    ]
    counted, text = written(changes, {"bin": b"\0", "old": b"1\n"}, {"old": True})
    assert text == (
        "diff --git a/bin b/bin\nBinary files a/bin and b/bin differ\n"
        "diff --git a/mode b/mode\nold mode 100644\nnew mode 100755\n"
        "diff --git a/new b/new\nnew file mode 100755\n--- /dev/null\n+++ b/new\n@@ -0,0 +1,1 @@\n+x\n"
        "\\ No newline at end of file\n"
        "diff --git a/old b/old\ndeleted file mode 100755\n--- a/old\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-1\n"
        "diff --git a/empty b/empty\nnew file mode 100644\n"
        "diff --git a/huge b/huge\ndeleted file mode 100644\nFile huge was too long to be shown\n"
    )
    assert [change.binary for change in counted] == [True, False, False, False, False, True]


def test_two_long_files_without_a_common_line_end_in_time_and_are_shown_whole() -> None:
    old = "".join(f"{number % 7}\n{number % 11}\n" for number in range(60_000)).encode()
    new = "".join(f"{number % 11}\n{number % 13}\n{number % 5}\n" for number in range(40_000)).encode()
    (change,), text = written([Change("a", UPDATED, new)], {"a": old}, {})
    assert change.added >= 1
    assert text.startswith("diff --git")


def test_a_very_long_text_is_cut_at_a_file_and_says_so() -> None:
    piece = ("x" * 99 + "\n").encode() * 4000
    changes = [Change(str(number), CREATED, piece) for number in range(5)]
    _, text = written(changes, {}, {})
    assert len(text.encode()) <= MAX_TEXT_BYTES + 200
    assert text.endswith("3 more files differ: too long to be shown here\n")


LINES = st.lists(st.sampled_from(["a\n", "b\n", "\n", "+\n", "- \n", "@@\n", "é\r\n"]), max_size=12)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@given(LINES, LINES, st.booleans())
def test_git_applies_it(was: list[str], now: list[str], ended: bool) -> None:
    old = "".join(was).encode()
    new = "".join(now).encode() + (b"" if ended else b"end")
    if old == new:
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "some file")
        file.write_bytes(old)
        _, text = written([Change("some file", UPDATED, new)], {"some file": old}, {})
        subprocess.run(
            ["git", "apply", "--whitespace=nowarn", "-"],
            input=text.encode(),
            cwd=folder,
            check=True,
            capture_output=True,
        )
        assert file.read_bytes() == new
