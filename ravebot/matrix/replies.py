"""Renders the replies to commands: lists, the queue, help, and short texts. Pure; all foreign text is escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ravebot.commands import refs
from ravebot.commands.verbs import VERBS, Door, Verb, help_rows
from ravebot.matrix.content import (
    Content,
    Span,
    code,
    first_that_fits,
    joined,
    link,
    message,
    preformatted,
    table,
    theirs,
    words,
)
from ravebot.matrix.text import block, one_line
from ravebot.sandboxes.model import SandboxState
from ravebot.sandboxes.view import SandboxView, in_words

_MOST_ROWS = (60, 25, 10)
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
    """The sandboxes, one row each."""
    if not views:
        return message([words("There is no sandbox now.")])
    return _rows(views, ("Merge request", "State", "Ends", "Owner"), _listed)


def render_queue(views: Sequence[SandboxView]) -> Content:
    """The waiting sandboxes, the next one first."""
    waiting = [view for view in views if view.sandbox.state is SandboxState.QUEUED]
    if not waiting:
        return message([words("Nobody waits for a sandbox.")])
    waiting.sort(key=lambda view: (view.queue_position is None, view.queue_position or 0))
    return _rows(waiting, ("Place", "Merge request", "To go", "Why"), _queued)


def render_help(prefix: str, verbs: Sequence[Verb] = VERBS) -> Content:
    """The table of commands."""
    rows = [(code(usage), words(purpose)) for usage, purpose in help_rows(Door.ROOM, prefix, verbs)]
    return message([table(("Command", "What it does"), rows), words(refs.HELP)])


def _rows(views: Sequence[SandboxView], head: Sequence[str], row: Callable[[SandboxView], Sequence[Span]]) -> Content:
    def rendered(most: int) -> Content:
        parts = [table(head, map(row, views[:most]))]
        if len(views) > most:
            parts.append(words(f"and {len(views) - most} more"))
        return message(parts)

    return first_that_fits(map(rendered, _MOST_ROWS))


def _listed(view: SandboxView) -> Sequence[Span]:
    sandbox = view.sandbox
    ends = f"in {in_words(sandbox.expires_at - view.now)}" if sandbox.expires_at and view.live else ""
    stage = f": {sandbox.stage.value}" if sandbox.stage and view.live else ""
    but = f", but {view.trouble.words}" if view.trouble else ""
    return (
        joined((_ref(view), theirs(view.mr.title, 80))),
        words(sandbox.state.value + stage + but),
        words(ends),
        theirs(view.mr.author.username, 60),
    )


def _queued(view: SandboxView) -> Sequence[Span]:
    return (
        words(str(view.queue_position or "?")),
        joined((_ref(view), theirs(view.mr.title, 80))),
        words(f"about {in_words(view.queue_wait)}" if view.queue_wait else "not known"),
        theirs(view.queue_reason or "waits for its turn", 120),
    )


def _ref(view: SandboxView) -> Span:
    name = f"{one_line(view.mr.project_path, 255)}!{view.mr.ref.iid}"
    return Span(name, link(view.mr.web_url, name).html)
