"""Which paths may go into a commit."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ravebot.agents.diff.paths import printable, refusal


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "src/app.py",
        "app/[slug]/(group)/page.tsx",
        "…/größe.md",
        ".gitignore",
        ".github/x",
        "a b",
        ".gitlab-ci.yml",
    ],
)
def test_an_ordinary_path_is_taken(path: str) -> None:
    assert refusal(path) == ""


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/passwd", "leads out"),
        ("../x", "leads out"),
        ("a/../../x", "leads out"),
        ("a/./b", "leads out"),
        ("a//b", "leads out"),
        ("", "leads out"),
        ("a/", "leads out"),
        ("a\nb", "line break"),
        ("a\rb", "line break"),
        ("a\x1b[31m", "can't be seen"),
        ("a\u202eb", "can't be seen"),
        ("a\0b", "can't be seen"),
        ("a\udcffb", "not UTF-8"),
        (".git/hooks/post-checkout", "Git itself"),
        ("a/.GIT/config", "Git itself"),
        (".git./config", "Git itself"),
        (".git /config", "Git itself"),
        (".git::$INDEX_ALLOCATION/config", "Git itself"),
        ("git~1/config", "Git itself"),
        ("．git/config", "Git itself"),
        ("a" * 300, "too long"),
        ("/".join(["abcdefgh"] * 200), "too long"),
        ("a\\b", "every system"),
        ("a:b", "every system"),
        ("a ", "every system"),
        ("a./b", "every system"),
    ],
)
def test_a_dangerous_path_is_refused_with_a_reason(path: str, why: str) -> None:
    assert why in refusal(path)


def test_a_name_that_only_windows_refuses_may_be_changed_where_the_commit_has_it_already() -> None:
    assert refusal("a:b", new=False) == ""
    assert refusal("../a:b", new=False) != ""


@given(st.text(max_size=60))
@example("a\u1680b")
def test_what_is_taken_stays_inside_the_folder_and_prints_as_one_line(path: str) -> None:
    assert "\n" not in printable(path)
    if refusal(path) == "":
        names = path.split("/")
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(names)
        assert ".git" not in [name.lower() for name in names]
        assert all(char.isprintable() or unicodedata.category(char) == "Zs" for char in path)  # spaces of all scripts
        assert path.encode().decode() == path


def test_a_long_or_invisible_path_is_shown_short_and_visible() -> None:
    assert printable("a\x1bb\u202e") == "a?b?"
    assert len(printable("x" * 1000)) == 200
