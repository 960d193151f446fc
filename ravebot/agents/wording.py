"""How turns and questions are told, in words that are the same at every door. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from ravebot.agents.model import AgentDoor, Turn, TurnId, TurnState
from ravebot.agents.questions import Part

LONGEST_LISTED = 190_000
"""Characters of a question as it is listed that every door shows whole; what can't be seen is longer when it is listed.
"""
_ENDS = {
    TurnState.FAILED: "This ended with an error",
    TurnState.CANCELLED: "Cancelled",
    TurnState.UNCERTAIN: "It can't be known whether this was done to its end, so it is not done again by itself",
    TurnState.DEAD: "The agent did not get this",
}


def ended(turn: Turn) -> str:
    """How a turn ended that did not end well, and why; empty for any other. It is untrusted."""
    if turn.state not in _ENDS:
        return ""
    why = " ".join(turn.why.split())
    if turn.state is not TurnState.CANCELLED:
        return f"{why[:1].upper()}{why[1:]}" or f"{_ENDS[turn.state]}."
    if why.startswith(_ENDS[turn.state]):
        return why
    by = f" by {turn.cancelled_by[:100]}" if turn.cancelled_by else ""
    return f"{_ENDS[turn.state]}{by}{f': {why}' if why else '.'}"


def once_more(door: AgentDoor, prefix: str, turn: TurnId) -> str:
    """How a person has a turn done again; in an agent's thread, a bare word would be for the agent."""
    match door:
        case AgentDoor.MATRIX:
            return f"To have it done again, say `{prefix} resend` here."
        case AgentDoor.GITLAB:
            return "To have it done again, write it again."
        case AgentDoor.SHELL:
            return f"To have it done again: `ravebot agent dead resend {turn}`."
        case AgentDoor.API:
            return "To have it done again, send it again."


def in_words(limit: timedelta) -> str:
    """A limit of time."""
    minutes, seconds = divmod(int(limit.total_seconds()), 60)
    return f"{minutes} min" if minutes and not seconds else f"{int(limit.total_seconds())} s"


def left_out(characters: int) -> str:
    """What stands in the place of a part of an answer."""
    return f"[{characters:,} characters left out]"


def listed(parts: Sequence[Part]) -> str:
    """The whole of what is asked, a value a line; what can't be seen is written out as its escape, and a value of
    several lines is indented, so that nothing in it is hidden or looks like another value."""
    return exactly("\n".join(map(_part, parts)))


def exactly(text: str) -> str:
    """The text with what can't be seen written out as its escape."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )


def _part(part: Part) -> str:
    name = part.name.replace("\n", "\\n")
    if "\n" not in part.text:
        return f"{name}: {part.text}" if name else part.text
    return "\n    ".join([f"{name}:", *part.text.split("\n")])
