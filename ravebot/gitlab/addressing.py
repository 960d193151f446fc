"""How agents are spoken to in a comment: `/agent NAME text`, where that is its first line that is no quote."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ravebot.agents.model import LONGEST_MESSAGE
from ravebot.gitlab.commands import LINES_READ, command_line
from ravebot.gitlab.escape import JOINER

AGENT_WORD = "/agent"
APPROVE, DENY, CANCEL, AGENT_HELP = "approve", "deny", "cancel", "help"
RESERVED = frozenset({APPROVE, DENY, CANCEL, AGENT_HELP})
"""Words after `/agent` that name no agent."""

_OPENS = re.compile(rf"{AGENT_WORD}(?:\s|$)")
_QUOTE = re.compile(r" {0,3}>")
_LINE_END = re.compile(r"\r\n|\n|\r")
_NUMBER = re.compile(r"#?([1-9]\d{0,14})", re.ASCII)
_NAME_READ = 50


@dataclass(frozen=True)
class SaidToAgent:
    """What somebody says to an agent; there may be none of that name. The text may be one character too long."""

    name: str
    text: str


@dataclass(frozen=True)
class AnswerGiven:
    """Somebody's answer to an approval."""

    approval: int
    granted: bool


@dataclass(frozen=True)
class CancelAsked:
    """Somebody wants an agent to stop. `name`: empty if none is named."""

    name: str


@dataclass(frozen=True)
class AgentHelpAsked:
    """Somebody asks how agents are spoken to."""


@dataclass(frozen=True)
class AgentMistake:
    """`about` is the word after `/agent`; `why` says what is wrong with what follows it, and what to type."""

    about: str
    why: str


AgentComment = SaidToAgent | AnswerGiven | CancelAsked | AgentHelpAsked | AgentMistake


def parse_agent_comment(text: str) -> AgentComment | None:
    """What a comment wants of agents; None when it is no such comment. Quotes and code address nobody."""
    found = _find(text)
    if found is None:
        return None
    name, rest, below = found
    word = name.lower()
    if word in ("", AGENT_HELP):
        return AgentHelpAsked()
    if word in (APPROVE, DENY):
        number = _NUMBER.fullmatch(rest.replace(JOINER, "").strip())
        if number is None:
            return AgentMistake(
                word, f"Say which question you answer: type `{AGENT_WORD} {word} ID`, as the question shows it."
            )
        return AnswerGiven(int(number[1]), word == APPROVE)
    if word == CANCEL:
        names = rest.replace(JOINER, "").split()
        if len(names) > 1:
            return AgentMistake(word, f"Only an agent's name may follow: type `{AGENT_WORD} {word} NAME`.")
        return CancelAsked("".join(names)[:_NAME_READ])
    return SaidToAgent(name, f"{rest}\n{below}".strip()[: LONGEST_MESSAGE + 1])


def for_us(text: str) -> str:
    """The part of a comment to store: what is parsed like the whole comment; "" when nothing in it is for us.

    A comment to an agent is that and nothing else: a command in one of its later lines is the agent's to read.
    """
    match parse_agent_comment(text):
        case None:
            return command_line(text)
        case SaidToAgent(name, said):
            return f"{AGENT_WORD} {name} {said}".rstrip()
        case AnswerGiven(approval, granted):
            return f"{AGENT_WORD} {APPROVE if granted else DENY} {approval}"
        case CancelAsked(name):
            return f"{AGENT_WORD} {CANCEL} {name}".rstrip()
        case AgentHelpAsked():
            return AGENT_WORD
        case AgentMistake(word) if word == CANCEL:
            return f"{AGENT_WORD} {CANCEL} … …"
        case AgentMistake(about):
            return f"{AGENT_WORD} {about}"


def _find(text: str) -> tuple[str, str, str] | None:
    """The name, the rest of its line, and the lines below it; None when it is no such comment."""
    quoted = False
    lines = _LINE_END.split(text, maxsplit=LINES_READ)
    for at, line in enumerate(lines[:LINES_READ]):
        if line.strip() == ">>>":  # GitLab's quote of many lines
            quoted = not quoted
        elif _OPENS.match(line) and not quoted:
            words = line.removeprefix(AGENT_WORD).split(maxsplit=1)
            name, rest = (*words, "", "")[:2]
            return name.replace(JOINER, "")[:_NAME_READ], rest, _LINE_END.sub("\n", "\n".join(lines[at + 1 :]))
        elif line.strip() and not quoted and not _QUOTE.match(line):
            break
    return None
