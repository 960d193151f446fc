"""Renders what a room shows of one sandbox: its card, its history, its warnings.

Pure; untrusted text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from ravebot.matrix.content import (
    Content,
    Span,
    bold,
    code,
    facts,
    first_that_fits,
    joined,
    link,
    message,
    pill,
    preformatted,
    theirs,
    words,
)
from ravebot.matrix.text import block, one_line
from ravebot.sandboxes.model import CODE_FOLDER, SandboxState, StageResult
from ravebot.sandboxes.view import HistoryLine, SandboxView, Summary, in_bytes, in_words

_SIGNS = {
    SandboxState.QUEUED: "🕒",
    SandboxState.STARTING: "🔧",
    SandboxState.READY: "🟢",
    SandboxState.STOPPING: "🌙",
    SandboxState.ENDED: "⚪",
}
_DETAIL = ((8, 1500), (5, 400), (3, 0), (0, 0))
"""How many events and how many characters of a failed step's output are shown: the first pair that fits is used."""


def render_card(view: SandboxView, prefix: str = "!rave") -> Content:
    """The one message per sandbox and room that is edited as things change."""
    return first_that_fits(
        message((_title(view), facts(_rows(view, prefix, events)), *_tails(view, tail))) for events, tail in _DETAIL
    )


def render_history(line: HistoryLine) -> Content:
    """One event, as a message of the card's thread."""
    first, _, rest = line.text.partition("\n")
    parts = [joined((bold(f"{line.at:%H:%M:%S}"), theirs(first, 500)))]
    if rest.strip():
        parts.append(preformatted(block(rest)))
    return message(parts)


def render_said(view: SandboxView, line: HistoryLine) -> Content:
    """One event for the whole room, outside of the card's thread; so it names the merge request."""
    return message([joined((_ref(view), theirs(line.text, 1000)))])


def render_news(text: str) -> Content:
    """A message of ravebot itself to the operators: a text message, because notices notify nobody.

    Nothing in it is from others; its paths and commands are to be copied.
    """
    return message([words(text)]) | {"msgtype": "m.text"}


def render_warning(view: SandboxView, owner: str | None, prefix: str = "!rave") -> Content:
    """A warning that the sandbox ends soon. It notifies only `owner`, a Matrix user id; None: nobody."""
    expires = view.sandbox.expires_at
    when = f"ends {_when(expires, view.now)}." if expires else "ends soon."
    parts = [bold("⏰"), _ref(view), words(f"{when} To keep it, say `{prefix} extend {_full_ref(view)} 1h`.")]
    if owner is not None:
        parts.insert(1, pill(owner))
    return message([joined(parts)], mentions=[owner] if owner else [])


def render_why(view: SandboxView) -> Content:
    """Why a sandbox is in its state: the state, and as many of the view's events as fit."""
    rows = [("State", _state(view)), *_notice(view)]
    return first_that_fits(
        message((_title(view), facts(rows), _listed(view.history[-limit:]))) for limit in (50, 20, 5)
    )


def _listed(lines: Sequence[HistoryLine]) -> Span:
    told = (joined((code(f"{line.at:%m-%d %H:%M:%S}"), theirs(line.text, 300))) for line in lines)
    return joined(told, "\n", "<br>")


def _title(view: SandboxView) -> Span:
    sign = view.trouble.sign if view.trouble else _SIGNS[view.sandbox.state]
    return joined((Span(sign, sign), _ref(view), theirs(view.mr.title)))


def _ref(view: SandboxView) -> Span:
    linked = link(view.mr.web_url, _full_ref(view))
    return Span(_full_ref(view), f"<strong>{linked.html}</strong>")


def _full_ref(view: SandboxView) -> str:
    return f"{one_line(view.mr.project_path, 255)}!{view.mr.ref.iid}"


def _rows(view: SandboxView, prefix: str, events: int) -> Iterator[tuple[str, Span]]:
    yield "State", _state(view)
    yield from _notice(view)
    if view.access is not None:
        yield "SSH", code(view.access.ssh_command)
        if view.access.fingerprints:
            yield "Host key", joined(map(code, view.access.fingerprints), ", ", "<br>")
        url = view.access.web_url
        yield "Web", link(url, url) if url else words("nothing answers on its web port yet")
    yield "Code", _commit(view)
    yield "Owner", theirs(view.mr.author.username)
    if view.live and view.sandbox.expires_at is not None:
        yield "Ends", words(_when(view.sandbox.expires_at, view.now))
    if view.stages:
        yield "Steps", joined(map(_step, view.stages), ", ", "<br>")
    if view.summary is not None:
        yield "Account", words(_account(view.summary))
    if view.history and events:
        lines = [_event(line) for line in view.history[-events:]]
        yield "Lately (UTC)", joined(lines, "; ", "<br>")
    yield "Say", _next(view, prefix)


def _state(view: SandboxView) -> Span:
    sandbox = view.sandbox
    said = sandbox.state.value
    if sandbox.state is SandboxState.QUEUED:
        said += f", place {view.queue_position}" if view.queue_position else ""
        said += f", about {in_words(view.queue_wait)} to go" if view.queue_wait else ""
        said += f": {one_line(view.queue_reason)}" if view.queue_reason else ""
    elif sandbox.state is SandboxState.ENDED and sandbox.end_reason is not None:
        said += f": {sandbox.end_reason.value}"
        said += f", {one_line(sandbox.end_detail, 500)}" if sandbox.end_detail else ""
    elif sandbox.stage is not None and sandbox.state is not SandboxState.STOPPING:
        said += f": {sandbox.stage.value}"
    if sandbox.attempt > 1 and sandbox.state is SandboxState.STARTING:
        said += f" (attempt {sandbox.attempt})"
    if view.trouble:
        said += f", but {view.trouble.words}"
    return theirs(said, 1000)


def _notice(view: SandboxView) -> list[tuple[str, Span]]:
    return [("Note", theirs(view.notice, 500))] if view.notice else []


def _commit(view: SandboxView) -> Span:
    sandbox = view.sandbox
    parts = [code(one_line(sandbox.running_sha or sandbox.sha)[:8]), words("of"), theirs(view.mr.source_branch, 120)]
    if sandbox.running_sha and sandbox.running_sha != sandbox.sha:
        parts += [words("; next is"), code(one_line(sandbox.sha)[:8])]
    if view.access is not None:
        parts += [words("in"), code(CODE_FOLDER)]
    return joined(parts)


def _step(result: StageResult) -> Span:
    took = f"{result.seconds:.1f} s" if result.seconds < 10 else f"{result.seconds:.0f} s"
    return words(f"{'✅' if result.ok else '❌'} {result.stage.value} ({took})")


def _tails(view: SandboxView, limit: int) -> Iterator[Span]:
    """The end of the output of each step that failed."""
    for result in view.stages:
        if not result.ok and result.tail.strip() and limit:
            yield joined((words(f"{result.stage.value} ended with"), preformatted(block(result.tail, limit))), "\n", "")


def _event(line: HistoryLine) -> Span:
    return joined((code(f"{line.at:%H:%M}"), theirs(line.text.partition("\n")[0], 160)))


def _account(summary: Summary) -> str:
    lived = f"lived {in_words(summary.lived)}" if summary.lived is not None else "never was ready"
    cpu = in_words(timedelta(seconds=summary.cpu_seconds))
    return f"{lived}, CPU time {cpu}, memory at most {in_bytes(summary.memory_peak_bytes)}"


_NEXT = {
    SandboxState.QUEUED: ("stop", "why"),
    SandboxState.STARTING: ("stop", "why"),
    SandboxState.READY: ("extend", "stop", "rebuild", "logs"),
    SandboxState.STOPPING: ("why", "start"),
    SandboxState.ENDED: ("start", "why"),
}


def _next(view: SandboxView, prefix: str) -> Span:
    """The commands to type next, with the full reference, so that they work in every room."""
    verbs = _NEXT[view.sandbox.state]
    if view.notice or any(not result.ok for result in view.stages):
        verbs = tuple(dict.fromkeys((*verbs, "logs", "retry")))
    return joined((code(f"{prefix} {verb} {_full_ref(view)}") for verb in verbs), ", ", "<br>")


def _when(moment: datetime, now: datetime) -> str:
    left = moment - now
    return f"{moment:%Y-%m-%d %H:%M} UTC, " + (f"in {in_words(left)}" if left > timedelta(0) else "any moment now")
