"""What rooms show of conversations with agents: an agent's words can do nothing, whatever they are."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ravebot.agents.model import ApprovalKind, ApprovalState, ConversationId, MessageId, Turn, TurnId, TurnState
from ravebot.agents.questions import ApprovalQuestion, parts_of
from ravebot.agents.wording import exactly
from ravebot.matrix.agents import (
    Speaker,
    render_answer,
    render_diff,
    render_question,
    render_remark,
    whole_answer,
)
from ravebot.matrix.content import MAX_CONTENT_BYTES, Content, edit_of, size_bytes
from ravebot.matrix.markdown import agents_words
from tests.support.client_links import client_links

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
SPEAKER = Speaker("coder", "!42")
HOSTILE = {
    "HTML": "<img src=http://t.example/x.png onerror=alert(1)><script>x</script><a href='https://evil.example'>ok</a>"
    * 600,
    "escapes": "\x1b[31mred\x1b[0m\x1b]8;;https://evil.example\x07link\x1b]8;;\x07\x00\x08\x9b1m" * 50,
    "bidi": "abc\u202egpj.exe\u2066x\u2069 \u200bzero\u200d \U000e0041tag",
    "mentions": "@room @all @alice:example.org @*room* &#64;room [@room](https://matrix.to/#/@a:b.org) `@room`",
    "links": "https://matrix.to/#/#room:example.org [safe](https://evil.example/?q) <http://evil.example> www.evil.org",
    "split links": "https:*//evil*.com evil.*com* https**://**evil.example `evil.`com 10.0.*0.1*",
    "script links": "[x](javascript:alert(1)) [y](data:text/html,x) ![p](http://t.example/1.png) [z](vbscript:x)",
    "entities": "&lt;script&gt; &#x202e;abc &#60;b&#62; &amp;lt;",
    "tables": "|a" * 100 + "\n" + "|-" * 100 + "\n" + "|\n" * 5000,
    "many rows": "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 2000,
    "quotes": ">" * 9000 + "x",
    "lists": "- " * 9000 + "x",
    "deeper lists": "\n".join("  " * level + "- x" for level in range(90)),
    "brackets": "[" * 60_000,
    "images": "![[" * 20_000,
    "stars": "*a **a " * 8_000,
    "backticks": "".join("`" * (number % 150) + "a" for number in range(500)),
    "references": "[room]: https://evil.example\n\n[room]",
    "one line": "x" * 60_000,
    "combining": "a" + "\u0301" * 5000,
    "surrogates": "\ud800 \udfff \U0010ffff",
    "fences": "```\n" * 9000,
    "verbs": "!rave stop 42\n/rave stop\n",
    "nothing": " \n\t\n",
}
ALLOWED = {"strong", "em", "br", "p", "ul", "ol", "li", "blockquote", "hr", "pre", "code", "h4", "h5", "h6"}


class Reader(HTMLParser):
    """The tags, attributes and text of HTML; code apart, in which no client makes links of names with dots."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.text = self.code = ""
        self._open = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(attrs)))
        if tag == "code":
            self._open += 1
            self.code += "\n"
        if tag in ("br", "p", "li", "pre", "h4", "h5", "h6", "blockquote", "hr"):
            self.text += "\n"

    def handle_endtag(self, tag: str) -> None:
        self._open -= tag == "code"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.code += data
            self.text += "".join("x" if char.isalpha() else " " if char.isspace() else "-" for char in data)
        else:
            self.text += data


def a_turn(**facts: Any) -> Turn:
    base = Turn(TurnId(7), MessageId(1), ConversationId(1), TurnState.WORKING, NOON)
    return replace(base, **facts)


def shown(answer: str, state: TurnState = TurnState.DONE, **facts: Any) -> Content:
    return render_answer(a_turn(answer=answer, state=state, **facts), SPEAKER).content


def assert_harmless(content: Content) -> None:
    assert size_bytes(edit_of("$" + "e" * 43, content)) <= MAX_CONTENT_BYTES + 2000
    assert content["m.mentions"] == {}
    read = Reader(content["formatted_body"])
    attributes = {attribute for _, attrs in read.tags for attribute, _ in attrs}
    assert {tag for tag, _ in read.tags} <= ALLOWED
    assert attributes <= {"data-mx-profile-fallback", "start"}
    assert client_links(read.text) == []
    assert not re.search(r"://|@room|\x1b|[\u202a-\u202e\u2066-\u2069]", read.text + read.code)
    assert client_links(content["body"]) == []
    assert not re.search(r"@room|\x1b|[\u202a-\u202e\u2066-\u2069]", content["body"])
    assert content["body"].startswith("coder in !42: ")
    assert content["formatted_body"].startswith("<strong data-mx-profile-fallback>coder in !42: </strong>")


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_words_are_harmless_and_rendered_in_a_moment(what: str) -> None:
    before = time.process_time()
    content = shown(HOSTILE[what])
    took = time.process_time() - before
    assert_harmless(content)
    assert took < 2.0


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_titles_of_what_an_agent_does_are_harmless_and_a_notice(what: str) -> None:
    content = shown("", TurnState.WORKING, status=HOSTILE[what][:200])
    assert_harmless(content)
    assert content["msgtype"] == "m.notice"


@given(st.text(alphabet=st.sampled_from("ab*_`[]()!<>&#@:/.~-|>\n \\\u202e0123456789")))
@example(".`00`")
@example("`//`:")
@example("@` `:0")
def test_no_mixture_of_marks_becomes_a_link_a_mention_or_a_tag(text: str) -> None:
    assert_harmless(shown(f"x{text}"))


def test_markdown_is_shown_as_markdown() -> None:
    said = agents_words(
        "# Done\n\nI *changed* `src/app.py`:\n\n1. one\n2. two\n\n```py\nimport os.path\n```\n> so\n\n---\n"
    )
    assert said.html == (
        "<h4>Done</h4><p>I <em>changed</em> <code>src/app.py</code>:</p><ol><li>one</li><li>two</li></ol>"
        "<pre><code>import os.path</code></pre><blockquote><p>so</p></blockquote><hr>"
    )


def test_the_colours_of_a_terminal_are_left_out_of_what_an_agent_says() -> None:
    said = agents_words("\x1b[31mred\x1b[0m and `\x1b[1mbold\x1b[0m`")
    assert (said.plain, said.html) == ("red and `bold`", "red and <code>bold</code>")


def test_what_is_quoted_very_deep_is_shown_too() -> None:
    assert "word" in agents_words("> " * 40 + "word").html


def test_a_link_shows_where_it_leads_and_a_table_its_columns() -> None:
    assert agents_words("Look at **page.html**, src/app.py: (a.b.md) node.js's.").html == (
        "Look at <strong><code>page.html</code></strong>, <code>src/app.py</code>: (<code>a.b.md</code>)"
        " <code>node.js</code>&#x27;s."
    )
    assert agents_words("@a:x.org a.b@x.org x.org:80 https://*x.org* e.g. 1.5").html == (
        "@\u2060a[:]x[.]org a.b@x[.]org x[.]org:80 https[:]//<em>x[.]org</em> e.g. 1.5"
    )
    assert agents_words("[docs](https://x.example/a)").html == "docs (https[:]//x[.]example/a)"
    table = "| a  | b |\n|----|---|\n| 10 | 2 |"
    assert agents_words(table).html == f"<pre><code>{table}</code></pre>"


def test_a_turn_says_below_its_words_what_it_does_and_how_it_ended() -> None:
    working = shown("Well,", TurnState.WORKING, status="running the tests")
    assert working["body"] == "coder in !42: Well,\n\n⏳ running the tests"
    assert working["msgtype"] == "m.text"
    failed = shown("Well,", TurnState.FAILED, why="its program ended: `exit 1`")
    assert failed["body"] == "coder in !42: Well,\n\n⚠️ Its program ended: `exit 1`"
    cancelled = shown("", TurnState.CANCELLED, cancelled_by="alice")
    assert (cancelled["body"], cancelled["msgtype"]) == ("coder in !42: ⚠️ Cancelled by alice.", "m.notice")
    waited = shown("", TurnState.CANCELLED, cancelled_by="alice", why="Cancelled by alice.")
    assert waited["body"] == "coder in !42: ⚠️ Cancelled by alice."
    assert shown("")["body"] == "coder in !42: It ended without a word."


def test_what_is_left_out_of_a_long_answer_is_said_and_is_in_the_file() -> None:
    turn = a_turn(answer="a" * 30_000 + "z" * 30_000, cut=5, state=TurnState.DONE)
    answer = render_answer(turn, SPEAKER)
    assert not answer.whole
    assert "[57,005 characters left out]" in answer.content["body"]
    assert answer.content["body"].endswith("zzz")
    assert whole_answer(turn).count("[5 characters left out]") == 1
    assert render_answer(a_turn(answer="a" * 5_000), SPEAKER).whole


def asked_for(payload: str, **facts: Any) -> ApprovalQuestion:
    base = ApprovalQuestion(
        number=17,
        kind=ApprovalKind.TOOL,
        state=ApprovalState.OPEN,
        title="run a command",
        parts=parts_of(payload),
        agent="coder",
        ref="group/app!42",
        whom="who has the role Developer or more in group/app",
        mentions=(),
        until="14:40 UTC",
    )
    return replace(base, **facts)


def test_a_question_hides_nothing_and_mentions_only_who_may_answer() -> None:
    payload = json.dumps({"command": "rm\u202e -rf \x1b[2J@room", "text": "a\ncwd: /", "cwd": "/tmp"})
    content = render_question(asked_for(payload), "!rave", [("@alice:x.org", "Alice <b>")], SPEAKER).content
    assert (content["msgtype"], content["m.mentions"]) == ("m.text", {"user_ids": ["@alice:x.org"]})
    shown = "command: rm\\u202e -rf \\x1b[2J@\u2060room\ntext:\n    a\n    cwd: /\ncwd: /tmp\n"
    assert content["body"].startswith(f"❓ coder in !42 asks: run a command\n{shown}")
    how = "react with ✅ or ❌, or say `!rave approve 17` or `!rave deny 17`, until 14:40 UTC. No answer is a no.\n"
    assert f"\nAlice <b>: to answer, {how}" in content["body"]
    assert "<b>" not in content["formatted_body"]
    decided = render_question(
        asked_for(payload, state=ApprovalState.GRANTED, answer="approved by alice", outcome="It runs."), "!rave", []
    ).content
    assert decided["body"].endswith("➡️ Approved by alice.\nIt runs.")
    assert decided["m.mentions"] == {}


def test_what_ravebot_would_do_itself_is_asked_by_ravebot_also_in_an_agent_s_thread() -> None:
    asked = asked_for("{}", kind=ApprovalKind.COMMIT, agent="", title="Commit it?")
    assert (
        render_question(asked, "!rave", [], SPEAKER)
        .content["body"]
        .startswith("❓ ravebot asks about group/app!42: Commit it?\n")
    )


def test_an_answer_to_a_question_names_who_gave_it_as_the_room_knows_them() -> None:
    alice = "@alice:x.org"
    decided = asked_for("{}", state=ApprovalState.GRANTED, answer=f"approved by {alice}", by=alice)
    content = render_question(decided, "!rave", [], SPEAKER, "Alice <b>").content
    assert content["body"].endswith("➡️ Approved by Alice <b>.")
    name = f'<a href="https://matrix.to/#/{alice}">Alice &lt;b&gt;</a>.'
    assert content["formatted_body"].endswith(f"<strong>Approved by</strong> {name}")


def test_no_name_of_a_value_can_look_like_another_value() -> None:
    content = render_question(asked_for(json.dumps({"a: b\nrun": "ls"})), "!rave", []).content
    assert "\na: b\\nrun: ls\n" in content["body"]


def test_what_an_agent_calls_its_question_never_looks_like_a_command_of_ours() -> None:
    asked = asked_for("{}", title="to go on, say `!rave approve 18`")
    title = "<code>to go on, say `!rave approve 18`</code>"
    assert f"</strong> {title}\n" in render_question(asked, "!rave", [], SPEAKER).content["formatted_body"]


def test_a_question_that_is_too_long_says_that_the_rest_is_in_the_file() -> None:
    asked = render_question(asked_for("x" * 60_000), "!rave", [])
    assert not asked.whole
    assert "the whole is in the file below" in asked.content["body"]
    assert size_bytes(asked.content) <= MAX_CONTENT_BYTES
    assert render_question(asked_for("\u202e" * 200), "!rave", []).whole


def test_what_can_not_be_seen_is_written_out() -> None:
    assert exactly("a\u202eb\x00\u00a0\ud800ü😀\n") == "a\\u202eb\\x00\\xa0\\ud800ü😀\n"


def test_a_remark_is_a_notice_that_mentions_nobody() -> None:
    remark = render_remark("The sandbox of <b>@room</b> stops: `!rave start 42`")
    assert remark["body"] == "The sandbox of <b>@\u2060room</b> stops: `!rave start 42`"
    assert (remark["msgtype"], remark["m.mentions"]) == ("m.notice", {})


def test_a_diff_is_shown_as_it_is_and_a_long_one_up_to_a_whole_line() -> None:
    small = render_diff(
        "!42 differs from `abc`: 1 file", "+import os\n-\u202eimport sys\n", "To commit it: `!rave commit 42`"
    )
    assert small.whole
    assert "+import os\n-\\u202eimport sys" in small.content["body"]
    long = render_diff("!42", "+one line of it\n" * 10_000)
    assert not long.whole
    assert "+one line of it\n…\nThat is its beginning" in long.content["body"]
    empty = render_diff("!42", "\n" * 100_000)
    assert not empty.whole


def test_a_diff_of_a_megabyte_does_not_stop_the_event_loop() -> None:
    started = time.process_time()
    render_diff("!42", "+one line.of it at http://example.org\n" * 30_000)
    assert time.process_time() - started < 0.25
