"""What comments ask of us, and what they do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.gitlab.commands import VERBS, NoteCommand, NoteUsage, help_lines, parse_comment


@pytest.mark.parametrize(
    ("text", "verb", "argument"),
    [
        ("/sandbox start", "start", ""),
        ("/sandbox start ABCDEF12", "start", "abcdef12"),
        ("/sandbox start " + "a" * 40, "start", "a" * 40),
        ("/sandbox stop", "stop", ""),
        ("/sandbox  stop  ", "stop", ""),
        ("/sandbox STOP", "stop", ""),
        ("/sandbox\tstop", "stop", ""),
        ("/sandbox extend", "extend", ""),
        ("/sandbox extend 1h30m", "extend", "1h30m"),
        ("/sandbox extend 1h  30m", "extend", "1h 30m"),
        ("/sandbox rebuild", "rebuild", ""),
        ("/sandbox help", "help", ""),
        ("/sandbox", "help", ""),
        ("thanks!\r\n\r\n/sandbox stop\r\n/sandbox start", "stop", ""),
        ("```\n/sandbox stop\n```\n/sandbox start", "start", ""),
        ("````\n```\n/sandbox stop\n````\n/sandbox start", "start", ""),
        ("~~~ sh\n/sandbox stop\n~~~\n/sandbox start", "start", ""),
        (">>>\n/sandbox stop\n>>>\n/sandbox start", "start", ""),
    ],
)
def test_a_command_is_understood(text: str, verb: str, argument: str) -> None:
    assert parse_comment(text) == NoteCommand(verb, argument)


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
        ("/sandbox strat", "did you mean /sandbox start?"),
        ("/sandbox extendd 1h", "did you mean /sandbox extend?"),
        ("/sandbox @all", "there are start, stop, extend, rebuild, help"),
        ("/sandbox extend soon", "/sandbox extend [1h]: write a duration like 90s, 30m, 2h"),
        ("/sandbox extend 0s", "longer than nothing"),
        ("/sandbox extend -1h", "write a duration"),
        ("/sandbox extend " + "9" * 30 + "d", "write a duration"),
        ("/sandbox start main", "/sandbox start [SHA]: a commit is"),
        ("/sandbox stop now", "/sandbox stop: it takes nothing after it"),
    ],
)
def test_a_mistake_gets_advice(text: str, advice: str) -> None:
    result = parse_comment(text)
    assert isinstance(result, NoteUsage)
    assert advice in result.message


@given(st.text(max_size=300), st.text(max_size=100))
def test_any_text_is_answered_and_never_repeated(before: str, after: str) -> None:
    result = parse_comment(f"{before}\n/sandbox {after}")
    if isinstance(result, NoteUsage):
        assert len(result.message) < 300
        assert "@" not in result.message


def test_help_is_the_table() -> None:
    assert [usage.split()[1] for usage, _purpose in help_lines()] == [verb.name for verb in VERBS]
    assert ("/sandbox extend [1h]", "make it live longer, by so much") in help_lines()


def test_a_very_long_comment_is_read_quickly_and_only_so_far() -> None:
    assert parse_comment("x\n" * 400_000 + "/sandbox stop") is None
