"""What merge requests show of conversations with agents, as GitLab's Markdown. Pure; all that an agent says is escaped.

Of an agent's Markdown only code keeps its form, since anything else could mention, link or command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ravebot.agents.model import Receipt, Turn, TurnState
from ravebot.agents.questions import ApprovalQuestion
from ravebot.agents.wording import LONGEST_LISTED, ended, left_out, listed
from ravebot.gitlab.addressing import AGENT_WORD
from ravebot.gitlab.escape import block, text
from ravebot.gitlab.notes import details, said
from ravebot.sandboxes.view import without_terminal_codes

AWARDS = {
    Receipt.SEEN: "eyes",
    Receipt.WAITS: "pause_button",
    Receipt.DONE: "white_check_mark",
    Receipt.TROUBLE: "warning",
}
"""The emoji on a comment for an agent, by GitLab's names."""
_SHOWN_CHARACTERS, _SHOWN_LINES = 1500, 25
"""Of a longer answer the beginning is shown, and the whole is folded away."""
_LONGEST_LINE = 20_000
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def render_note_answer(turn: Turn, agent: str, marker: str) -> str:
    """A turn that is over: what the agent said, as its sandbox's word, and how the turn ended if not well."""
    parts = [f"{marker}\n**{text(agent, 40)}**, in this merge request's sandbox:"]
    answer = without_terminal_codes(turn.answer).replace("\r\n", "\n").replace("\r", "\n").strip("\n")
    if turn.cut:
        parts.append(f"*Of its middle: {text(left_out(turn.cut))}*")
    if len(answer) > _SHOWN_CHARACTERS or answer.count("\n") >= _SHOWN_LINES:
        beginning = "\n".join(answer[:_SHOWN_CHARACTERS].split("\n")[:_SHOWN_LINES])
        parts += [f"{_words(beginning)}\n\n…", details("The whole answer", _words(answer))]
    elif answer.strip():
        parts.append(_words(answer))
    elif turn.state is TurnState.DONE:
        parts.append("It ended without a word.")
    if how := ended(turn):
        parts.append(f"⚠️ {said(how[:1000], 1000)}")
    return "\n\n".join(parts) + "\n"


def render_note_question(asked: ApprovalQuestion, marker: str) -> str:
    """The whole of what is asked, and how to answer; after the answer, that."""
    who = f"**{text(asked.agent, 40)}** asks" if asked.agent else "ravebot asks"
    shown = listed(asked.parts)
    parts = [f"{marker}\n❓ {who}: {text(asked.title, 300)}"]
    if shown:
        whole = block(shown, limit=LONGEST_LISTED, max_lines=LONGEST_LISTED)
        parts.append(whole if len(shown) <= 4 * _SHOWN_CHARACTERS else details("The whole of it", whole))
    if asked.is_open:
        how = f"To answer, comment {said(asked.how(AGENT_WORD))}, until {asked.until}. No answer is a no."
        parts.append(f"{how} May answer: {said(asked.whom)}.")
    else:
        outcome = f" {said(_upper(asked.outcome[:1000]))}" if asked.outcome else ""
        answer = _upper(asked.answer.removesuffix(" (gitlab)"))
        parts.append(f"➡️ **{text(f'{answer}.', 300)}**{outcome}")
    return "\n\n".join(parts) + "\n"


def render_note_remark(words: str, marker: str) -> str:
    """A line of ours in a conversation."""
    return f"{marker}\n" + "\n\n".join(said(line[:1000]) for line in words.split("\n")[:20] if line.strip()) + "\n"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(answer: str) -> str:
    return "\n\n".join(_paragraphs(answer.split("\n")))


def _paragraphs(lines: Sequence[str]) -> Iterator[str]:
    """Its lines as they are, those between fences as code."""
    held: list[str] = []
    fence = ""
    for line in lines:
        mark = _FENCE.match(line)
        opens = mark is not None and not fence
        closes = bool(fence) and line.strip().startswith(fence) and not line.strip().strip(fence[0])
        if opens or closes or (not fence and not line.strip()):
            if held:
                yield _held(held, code=bool(fence))
            held = []
            fence = mark[1] if opens and mark else ("" if closes else fence)
        else:
            held.append(line)
    if held:
        yield _held(held, code=bool(fence))


def _held(lines: list[str], *, code: bool) -> str:
    if code:
        return block("\n".join(lines), limit=70_000, max_lines=70_000)
    return "  \n".join(said(line[:_LONGEST_LINE], _LONGEST_LINE, bold=True) for line in lines)
