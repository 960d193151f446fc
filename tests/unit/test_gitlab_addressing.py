"""What comments say to agents, and what they do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.model import LONGEST_MESSAGE
from ravebot.commands.verbs import Command
from ravebot.gitlab.addressing import (
    AgentHelpAsked,
    AgentMistake,
    AnswerGiven,
    CancelAsked,
    SaidToAgent,
    for_us,
    parse_agent_comment,
)
from ravebot.gitlab.commands import parse_comment
from ravebot.gitlab.escape import JOINER, text


@pytest.mark.parametrize(
    ("comment", "name", "said"),
    [
        ("/agent coder fix the login test", "coder", "fix the login test"),
        ("/agent  coder \t fix it ", "coder", "fix it"),
        ("/agent\tcoder fix it", "coder", "fix it"),
        ("/agent coder\nfix it\n\nplease", "coder", "fix it\n\nplease"),
        ("/agent coder fix it\r\n```\r\nx = 1\r\n```", "coder", "fix it\n```\nx = 1\n```"),
        ("\n \n/agent coder fix it", "coder", "fix it"),
        ("> what it said\n\n/agent coder no, the other one", "coder", "no, the other one"),
        (">>>\nwhat it said\n/agent coder old\n>>>\n/agent coder new", "coder", "new"),
        ("/agent coder look\n/sandbox stop", "coder", "look\n/sandbox stop"),
        ("/agent coder look\n/agent reviewer look", "coder", "look\n/agent reviewer look"),
        ("/agent Coder x", "Coder", "x"),
        ("/agent coder", "coder", ""),
        ("/agent approver x", "approver", "x"),
        (f"/agent {JOINER}coder x", "coder", "x"),
    ],
)
def test_what_is_said_to_an_agent_is_understood(comment: str, name: str, said: str) -> None:
    assert parse_agent_comment(comment) == SaidToAgent(name, said)


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "looks good",
        "looks good\n/agent coder x",
        "please /agent coder x",
        " /agent coder x",
        "    /agent coder x",
        "> /agent coder x",
        "   > /agent coder x",
        ">>>\n/agent coder x\n>>>",
        ">>>\n/agent coder x",
        "```\n/agent coder x\n```",
        "```\nlog\n```\n/agent coder x",
        "~~~\n/agent coder x",
        "`/agent coder x`",
        "/agents coder x",
        "/AGENT coder x",
        "@coder x",
        "/sandbox stop\n/agent coder x",
        text("/agent coder x"),
    ],
)
def test_other_comments_say_nothing_to_agents(comment: str) -> None:
    assert parse_agent_comment(comment) is None


@pytest.mark.parametrize(
    ("comment", "answer"),
    [
        ("/agent approve 12", AnswerGiven(12, True)),
        ("/agent deny 12", AnswerGiven(12, False)),
        ("/agent Approve #12\nthank you", AnswerGiven(12, True)),
    ],
)
def test_an_answer_to_a_question_is_understood(comment: str, answer: AnswerGiven) -> None:
    assert parse_agent_comment(comment) == answer


@pytest.mark.parametrize(
    "comment",
    [
        "/agent approve",
        "/agent deny it",
        "/agent approve 0",
        "/agent approve -1",
        "/agent deny 1 2",
        "/agent approve ١",
    ],
)
def test_an_answer_to_no_question_gets_advice(comment: str) -> None:
    result = parse_agent_comment(comment)
    assert isinstance(result, AgentMistake)
    assert "type `/agent " in result.why


@pytest.mark.parametrize(
    ("comment", "name"),
    [("/agent cancel", ""), ("/agent Cancel coder\nplease", "coder"), (f"/agent cancel {JOINER}coder", "coder")],
)
def test_cancel_is_a_reserved_word(comment: str, name: str) -> None:
    assert parse_agent_comment(comment) == CancelAsked(name)


def test_more_than_a_name_after_cancel_gets_advice() -> None:
    result = parse_agent_comment("/agent cancel coder and go home")
    assert isinstance(result, AgentMistake)
    assert result.why == "Only an agent's name may follow: type `/agent cancel NAME`."


@pytest.mark.parametrize("comment", ["/agent", "/agent help", "/agent HELP me", "/agent\ncoder x"])
def test_help_is_a_reserved_word(comment: str) -> None:
    assert parse_agent_comment(comment) == AgentHelpAsked()


def test_a_command_to_ravebot_below_words_to_an_agent_is_the_agents_to_read() -> None:
    assert isinstance(parse_comment("/agent coder look\n/sandbox stop"), Command), "by itself it would be one"
    assert for_us("/agent coder look\n/sandbox stop") == "/agent coder look\n/sandbox stop"


def test_a_message_that_is_too_long_stays_too_long_when_it_is_stored() -> None:
    for between in (" ", "\n" * 30_000, " " * 30_000):
        kept = for_us(f"/agent coder{between}{'x' * 50_000}")
        assert len(kept) < LONGEST_MESSAGE + 100
        said = parse_agent_comment(kept)
        assert isinstance(said, SaidToAgent)
        assert len(said.text) == LONGEST_MESSAGE + 1


def test_a_comment_of_a_megabyte_is_read_quickly() -> None:
    assert parse_agent_comment("\n" * 1_000_000 + "/agent coder x") is None
    assert for_us("/agent coder " + "x\n" * 500_000)
    assert parse_agent_comment("/agent " + "a" * 1_000_000) == SaidToAgent("a" * 50, "")


@given(st.text(st.sampled_from("/agent coderhlp>`~\n\r\t 019#x\u2060"), max_size=200), st.text(max_size=100))
def test_what_is_stored_is_read_like_the_whole_comment(words: str, more: str) -> None:
    for comment in (
        words + more,
        f"/agent {words}{more}",
        f"> {more}\n/agent {words}",
        f"/agent coder {more}\n{words}",
        f"/agent cancel {words}",
    ):
        kept = for_us(comment)
        assert parse_agent_comment(kept) == parse_agent_comment(comment)
        assert for_us(kept) == kept
        if parse_agent_comment(comment) is None:
            assert parse_comment(kept) == parse_comment(comment)


@given(st.text(max_size=200))
def test_escaped_text_never_speaks_to_an_agent(words: str) -> None:
    assert parse_agent_comment(text(f"/agent {words}")) is None
