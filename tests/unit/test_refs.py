"""How people name a merge request, and how they don't."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.commands import refs
from ravebot.commands.refs import Ref


@pytest.mark.parametrize("word", ["42", "!42", "group/app!42"])
def test_a_short_reference_means_the_only_project(word: str) -> None:
    assert refs.read(word, ("group/app",)) == Ref("group/app", 42)


@pytest.mark.parametrize("word", ["42", "!42", "", "!", "group!42", "group/app!042", "group/app!²", "group/app!-1",
                                  "group/app!" + "9" * 40, "g/" + "a" * 500 + "!1"])  # fmt: skip
def test_where_no_project_is_meant_only_a_full_reference_names_one(word: str) -> None:
    with pytest.raises(ValueError, match="Write one like group/app!42"):
        refs.read_full(word)


def test_the_shell_takes_a_longer_reference_than_rooms() -> None:
    word = f"g/{'a' * 400}!1"
    assert str(refs.read_full(word)) == word
    with pytest.raises(ValueError, match="no merge request"):
        refs.read(word, ())


@given(st.from_regex(r"[a-z]{1,9}(/[a-z.]{1,9}){1,3}![1-9][0-9]{0,8}", fullmatch=True))
def test_a_reference_is_read_as_it_is_written(word: str) -> None:
    assert str(refs.read_full(word)) == str(refs.read(word, ())) == word
