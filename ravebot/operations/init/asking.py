"""Who answers: a person at a terminal, or a script, which gave all answers on the command line."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterable
from typing import Protocol

from rich.padding import Padding
from rich.text import Text

from ravebot.errors import RavebotError
from ravebot.operations.doctor.finding import Finding, Verdict
from ravebot.operations.doctor.report import STYLES
from ravebot.operations.init.inquiry import Question
from ravebot.terminal import Output, clean

_SIGNS = {Verdict.OK: "✓", Verdict.WARNING: "!", Verdict.FAILED: "✗", Verdict.UNKNOWN: "?"}


class WrongAnswer(RavebotError):
    """An answer was refused, and there is nobody to ask again."""


class Respondent(Protocol):
    """Answers questions, and is told what became of the answers."""

    def ask(self, question: Question, proposal: str | None) -> str:
        """An answer; of a secret an empty one keeps the one that is there. Raises WrongAnswer if nobody can answer."""
        ...

    def decide(self, question: str) -> str:
        """An answer in a word to a question that has no place in the table."""
        ...

    def show(self, findings: Iterable[Finding]) -> None: ...

    def say(self, text: str, style: str = "") -> None: ...


class ScriptRespondent:
    """Never asks. Findings go to stderr; those that are fine only with `shows_all`."""

    def __init__(self, output: Output, *, shows_all: bool = False) -> None:
        self._output = output
        self._shows_all = shows_all

    def ask(self, question: Question, proposal: str | None) -> str:
        how = f"give {question.option}" + (f" or {question.variable}" if question.variable else "")
        raise WrongAnswer(f"{question.prompt}: no usable answer, and nobody to ask: {how}")

    def decide(self, question: str) -> str:
        return ""

    def show(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            if self._shows_all or finding.verdict is not Verdict.OK:
                self._output.complain(_sentence(finding), STYLES[finding.verdict])

    def say(self, text: str, style: str = "") -> None:
        self._output.complain(clean(text), style)


class TerminalRespondent:
    """Asks on stderr and reads the terminal; secrets are not shown while they are typed."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._number = 0
        self._last: Question | None = None

    def ask(self, question: Question, proposal: str | None) -> str:
        errors = self._output.errors
        if question is not self._last:
            self._number += 1
            self._last = question
            errors.print()
            errors.print(Text.assemble((f"{self._number}. ", "dim"), (question.prompt, "bold")))
            errors.print(_indented(Text(question.hint(kept=bool(question.secret and proposal)), "dim")))
        if question.secret:
            kept = f" (Enter keeps the one in {clean(proposal)})" if proposal else ""
            return _read(lambda: getpass.getpass(f"   hidden{kept}: ")).strip()
        shown = Text.assemble("   ", (f"[{clean(proposal)}] " if proposal else "", "cyan"), ("> ", "bold"))
        return _read(lambda: errors.input(shown)).strip() or (proposal or "")

    def decide(self, question: str) -> str:
        return _read(lambda: self._output.errors.input(Text(f"{question} ", style="bold"))).strip()

    def show(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            sign, style = _SIGNS[finding.verdict], STYLES[finding.verdict]
            self._output.errors.print(_indented(Text(f"{sign} {_sentence(finding)}", style)))

    def say(self, text: str, style: str = "") -> None:
        plain = text.lstrip(" ")
        self._output.errors.print(_indented(Text(clean(plain), style), len(text) - len(plain)))


def _indented(text: Text, by: int = 3) -> Padding:
    """Lines that are wrapped begin where the first one does."""
    return Padding(text, (0, 0, 0, by))


def _read(ask: Callable[[], str]) -> str:
    """A closed terminal is an interruption; what is no text is a wrong answer, which is asked for again."""
    try:
        return ask()
    except EOFError:
        raise KeyboardInterrupt from None
    except UnicodeDecodeError:
        return "\0"


def _sentence(finding: Finding) -> str:
    text = finding.detail if finding.verdict is Verdict.OK else f"{finding.name}: {finding.detail}"
    return clean(f"{text}; {finding.fix}" if finding.fix else text)
