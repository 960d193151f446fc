"""What Git's own files in a commit say: ignored files, altered copies, submodules."""

from __future__ import annotations

import pytest

from ravebot.agents.diff.rules import GitRules

RULES = GitRules.of(
    {
        ".gitignore": b"node_modules/\n*.log\r\n!keep.log\n/build\n[bad\n!\n# comment\n\n",
        "sub/.gitignore": b"!x.log\nlocal\n*\n!y*\n",
        ".gitattributes": b"*.v export-subst\ndocs/ export-ignore\n* text=auto\n*.bat eol=crlf\n*.py -text\n",
        ".gitmodules": b'[submodule "x"]\n\tpath = vendor/x\n\turl = https://example.org\n',
    }
)


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("node_modules/a/b", True),
        ("deep/node_modules/a", True),
        ("x.log", True),
        ("deep/x.log", True),
        ("keep.log", False),
        ("build/out.o", True),
        ("deep/build/out.o", False),
        ("sub/local/a", True),
        ("sub/y.txt", False),
        ("sub/z.txt", True),
        ("src/a.py", False),
    ],
)
def test_files_are_ignored_as_git_does(path: str, ignored: bool) -> None:
    assert RULES.ignored(path) is ignored


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("version.v", "GitLab's archive change it"),
        ("run.bat", "GitLab's archive change it"),
        ("docs/a.md", "out of GitLab's archive"),
        ("vendor/x/a.c", "submodule"),
        ("vendor/x", "submodule"),
    ],
)
def test_what_the_archive_does_not_hold_as_it_is_is_refused(path: str, why: str) -> None:
    assert why in RULES.refusal(path)


@pytest.mark.parametrize("path", ["vendor/y/a.c", "a.py", "mydocs/a.md"])
def test_other_files_may_be_committed(path: str) -> None:
    assert RULES.refusal(path) == ""


def test_a_path_with_many_folders_is_looked_at() -> None:
    assert RULES.ignored("a/" * 60 + "x.log")
    assert not RULES.ignored("a/" * 60 + "x")


def test_rules_that_are_no_text_are_no_trouble() -> None:
    rules = GitRules.of(
        {".gitignore": b"\xff\xfe\0*\n*.o\n", ".gitattributes": b"\xff\n\n   \n", ".gitmodules": b"\xff"}
    )
    assert rules.ignored("a.o")
    assert rules.refusal("a.o") == ""
