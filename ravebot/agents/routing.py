"""Finds out which agent a person's message is for, and what the agent is given of it. Pure.

An explicit name comes before the agent whose thread or message it is about; only `ask` also looks at the default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ravebot.commands import refs

_LONGEST_HEAD = 600
"""Characters in which the name and the reference must be; both are shorter."""
_NAMED = re.compile(r"(?:@(?P<at>[a-z][a-z0-9-]{1,30}):?|(?P<plain>[A-Za-z][a-z0-9-]{1,30}):)(?=\s|\Z)")


@dataclass(frozen=True)
class Near:
    """What is known of the place of a message. `names`: every agent that can be spoken to.

    `agent`: whose own thread it is in, or whose message it answers; `default`: the room's agent. Empty: there is none.
    """

    names: frozenset[str]
    agent: str = ""
    default: str = ""


@dataclass(frozen=True)
class ToAgent:
    """A message for an agent. `ref`: the merge request as it is typed, empty if none is; `named`: the agent was named,
    or asked by the command; otherwise the place says whom it is for."""

    agent: str
    text: str
    ref: str = ""
    named: bool = True


@dataclass(frozen=True)
class Unclear:
    """A message that is meant for an agent and can't be given to one; `why` says what to do."""

    why: str


def names_one(text: str, names: Iterable[str]) -> bool:
    """Whether a message begins with the name of one of these agents, after the lines that it quotes."""
    return _named(_without_quotes(text)[1], names) is not None


def route(text: str, near: Near) -> ToAgent | Unclear | None:
    """Whom a message that is no command is for; None: no agent."""
    quoted, own = _without_quotes(text)
    if not own.strip():
        return None
    if (found := _named(own, near.names)) is not None:
        agent, rest = found
        return _given(agent, rest, quoted)
    return ToAgent(near.agent, text.strip(), named=False) if near.agent else None


def asked(text: str, near: Near) -> ToAgent | Unclear:
    """Whom the text after `ask` is for: the agent that its first word names, or that of the thread, or the default."""
    word, rest = _first_word(text)
    name = _as_configured(word.removeprefix("@").removesuffix(":"), near.names)
    if name:
        return _given(name, rest)
    if meant := but_for_capitals(word.removeprefix("@").removesuffix(":"), near.names):
        return Unclear(f"There is no such agent: did you mean {meant}? Names are written as they are.")
    if agent := near.agent or near.default:
        return _given(agent, text)
    if not near.names:
        return Unclear(
            "No agent can be spoken to here: an admin of ravebot adds them to `agents` in its configuration."
        )
    return Unclear(f"Say which agent, before the text: {' or '.join(sorted(near.names)[:5])}.")


def _given(agent: str, text: str, quoted: str = "") -> ToAgent | Unclear:
    word, rest = _first_word(text)
    ref = word.rstrip(":,") if "!" in word else ""
    if ref and refs.number_in(ref) is not None:
        text = rest
    else:
        ref = ""
    if not text.strip():
        return Unclear(f"Write what {agent} is to do, after its name: `@{agent} the login test fails, please look`.")
    return ToAgent(agent, f"{quoted}{text.strip()}", ref)


def _named(own: str, names: Iterable[str]) -> tuple[str, str] | None:
    """The agent that a text names at its beginning, and the text after the name."""
    own = own.lstrip()
    match = _NAMED.match(own[:_LONGEST_HEAD])
    name = _as_configured(match["at"] or match["plain"], names) if match else ""
    return (name, own[match.end() :]) if match and name else None


def _as_configured(word: str, names: Iterable[str]) -> str:
    """The agent of that name; phones write the first letter of a message as a capital."""
    lower = f"{word[:1].lower()}{word[1:]}"
    return lower if lower in names else ""


def but_for_capitals(word: str, names: Iterable[str]) -> str:
    """The agent whose name a word is, but for capitals; empty if there is none."""
    return word.lower() if word.lower() in names else ""


def _first_word(text: str) -> tuple[str, str]:
    text = text.lstrip()
    match = re.match(r"\S*", text[:_LONGEST_HEAD])
    word = match[0] if match else ""
    return word, text[len(word) :]


def _without_quotes(text: str) -> tuple[str, str]:
    """The quoted lines at the beginning, and what follows them."""
    end = 0
    for line in text.splitlines(keepends=True):
        if line.strip() and not line.lstrip().startswith(">"):
            break
        end += len(line)
    return text[:end], text[end:]
