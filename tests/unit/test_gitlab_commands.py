"""What comments ask of us, and what they do not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.commands.verbs import VERBS, Command, Door, Mistake, explain
from ravebot.gitlab.commands import WORD, parse_comment


@pytest.mark.parametrize(
    ("text", "verb", "argument"),
    [
        ("/sandbox start", "start", None),
        ("/sandbox start ABCDEF12", "start", "abcdef12"),
        ("/sandbox start " + "a" * 40, "start", "a" * 40),
        ("/sandbox stop", "stop", None),
        ("/sandbox  stop  ", "stop", None),
        ("/sandbox STOP", "stop", None),
        ("/sandbox\tstop", "stop", None),
        ("/sandbox extend", "extend", None),
        ("/sandbox extend 1h30m", "extend", timedelta(minutes=90)),
        ("/sandbox extend 1h  30m", "extend", timedelta(minutes=90)),
        ("/sandbox rebuild", "rebuild", None),
        ("/sandbox retry", "retry", None),
        ("/sandbox help", "help", None),
        ("/sandbox", "help", None),
        ("thanks!\r\n\r\n/sandbox stop\r\n/sandbox start", "stop", None),
        ("```\n/sandbox stop\n```\n/sandbox start", "start", None),
        ("````\n```\n/sandbox stop\n````\n/sandbox start", "start", None),
        ("~~~ sh\n/sandbox stop\n~~~\n/sandbox start", "start", None),
        (">>>\n/sandbox stop\n>>>\n/sandbox start", "start", None),
    ],
)
def test_a_command_is_understood(text: str, verb: str, argument: object) -> None:
    command = parse_comment(text)
    assert isinstance(command, Command)
    assert (command.verb.name, command.ref, command.duration or command.sha) == (verb, None, argument)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "looks good",
        "type /sandbox stop",
        " /sandbox stop",
        "> /sandbox stop",
        "`/sandbox stop`",
        "    /sandbox stop",
        "```\n/sandbox stop\n```",
        "```\n/sandbox stop",
        "/sandboxes stop",
        "/sand stop",
        "/SANDBOX stop",
    ],
)
def test_other_comments_ask_nothing(text: str) -> None:
    assert parse_comment(text) is None


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("/sandbox strat", "Did you mean `/sandbox start [SHA]`?"),
        ("/sandbox extendd 1h", "Did you mean `/sandbox extend [1h]`?"),
        ("/sandbox @all", "Type `/sandbox help` to see what there is."),
        ("/sandbox extend soon", "That is no duration: write a duration like 90s, 30m, 2h"),
        ("/sandbox extend 0s", "longer than nothing"),
        ("/sandbox extend -1h", "write a duration"),
        ("/sandbox extend " + "9" * 30 + "d", "write a duration"),
        ("/sandbox start main", "A commit is at least its first 8 hexadecimal digits. Type `/sandbox start [SHA]`."),
        ("/sandbox stop now", "There is something after it that does not belong there. Type `/sandbox stop`."),
    ],
)
def test_a_mistake_gets_advice(text: str, advice: str) -> None:
    result = parse_comment(text)
    assert isinstance(result, Mistake)
    assert advice in explain(result, Door.COMMENT, WORD)


@given(st.text(max_size=300), st.text(max_size=100))
def test_any_text_is_answered_and_never_repeated(before: str, after: str) -> None:
    result = parse_comment(f"{before}\n/sandbox {after}")
    if isinstance(result, Mistake):
        assert len(explain(result, Door.COMMENT, WORD)) < 300
        assert "@" not in explain(result, Door.COMMENT, WORD)


def test_help_may_be_about_one_command() -> None:
    command = parse_comment("/sandbox help Extend")
    assert isinstance(command, Command)
    assert command.about == next(verb for verb in VERBS if verb.name == "extend")
    assert isinstance(parse_comment("/sandbox help show"), Mistake), "it can't be typed here"


def test_a_very_long_comment_is_read_quickly_and_only_so_far() -> None:
    assert parse_comment("x\n" * 400_000 + "/sandbox stop") is None
