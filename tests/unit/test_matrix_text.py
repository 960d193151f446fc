from __future__ import annotations

import html
import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ravebot.matrix.content import theirs
from ravebot.matrix.text import block, last_lines, one_line
from tests.support.client_links import client_links

hostile = st.text(
    alphabet=st.one_of(
        st.characters(),
        st.sampled_from("@<>&\"'`/\n\r\t\u2028\u2029\u202e\u2066\u200b\u200f\ufeff\u0000\u001b\u0301\U000e0041"),
    ),
    max_size=600,
) | st.sampled_from(["@room", "@\u200broom", "x @Room!", "/close\n@all", "<script>alert(1)</script>"])

LINKING = [
    *(
        "https://evil.example/x?y=1",
        "HTTP://EVIL.EXAMPLE",
        "http://10.0.0.1/",
        "http://[::1]/",
        "https://localhost:8/",
        "a+b://x",
    ),
    *(
        "evil.example/x",
        "evil.com",
        "a.b.co.uk",
        "www.evil.com",
        "www.1.x",
        "10.0.0.1/x",
        "1.2.3.4.5.6.7.8",
        "setup.py",
    ),
    *(
        "пример.рф",
        "ｅｖｉｌ．ｃｏｍ",
        "evil。com",
        "evil｡com",
        "xn--80ak6aa92e.com",
        "evil.xn--90a3ac",
        "🎉.com",
        "evi\u0301.com",
    ),
    *(
        "matrix.to/#/@a:evil.org",
        "https://matrix.to/#/#r:evil.org",
        "#room:evil.org",
        "#room:localhost",
        "!room:evil.org",
    ),
    *(
        "@alice:evil.org",
        "x@alice:localhost",
        "mailto:a",
        "mailto:a@evil.org",
        "a@evil.org",
        "matrix:u/a:localhost",
        "mxc://evil.org/x",
    ),
    *(
        "e\u2060vil\u2060.com",
        "https:\u2060//evil.com",
        "https[:]//evil[.]com.com",
        "evil\u00ad.com",
        "https://a.com,b.com",
    ),
    *("[x](https://evil.com)", "<https://evil.com>", "`https://evil.com`", "@evil.com/x:y", "##a:b.cc", "@a:[::1]"),
]
hostile_links = st.lists(
    st.sampled_from([*LINKING, *".:/@#! `[]\n\u2060", "x", "com", "www", "1", "。"]), max_size=25
).map("".join)

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


@given(hostile | hostile_links)
@example("www..aa")
def test_made_harmless_twice_is_made_harmless_once(text: str) -> None:
    once = one_line(text, 10_000)
    assert one_line(once, 10_000) == once


@given(hostile)
def test_nothing_pings(text: str) -> None:
    for said in (text, f"{text}@room", f"@room{text}", f"hello @alice {text}"):
        assert not pings(one_line(said, 10_000))
        assert not pings(block(said, 10_000))


@given(hostile | hostile_links, st.integers(min_value=2, max_value=300))
def test_no_client_links_or_previews_anything(text: str, limit: int) -> None:
    for shown in (one_line(text, limit), one_line(text, 10_000), block(text, limit), block(text, 10_000)):
        assert client_links(shown) == []


@pytest.mark.parametrize("text", LINKING)
def test_what_clients_link_is_shown_without_a_link(text: str) -> None:
    assert client_links(text)
    for said in (text, f"{text}2", f"({text})", f"x{text}", f"see {text}.", f"{text}{text}"):
        assert client_links(one_line(said)) == client_links(block(said)) == []
        assert all(client_links(cut(said, limit)) == [] for cut in (one_line, block) for limit in range(2, 40))


def test_a_long_text_takes_no_long_time() -> None:
    began = time.monotonic()
    for sign in ("@", "#a", "a.", "1.", "mailto:", "://", "@a", "www."):
        one_line(sign * 40_000, 20_000)
        block(sign * 40_000, 20_000)
    assert time.monotonic() - began < 5


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
        ("mail bob@example.org", "mail bob@example[.]org"),
        ("see https://evil.example/x", "see https[:]//evil[.]example/x"),
        ("in #room:evil.org", "in #room[:]evil[.]org"),
        ("took 12.5 s: v1.2.3, e.g. ~/.ssh, main.c", "took 12.5 s: v1.2.3, e.g. ~/.ssh, main.c"),
        ("a.py:12: failed. See group/app!42: 10:30", "a[.]py:12: failed. See group/app!42: 10:30"),
        ("\u202egnp.exe", "gnp[.]exe"),
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


def test_the_output_of_a_program_loses_its_colours() -> None:
    assert block("\x1b[31mred\x1b[0m and \x1b]0;title\x07plain\x1b[K") == "red and plain"
    assert last_lines("\x1b[1;32mok\x1b[m\nend") == "ok\nend"
