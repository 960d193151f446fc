"""Renders the replies to commands: lists, the queue, help, and short texts. Pure; all foreign text is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from ravebot.clock import moment
from ravebot.commands import refs
from ravebot.commands.verbs import VERBS, Door, Verb, help_groups
from ravebot.matrix.content import (
    Content,
    Span,
    bold,
    code,
    first_that_fits,
    joined,
    link,
    message,
    preformatted,
    theirs,
    words,
)
from ravebot.matrix.text import block, one_line
from ravebot.sandboxes.model import SandboxState
from ravebot.sandboxes.view import SandboxView
from ravebot.sandboxes.wording import headline

_MOST_LINES = (40, 9, 3)
_SHARING = 2
_REPLY_DETAIL = ((60, 6000), (20, 2000), (3, 500))
"""Lines of text and characters of output."""


def render_reply(text: str, *, output: str = "") -> Content:
    """A short text for the asker; text between backticks becomes code. `output` is shown as program output."""
    return first_that_fits(message(_said(text, lines, output, tail)) for lines, tail in _REPLY_DETAIL)


def render_whoami(user_id: str, text: str) -> Content:
    """The asker's id as `matrix.users` needs it, and what `text` says of them."""
    name = user_id if user_id.isascii() and user_id.isprintable() else one_line(user_id, 255)
    who = joined((words("You are"), code(name)))
    said = (joined((who, *_said(text, lines, "", 0)), "\n", "<br>") for lines, _ in _REPLY_DETAIL)
    return first_that_fits(message([whole]) for whole in said)


def _said(text: str, most_lines: int, output: str, tail: int) -> list[Span]:
    lines = [words(one_line(line, 1000)) for line in text.split("\n")[:most_lines]]
    parts = [joined(lines, "\n", "<br>")]
    if output.strip():
        parts.append(preformatted(block(output, tail)))
    return parts


def render_list(views: Sequence[SandboxView]) -> Content:
    """The sandboxes, one line each."""
    if not views:
        return message([words("There is no sandbox now.")])
    return _lines([_listed(view) for view in views])


def render_queue(views: Sequence[SandboxView]) -> Content:
    """The waiting sandboxes, the next one first, one line each."""
    waiting = [view for view in views if view.sandbox.state is SandboxState.QUEUED]
    if not waiting:
        return message([words("Nobody waits for a sandbox.")])
    waiting.sort(key=lambda view: (view.queue_position is None, view.queue_position or 0))
    return _lines([_queued(view) for view in waiting])


def render_help(prefix: str, verbs: Sequence[Verb] = VERBS) -> Content:
    """The commands by what people want to do, a line each; those of the last two groups share one."""
    groups = help_groups(Door.ROOM, prefix, verbs)
    lines: list[Span] = []
    for heading, rows in groups[:-_SHARING]:
        lines += [bold(heading), *(_command(usage, purpose) for usage, purpose in rows)]
    for heading, rows in groups[-_SHARING:]:
        lines.append(joined((bold(f"{heading}:"), joined((_command(*row) for row in rows), "; ", "; "))))
    return message([joined([*lines, words(f"{refs.HELP} {refs.FROM_A_CARD}")], "\n", "<br>")])


def _command(usage: str, purpose: str) -> Span:
    return joined((code(usage), words(f"– {purpose}")))


def _lines(lines: Sequence[Span]) -> Content:
    def rendered(most: int) -> Content:
        shown = list(lines[: most - (len(lines) > most)])
        if len(lines) > len(shown):
            shown.append(words(f"and {len(lines) - len(shown)} more"))
        return message([joined(shown, "\n", "<br>")])

    return first_that_fits(map(rendered, _MOST_LINES))


def _listed(view: SandboxView) -> Span:
    state = headline(view, view.now)
    parts = [joined((words(state.sign), bold(state.state), _named(view)))]
    if rest := state.rest.strip(" :"):
        parts.append(words(rest))
    if state.why:
        parts.append(theirs(state.why, 120))
    return joined((*parts, _of_whom(view)), " · ", " · ")


def _queued(view: SandboxView) -> Span:
    place = "Next" if view.queue_position == 1 else f"Number {view.queue_position or '?'}"
    parts = [_of_whom(view)]
    if view.queue_wait is not None:
        parts.insert(0, words(f"at about {moment(view.now + view.queue_wait, view.now)}"))
    if view.queue_reason:
        parts.append(theirs(view.queue_reason, 120))
    return joined((joined((bold(place), _named(view))), *parts), " · ", " · ")


def _of_whom(view: SandboxView) -> Span:
    return theirs(view.mr.author.username, 60)


def _named(view: SandboxView) -> Span:
    """The merge request with its title; its address is only in the link: the line is short where there is no HTML."""
    name = f"{one_line(view.mr.project_path, 255)}!{view.mr.ref.iid}"
    return joined((Span(name, link(view.mr.web_url, name).html), theirs(view.mr.title, 60)))
