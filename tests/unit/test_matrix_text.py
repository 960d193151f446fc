from __future__ import annotations

import html
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.matrix.content import theirs
from ravebot.matrix.text import block, one_line

hostile = st.text(
    alphabet=st.one_of(
        st.characters(),
        st.sampled_from("@<>&\"'`/\n\r\t\u2028\u2029\u202e\u2066\u200b\u200f\ufeff\u0000\u001b\u0301\U000e0041"),
    ),
    max_size=600,
) | st.sampled_from(["@room", "@\u200broom", "x @Room!", "/close\n@all", "<script>alert(1)</script>"])

HARMFUL = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}


def pings(text: str) -> bool:
    return "@room" in text.lower() or "@alice" in text.lower()


@given(hostile, st.integers(min_value=2, max_value=300))
def test_one_line_is_one_line_within_its_limit_and_shows_all_it_has(text: str, limit: int) -> None:
    shown = one_line(text, limit)
    assert len(shown) <= limit
    assert "\n" not in shown
    for character in shown:
        assert unicodedata.category(character) not in HARMFUL
        assert unicodedata.category(character) != "Cf" or character == "\u2060"


@given(hostile)
def test_made_harmless_twice_is_made_harmless_once(text: str) -> None:
    once = one_line(text, 10_000)
    assert one_line(once, 10_000) == once


@given(hostile)
def test_nothing_pings(text: str) -> None:
    for said in (text, f"{text}@room", f"@room{text}", f"hello @alice {text}"):
        assert not pings(one_line(said, 10_000))
        assert not pings(block(said, 10_000))


@given(hostile)
def test_html_can_neither_open_a_tag_nor_leave_an_attribute(text: str) -> None:
    shown = theirs(text, 10_000).html
    assert not set(shown) & set("<>\"'")
    assert html.unescape(shown) == one_line(text, 10_000)


@given(hostile, st.integers(min_value=2, max_value=300))
def test_a_block_keeps_its_end_within_its_limit(text: str, limit: int) -> None:
    shown = block(text, limit)
    assert len(shown) <= limit
    assert all(unicodedata.category(character) not in HARMFUL or character == "\n" for character in shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("  two\n lines\t", "two lines"),
        ("mail bob@example.org", "mail bob@example.org"),
        ("\u202egnp.exe", "gnp.exe"),
        ("\x1b[31mred", "[31mred"),
        ("naïve 日本語 🎉", "naïve 日本語 🎉"),
        ("", ""),
    ],
)
def test_ordinary_text_stays_and_tricks_go(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_a_tower_of_marks_is_cut() -> None:
    assert len(one_line("a" + "\u0301" * 50)) == 5


def test_a_long_text_is_cut_with_a_sign() -> None:
    assert one_line("x" * 500, 10) == "x" * 9 + "…"
    assert block("line\n" * 100 + "end", 12).endswith("line\nend")
