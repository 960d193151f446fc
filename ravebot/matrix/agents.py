"""Renders what rooms show of conversations with agents: answers, questions, remarks, diffs.

Pure. Everything that an agent says is untrusted, is marked as its sandbox's word, and mentions nobody.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from ravebot.agents.model import Receipt, Turn, TurnState
from ravebot.agents.questions import ApprovalQuestion
from ravebot.agents.wording import ended, exactly, left_out, listed
from ravebot.matrix.content import (
    MAX_CONTENT_BYTES,
    Content,
    Span,
    bold,
    joined,
    marked,
    message,
    pill,
    size_bytes,
    words,
)
from ravebot.matrix.markdown import agents_words, code_block, code_line
from ravebot.matrix.text import one_line

RECEIPTS = {Receipt.SEEN: "👀", Receipt.WAITS: "⏸️", Receipt.DONE: "✅", Receipt.TROUBLE: "⚠️"}
"""The reactions on a message to an agent."""
YES, NO = "✅", "❌"
"""The reactions on a question, for people to tap on."""
_LENGTHS = (8000, 4000, 2000, 1000, 400)
"""Characters of a question's payload or of a diff that are tried, the longest first."""
_WHOLE, *_ENDS = 6000, 3000, 1500, 600
"""Characters of an answer that are tried: all of one that is not longer than the first, else its beginning and end."""


@dataclass(frozen=True)
class Speaker:
    """Whose words they are: the agent's name, and the merge request whose sandbox it is in."""

    agent: str
    ref: str = ""

    @property
    def label(self) -> str:
        return f"{self.agent} in {self.ref}" if self.ref else self.agent


@dataclass(frozen=True)
class Shown:
    """A message, and whether all there is to show is in it; if it isn't, a file with the whole comes after it."""

    content: Content
    whole: bool


def render_answer(turn: Turn, speaker: Speaker, *, last_edit: bool = False) -> Shown:
    """A turn as it is now: what the agent said and, below, what it does or how the turn ended.

    The agent's words are a text; without words it is a notice. `last_edit`: it is shown again only at the end.
    """
    below = _below(turn, last_edit=last_edit)
    if not turn.answer.strip():
        silent = below or words("It ended without a word." if turn.state.is_over else "It is at work.")
        return Shown(_spoken(speaker, silent, kind="m.notice"), whole=True)
    content: Content = {}
    for most in (_WHOLE, *_ENDS) if len(turn.answer) <= _WHOLE else _ENDS:
        said, missing = _ends_of(turn.answer, turn.cut, most)
        parts = joined(said + ([Span(below.plain, f"<p>{below.html}</p>")] if below else []), "\n\n", "")
        content = _spoken(speaker, parts, kind="m.text")
        if size_bytes(content) <= MAX_CONTENT_BYTES:
            return Shown(content, whole=not missing)
    return Shown(content, whole=False)


def whole_answer(turn: Turn) -> str:
    """An answer as a file, as it was kept."""
    if not turn.cut:
        return turn.answer
    half = len(turn.answer) // 2
    return f"{turn.answer[:half]}\n\n{left_out(turn.cut)}\n\n{turn.answer[half:]}"


def render_question(
    asked: ApprovalQuestion,
    prefix: str,
    people: Sequence[tuple[str, str]],
    speaker: Speaker | None = None,
    by: str = "",
) -> Shown:
    """The whole of what is asked, and how to answer. `people`: ids and names of those who are notified; `speaker`: the
    agent of the conversation, which asks if it is an agent's request; `by`: the name of `asked.by`.

    It is a text, for a notice notifies nobody.
    """
    speaker = speaker if asked.agent else None
    who = joined(
        (
            words("❓"),
            bold(f"{one_line(_asker(asked, speaker), 300)}:"),
            code_line(asked.title, 300) if speaker else marked(asked.title, 300),
        )
    )
    named = [joined([pill(user_id, name) for user_id, name in people], ", ", ", ")] if people else []
    last = _answered(asked, by) if not asked.is_open else _to_answer(asked, prefix, named)
    shown = listed(asked.parts)
    content: Content = {}
    for most in _LENGTHS:
        cut = len(shown) > most
        parts = [who, *([code_block(f"{shown[:most]}…" if cut else shown)] if shown else [])]
        if cut:
            parts.append(words("That is its beginning; the whole is in the file below, whose name has its SHA-256."))
        content = message([*parts, last], mentions=[user_id for user_id, _ in people]) | {"msgtype": "m.text"}
        if size_bytes(content) <= MAX_CONTENT_BYTES:
            return Shown(content, whole=not cut)
    return Shown(content, whole=False)


def render_file(name: str, address: str, size: int, speaker: Speaker | None = None) -> Content:
    """A file that was uploaded before."""
    content: Content = {
        "msgtype": "m.file",
        "body": name,
        "filename": name,
        "url": address,
        "info": {"mimetype": "text/plain", "size": size},
        "m.mentions": {},
    }
    return content | (_profile(speaker, fallback=False) if speaker else {})


def render_remark(text: str) -> Content:
    """A line of ours in a conversation; what it quotes from others is made harmless."""
    return message([joined([marked(line, 1000) for line in text.split("\n")[:20]], "\n", "<br>")])


def reaction(event_id: str, key: str) -> Content:
    """The content of an `m.reaction`."""
    return {"m.relates_to": {"rel_type": "m.annotation", "event_id": event_id, "key": key}}


def render_diff(head: str, patch: str, then: str = "") -> Shown:
    """What differs in a sandbox: `head` and `then` are ours (what it is compared with, what can be typed next), the
    patch is the sandbox's."""
    # A patch may have a megabyte, of which the rest would not be shown.
    shown = exactly(patch[: 2 * _LENGTHS[0]]).strip("\n")
    content: Content = {}
    for most in _LENGTHS:
        cut = len(shown) > most or len(patch) > 2 * _LENGTHS[0]
        parts = [marked(head, 1000)]
        if shown:
            parts.append(code_block(f"{shown[:most].rpartition(chr(10))[0]}\n…" if cut else shown))
        if cut:
            parts.append(words("That is its beginning; the whole is in the file below."))
        content = message([*parts, *([marked(then, 1000)] if then else [])])
        if size_bytes(content) <= MAX_CONTENT_BYTES:
            return Shown(content, whole=not cut)
    return Shown(content, whole=False)


def _spoken(speaker: Speaker, said: Span, *, kind: str) -> Content:
    """A message in an agent's name (MSC4144), with the fallback of that proposal for the clients that know none.

    https://github.com/matrix-org/matrix-spec-proposals/pull/4144
    """
    label = one_line(speaker.label, 200)
    return {
        "msgtype": kind,
        "body": f"{label}: {said.plain}",
        "format": "org.matrix.custom.html",
        "formatted_body": f"<strong data-mx-profile-fallback>{html.escape(label)}: </strong>{said.html}",
        "m.mentions": {},
    } | _profile(speaker, fallback=True)


def _profile(speaker: Speaker, *, fallback: bool) -> Content:
    label = one_line(speaker.label, 80)
    profile: Content = {"id": f"ravebot.agent.{label}", "displayname": label}
    return {"com.beeper.per_message_profile": profile | ({"has_fallback": True} if fallback else {})}


def _ends_of(answer: str, cut: int, most: int) -> tuple[list[Span], int]:
    """An answer in at most so many characters: all of it, or its beginning and end; and how many are left out."""
    if not cut and len(answer) <= most:
        return [agents_words(answer)], 0
    half = min(most, len(answer)) // 2
    missing = cut + len(answer) - 2 * half
    gap = Span(left_out(missing), f"<p><em>{left_out(missing)}</em></p>")
    return [agents_words(answer[:half]), gap, agents_words(answer[-half:])], missing


def _below(turn: Turn, *, last_edit: bool) -> Span | None:
    """What the agent is doing, or how its turn ended; None for a turn that ended well."""
    if turn.state is TurnState.WAITING:
        return words("⏸️ It waits for a person's answer.")
    if not turn.state.is_over:
        status = [joined((words("⏳"), code_line(turn.status)))] if turn.status.strip() else []
        more = [words("… it goes on; the rest is shown at its end.")] if last_edit else []
        return joined(status + more) if status or more else None
    if turn.state is TurnState.DONE:
        return None
    return joined((words("⚠️"), marked(ended(turn), 1000)))


def _asker(asked: ApprovalQuestion, speaker: Speaker | None) -> str:
    if speaker is not None:
        return f"{speaker.label} asks"
    return f"ravebot asks about {asked.ref}" if asked.ref else "ravebot asks"


def _to_answer(asked: ApprovalQuestion, prefix: str, named: list[Span]) -> Span:
    """Begins with the names of those who are notified of it."""
    first = [joined((named[0], words(": to answer, ")), "", "")] if named else [words("To answer: ")]
    how = f"react with {YES} or {NO}, or say {asked.how(prefix)}, until {asked.until}. No answer is a no."
    return joined(
        [joined((*first, words(how)), "", ""), joined((words("May answer:"), marked(f"{asked.whom}.", 300)))],
        "\n",
        "<br>",
    )


def _answered(asked: ApprovalQuestion, by: str) -> Span:
    what = asked.answer.removesuffix(asked.by) if by else asked.answer
    answer = joined((words("➡️"), bold(_upper(one_line(what, 300)))))
    answer = joined((answer, *([words(" "), pill(asked.by, by)] if by else []), words(".")), "", "")
    return joined([answer, *([marked(_upper(asked.outcome), 1000)] if asked.outcome else [])], "\n", "<br>")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
