"""An answer is printed piece by piece, whatever of it is kept; the shell knows the limits of a message."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ravebot.agents.hearing import piece
from ravebot.agents.model import LONGEST_ANSWER, LONGEST_MESSAGE
from ravebot.operations.agents.cli import LONGEST_TEXT
from ravebot.operations.agents.following import follow
from ravebot.operations.agents.reports import AgentReport, AgentSummary, ApprovalLine, TurnHeard, TurnLine
from ravebot.operations.agents.show import show_agent, show_approvals, show_turns
from ravebot.terminal import Output
from ravebot.web.adminagents import AgentClient

HALF = LONGEST_ANSWER // 2


def kept(whole: str) -> tuple[str, int]:
    """What is kept of an answer, as `TurnProgress.words` does it."""
    cut = max(0, len(whole) - LONGEST_ANSWER)
    return (whole[:HALF] + whole[HALF + cut :], cut) if cut else (whole, 0)


def heard(lengths: list[int]) -> tuple[str, int, str]:
    """What somebody hears who asks after each step in which an answer grew, what they are told is missing, and all."""
    whole, text, missing, offset = "", "", 0, 0
    for length in lengths:
        whole += "".join(chr(33 + (len(whole) + at) % 90) for at in range(length))
        answer, cut = kept(whole)
        while True:
            more, left_out, offset = piece(answer, cut, offset)
            text, missing = text + more, missing + left_out
            if not more and not left_out:
                break
    return text, missing, whole


@given(st.lists(st.integers(0, 50), max_size=20))
def test_of_a_short_answer_everything_is_heard_once(lengths: list[int]) -> None:
    text, missing, whole = heard(lengths)
    assert (text, missing) == (whole, 0)


@given(st.lists(st.integers(0, LONGEST_ANSWER), min_size=1, max_size=4))
def test_of_a_long_answer_all_is_heard_or_counted_and_the_end_is_never_missing(lengths: list[int]) -> None:
    text, missing, whole = heard(lengths)
    assert len(text) + missing == len(whole)
    assert text[:HALF] == whole[:HALF]
    end = whole[-min(HALF, lengths[-1]) :] if lengths[-1] else ""
    assert text.endswith(end)


def test_the_shell_takes_as_long_a_message_as_an_agent() -> None:
    assert LONGEST_TEXT == LONGEST_MESSAGE


def test_an_offset_beyond_the_end_hears_nothing() -> None:
    assert piece("abc", 0, 99) == ("", 0, 99)
    assert piece("abc", 0, 3) == ("", 0, 3)
    assert piece("x" * LONGEST_ANSWER, 10, LONGEST_ANSWER + 10) == ("", 0, LONGEST_ANSWER + 10)


AT = datetime(2026, 11, 28, 11, 40, 12, tzinfo=UTC)
TURN = TurnLine(
    17, "coder", "group/app!42", "matrix", "@al:example.org (matrix)", "dead", "It is gone.", "Look, \x1b[2J " * 9,
    1, AT, None,
)  # fmt: skip
APPROVAL = ApprovalLine(
    2,
    "commit",
    "denied",
    "Commit it?",
    "{}",
    "group/app!42",
    "alice (gitlab)",
    AT,
    AT,
    "bob (gitlab)",
    "it is not done",
)


def printing(terminal: bool) -> Output:
    output = Output()
    output.console = Console(force_terminal=terminal, no_color=True, width=80)
    return output


@pytest.mark.parametrize("terminal", [True, False])
def test_times_are_short_for_people_and_whole_for_programs(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    show_turns(printing(terminal), [TURN])
    printed = capsys.readouterr().out
    assert ("2026-11-28T11:40:12Z" in printed, "28 Nov" in printed) == (not terminal, terminal)


def test_in_a_narrow_terminal_nothing_that_is_copied_is_broken_and_long_texts_stand_below(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_turns(printing(True), [TURN])
    head, first, second, why = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    plain = re.sub(r"\x1b\[\d*m", "", head)
    assert plain == "17  28 Nov 11:40 UTC  dead  coder in group/app!42  for @al:example.org (matrix)"
    assert first.startswith("    Look, \\x1b[2J Look")
    assert second.startswith("    ")
    assert why == "    It is gone."

    show_approvals(printing(True), [APPROVAL, replace(APPROVAL, state="open", decided_by="", outcome="")])
    printed = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert [line.rstrip() for line in printed.splitlines()] == [
        "2  denied  commit  group/app!42  asked by alice (gitlab)",
        "    Commit it?",
        "    by bob (gitlab); it is not done",
        "2  open  commit  group/app!42  asked by alice (gitlab)",
        "    Commit it?",
        "    until 28 Nov 11:40 UTC",
    ]


def test_a_turn_and_a_question_are_a_line_each_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    show_turns(printing(False), [TURN])
    show_approvals(printing(False), [APPROVAL])
    _, turn, _, approval = capsys.readouterr().out.splitlines()
    assert turn.split("\t")[:2] == ["17", "2026-11-28T11:40:12Z"]
    assert approval.endswith("\tCommit it?\tby bob (gitlab); it is not done")


@pytest.mark.parametrize(("most", "shown"), [(0, False), (20_000_000, True)])
def test_tokens_are_shown_of_an_agent_that_uses_models_through_ravebot(
    most: int, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    line = AgentSummary("coder", "alice", ("group/*",), "", 0, 0, 3, 200, 1_234_567, most)
    show_agent(printing(False), AgentReport(line, ("opencode",), "", (), False, timedelta(minutes=30), (), ()))
    assert ("tokens of models today\t1,234,567 of 20,000,000" in capsys.readouterr().out) is shown


@dataclass(frozen=True)
class _Bot(AgentClient):
    """Answers in pieces, as for a long answer whose middle is not kept."""

    heard: list[TurnHeard] = field(default_factory=list)

    async def hear(self, turn: int, offset: int) -> TurnHeard:
        return self.heard.pop(0)


async def test_of_an_answer_that_is_over_all_pieces_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = [TurnHeard("done", True, True, "", "", text, 0, 1) for text in ("first ", "last", "")]
    assert await follow(_Bot(Path("socket"), pieces), 1, as_json=False)
    assert capsys.readouterr().out == "first last\n"
