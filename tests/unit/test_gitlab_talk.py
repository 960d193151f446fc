"""What merge requests show of conversations with agents: an agent's words command, mention and link nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from markdown_it import MarkdownIt

from ravebot.agents.model import ApprovalState, ConversationId, MessageId, Turn, TurnId, TurnState
from ravebot.gitlab.addressing import parse_agent_comment
from ravebot.gitlab.commands import parse_comment
from ravebot.gitlab.talk import render_note_answer, render_note_question, render_note_remark
from tests.support.gitlab.notes import links, mentions, take_quick_actions
from tests.unit.test_gitlab_notes import HOSTILE as HOSTILE_LINES
from tests.unit.test_matrix_agents import HOSTILE, asked_for

MARK = "<!-- ravebot 0a1b 7!42 answer:1 -->"
WORDS = {
    **HOSTILE,
    "GitLab's": HOSTILE_LINES,
    "bold": "**@all** @**all** **/close**\n**/close**\n/**close**\n[**a**](https://evil.example) <**b**> **a\\**\n"
    "**https://evil.example** https:**//evil**.example **#1** !**2** **`@all`** **\u2028/close** " + "**a" * 9000,
    "quoted": "> /close\n\n    /merge\n```\n/close\n```\n/label ~x\n>>>\n/done",
}


def shown(answer: str, state: TurnState = TurnState.DONE, **facts: Any) -> str:
    base = Turn(TurnId(7), MessageId(1), ConversationId(1), state, datetime(2026, 1, 1, tzinfo=UTC))
    return render_note_answer(replace(base, answer=answer, **facts), "coder", MARK)


def question(payload: str, **facts: Any) -> str:
    return render_note_question(asked_for(payload, **{"title": "run <b>@all", "ref": "group/app!42", **facts}), MARK)


def assert_harmless(body: str) -> None:
    assert body.startswith(f"{MARK}\n")
    assert take_quick_actions(body)[1] == []
    assert mentions(body) == links(body) == []
    assert parse_comment(body) is None
    assert parse_agent_comment(body) is None
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    ours = {f"{MARK}\n", "<details>\n<summary>The whole answer</summary>\n", "</details>", "</details>\n"}
    assert {token.content for token in tokens if token.type == "html_block"} <= ours | {
        "<details>\n<summary>The whole of it</summary>\n"
    }
    inner = [child.type for token in tokens for child in token.children or ()]
    assert not {"html_inline", "image", "link_open"} & set(inner)


def test_what_an_agent_marks_as_bold_stands_out() -> None:
    body = shown("I have read **page.html**, **all** of `**it**`; 2 ** 3 and **<b>** and ***x*** stay.")
    html = MarkdownIt("commonmark").render(body)
    assert "<strong>page.html</strong>" in html
    assert "<strong>all</strong> of <code>**it**</code>" in html
    assert html.count("<strong>") == 4  # with the agent's name and that of x


@pytest.mark.parametrize("what", WORDS)
def test_hostile_words_are_harmless_and_rendered_in_a_moment(what: str) -> None:
    before = time.process_time()
    body = shown(WORDS[what])
    took = time.process_time() - before
    assert_harmless(body)
    assert body.count("<details>") == body.count("</details>") <= 1
    assert len(body) < 900_000  # a note has at most a million characters
    assert took < 2.0


@pytest.mark.parametrize("what", WORDS)
def test_a_question_and_a_remark_with_hostile_words_are_harmless(what: str) -> None:
    assert_harmless(question(WORDS[what]))
    assert_harmless(render_note_remark(WORDS[what][:3000], MARK))


def test_an_answer_keeps_its_lines_and_its_code_and_is_marked_as_the_sandbox_s_word() -> None:
    body = shown("I changed `app.py`:\nall is well.\n\n```py\nimport os\n```\ndone")
    assert body == (
        f"{MARK}\n**coder**, in this merge request's sandbox:\n\n"
        "I changed `app.py`\u2060:  \nall is well.\n\n```text\nimport os\n```\n\ndone\n"
    )


def test_the_colours_of_a_terminal_are_left_out_of_an_answer() -> None:
    assert shown("\x1b[31mred\x1b[0m").endswith(" sandbox:\n\nred\n")


def test_a_long_answer_shows_its_beginning_and_is_folded_away() -> None:
    body = shown("\n".join(f"line {number}" for number in range(400)))
    visible, folded = body.split("<details>")
    assert "line 24" in visible
    assert "line 25" not in visible
    assert "line 399" in folded


def test_how_a_turn_ended_is_said_below() -> None:
    assert shown("", TurnState.FAILED, why="no `opencode`").endswith("⚠️ No `opencode`\n")
    assert shown("x", TurnState.CANCELLED, cancelled_by="alice").endswith("x\n\n⚠️ Cancelled by alice.\n")
    assert shown("").endswith("It ended without a word.\n")


def test_a_question_shows_all_of_it_how_to_answer_and_then_the_answer() -> None:
    body = question('{"command": "rm\\u202e"}')
    assert "```text\ncommand: rm\\u202e\n```" in body
    assert "comment `/agent approve 17` or `/agent deny 17`, until 14:40 UTC. No answer is a no." in body
    decided = question("{}", state=ApprovalState.DENIED, answer="denied by alice (gitlab)", outcome="it was told")
    assert decided.endswith("➡️ **Denied by alice.** It was told\n")
    assert "May answer" not in decided
