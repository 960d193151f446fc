"""Whatever people or guests write, it stays text in its place."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ravebot.gitlab.escape import JOINER, block, code, one_line, text
from tests.support.gitlab.notes import links, mentions, take_quick_actions

MARKDOWN = MarkdownIt("commonmark", {"linkify": True}).enable(["table", "strikethrough", "linkify"])
assert MARKDOWN.linkify
# GitLab links no bare domain and no `//host`; its `www.` and mail addresses are in `links`.
MARKDOWN.linkify.set({"fuzzy_link": False, "fuzzy_email": False}).add("//", None)
LINKING = [
    *(
        "GL-12",
        "PROJ-7",
        "my_proj-7",
        "A_B-1",
        "CU-8abc",
        "CU-abc",
        "cc0123456789abcdefCU-abc",
        "T12",
        "0123456789abcdef",
        "deadbeef",
        "DEADBEEF" * 8,
    ),
    *(
        "group/app>",
        "group/app-->",
        "group/app#1",
        "group/app!1",
        "group/app@deadbeef0",
        "[issue:1]",
        "[work_item:a/b/1]",
        "&1",
        "^alert#1",
    ),
    *("1234567..89abcde", "~bug", '~"a bug"', "%1.0", "$1", "http://x.y", "HTTPS://x.yz", "ftp://x.yz", "odd+1://x"),
    *("www.x.yz", "WWW.x.yz", "//x.yz", "a@b.cc", "mailto:a@b.cc", "xmpp:a@b.cc/x"),
]
SIGNS = st.sampled_from(
    [
        *"`*_~[](){}<>#+-.!|\\/@&:$%^=\"' \n\r\t0ax1",
        *(
            "@all",
            "/close",
            "<b>",
            "</details>",
            "<!--",
            "-->",
            "```",
            "~~~",
            "\n\n",
            "\n---\n",
            "[a](http://b)",
            ">>>",
        ),
        *(
            "http://x.y",
            "www.x.y",
            "&lt;",
            "&#64;all",
            "\u202e",
            "\u200b",
            "\u2028",
            "\x85",
            "\x0b",
            "\x00",
            "\x1b[31m",
        ),
        *("\ud800", "é", "🎉", "\u0301"),
        *(JOINER, *LINKING),
    ]
)
HOSTILE = st.lists(SIGNS, max_size=60).map("".join) | st.text(max_size=200)


def flat(tokens: list[Token]) -> list[Token]:
    return [one for token in tokens for one in (token, *flat(token.children or []))]


def shown(tokens: list[Token]) -> str:
    return "".join(one.content for one in flat(tokens) if one.type in {"text", "text_special", "code_inline"})


def assert_harmless(markdown: str) -> None:
    assert mentions(markdown) == []
    assert links(markdown) == []
    assert take_quick_actions(markdown)[1] == []
    assert not [
        one.type for one in flat(MARKDOWN.parse(markdown)) if one.type in {"html_block", "html_inline", "link_open"}
    ]


@given(HOSTILE)
@example("1. one")
@example("- one")
@example("trailing \\")
@example("    indented")
@example("&commat;all &#64;all")
def test_text_in_a_paragraph_is_shown_as_it_was_and_does_nothing(value: str) -> None:
    for before, after in (("", ""), ("**", "**"), ("- ", ""), ("before ", " after")):
        markdown = f"{before}{text(value)}{after}"
        assert_harmless(markdown)
        inline = [one for one in MARKDOWN.parse(markdown) if one.type == "inline"]
        assert len(inline) == 1
        kinds = {one.type for one in inline[0].children or []}
        assert kinds <= {"text", "text_special", *({"strong_open", "strong_close"} if before == "**" else ())}
        assert one_line(value, 200) in shown(inline).replace(JOINER, "")


@pytest.mark.parametrize("value", LINKING)
def test_what_gitlab_links_by_itself_is_shown_and_links_nothing(value: str) -> None:
    for said in (
        value,
        f"see {value}.",
        f"({value})",
        f"ü{value}",
        f"x_{value}",
        f"{value}{value}",
        f"`{value}",
        JOINER + value,
    ):
        assert_harmless(text(said))
        assert_harmless(f"- {text(said)} {code(said)}")


def test_ordinary_text_has_nothing_added() -> None:
    for plain in ("failed: exit code 1", "took 12.5 s, 3 of 4", "main -1 well-known setup.py", "abcdef 123456"):
        assert JOINER not in text(plain)


@given(HOSTILE, HOSTILE)
def test_text_and_code_in_a_table_leave_the_table_whole(value: str, other: str) -> None:
    table = f"| | |\n|---|---|\n| {text(value)} | {code(other)} |\n| last | row |\n"
    assert_harmless(table)
    cells = [one for one in MARKDOWN.parse(table) if one.type == "td_open"]
    assert len(cells) == 4
    inline = [one for one in MARKDOWN.parse(table) if one.type == "inline"][2:]
    assert shown(inline[:1]).replace(JOINER, "").strip() == one_line(value, 200).strip()
    assert shown(inline[1:2]).strip() == (one_line(other, 200).replace("|", "¦") or "—").strip()


@given(HOSTILE)
def test_code_is_one_code_span_whatever_it_holds(value: str) -> None:
    (inline,) = [one for one in MARKDOWN.parse(f"see {code(value)} there") if one.type == "inline"]
    kinds = [one.type for one in inline.children or []]
    assert kinds == (["text", "code_inline", "text"] if one_line(value, 200) else ["text"])
    assert_harmless(f"see {code(value)} there")


@given(HOSTILE)
@example("/close\n  /merge")
@example("x\n```\ny")
def test_a_block_holds_everything_and_lets_nothing_out(value: str) -> None:
    markdown = f"<details>\n<summary>tail</summary>\n\n{block(value)}\n\n</details>\n"
    assert [one.type for one in MARKDOWN.parse(markdown)] == ["html_block", "fence", "html_block"]
    assert mentions(markdown) == links(markdown) == []
    # GitLab's older releases look for commands line by line without parsing fences as CommonMark does.
    assert not re.search(r"^\s*/[a-z]", markdown, re.MULTILINE)


@given(HOSTILE, st.integers(1, 50))
def test_nothing_is_longer_than_it_may_be(value: str, limit: int) -> None:
    assert len(one_line(value, limit)) <= limit
    assert len(block(value, limit, 5).split("\n")) <= 8


def test_a_huge_text_is_cut_and_says_so() -> None:
    assert one_line("x" * 10_000, 20) == "x" * 19 + "…"
    tail = block("start\n" + "line\n" * 10_000 + "the end", 100)
    assert tail.startswith("```text\n…\n")
    assert tail.endswith("the end\n```")
    assert "start" not in tail


def test_terminal_colours_go_and_other_controls_show() -> None:
    assert block("\x1b[1;31mred\x1b[0m\x1b]0;title\x07 \x08\u202eevil") == "```text\nred ��evil\n```"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("mail a@b.c", f"mail a@{JOINER}b.c"),
        ("&#64;all", f"{JOINER}&amp;{JOINER}\\#{JOINER}64;all"),
        ("see https://evil.example", f"see https:{JOINER}//evil.example"),
        ("see www.evil.example", f"see www{JOINER}.evil.example"),
        ("GL-12 PROJ-7", f"GL-{JOINER}12 PROJ-{JOINER}7"),
        ("at 0123456789abcdef", f"at 012345{JOINER}6789ab{JOINER}cdef"),
        ("failed: exit code 1", "failed: exit code 1"),
        ("", JOINER),
    ],
)
def test_sigils_are_parted_from_what_follows(value: str, expected: str) -> None:
    assert text(value) == expected
