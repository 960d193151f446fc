"""Renders what a room shows of one sandbox: its card, the lines of its thread, its warnings.

Pure; untrusted text is escaped. The plain text says everything in words, for clients without HTML and for screen
readers; an emoji only repeats what is said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from ravebot.clock import moment
from ravebot.matrix.content import (
    Content,
    Span,
    bold,
    code,
    first_that_fits,
    joined,
    link,
    marked,
    message,
    pill,
    preformatted,
    theirs,
    words,
)
from ravebot.matrix.text import block, last_lines, one_line
from ravebot.sandboxes.model import CODE_FOLDER, EndReason, Run, SandboxState, Stage, StageResult
from ravebot.sandboxes.view import Access, FileNews, SandboxView, in_words
from ravebot.sandboxes.wording import Headline, account, failed_result, headline, is_up, update_failed, went

_REPLACED = "The card before this one was removed or could not be edited any more."
_MOST_EVENTS = (50, 20, 5)
_MOST_PAGES = 5
_NEXT = {
    SandboxState.QUEUED: ("stop", "why", "queue"),
    SandboxState.STARTING: ("stop", "why", "show"),
    SandboxState.READY: ("extend", "stop", "rebuild", "logs", "show"),
}
"""What can be typed next, the likeliest first."""
_KEPT = ("extend", "stop", "rebuild", "logs")


@dataclass(frozen=True)
class Style:
    """How a room is written to: its command prefix, whether `41` is enough to name a merge request there, and the agent
    that can be spoken to, if any."""

    prefix: str = "!rave"
    short: bool = False
    agent: str = ""

    def ref(self, view: SandboxView) -> str:
        """What to type after a verb."""
        return str(view.mr.ref.iid) if self.short else _full_ref(view)

    def name(self, view: SandboxView) -> str:
        return f"!{view.mr.ref.iid}" if self.short else _full_ref(view)


@dataclass(frozen=True)
class Owner:
    """The Matrix user who is told of their sandbox; the display name is untrusted."""

    user_id: str
    name: str


def render_card(view: SandboxView, style: Style, *, day: datetime | None = None, replaced: bool = False) -> Content:
    """The one message per sandbox and room that is edited as things change; `day`: when it was posted."""
    last = [_say(view, style)] if view.mr.state == "opened" or view.live else []
    if style.agent and view.sandbox.state is SandboxState.READY:
        last.append(joined((words("Or ask an agent, in this thread:"), code(f"@{style.agent} TEXT"))))
    if replaced:
        last.append(words(_REPLACED))
    return message(_parts(_top(view, day or view.sandbox.created_at), view, last))


def render_show(view: SandboxView, style: Style) -> Content:
    """All that is known of a sandbox: its card, where its code is, its account, and what happened."""
    more = [joined((words("The code is in"), code(CODE_FOLDER)))] if view.access else []
    if view.summary is not None:
        more.append(words(account(view.summary)))
    return first_that_fits(
        message(_parts(_top(view, view.now), view, [*more, *_events(view, most), _say(view, style)]))
        for most in (12, 5, 0)
    )


def render_line(view: SandboxView, text: str, style: Style, owner: Owner | None = None) -> Content:
    """One event in the card's thread, or of its own in the room. With `owner`, it notifies everybody, as texts do."""
    parts = [bold(style.name(view)), marked(text, 1000)]
    if owner is not None:
        parts.insert(0, _address(owner))
    return message([joined(parts)], mentions=[owner.user_id] if owner else [])


def render_news(text: str) -> Content:
    """A message of ravebot itself to the operators: a text message, because notices notify nobody.

    Nothing in it is from others; its paths and commands are to be copied.
    """
    return message([words(text)]) | {"msgtype": "m.text"}


def render_warning(view: SandboxView, style: Style, owner: Owner | None) -> Content:
    """A warning that the sandbox ends soon: a notice, which notifies nobody before `calling_edit` or `as_text` does."""
    expires = view.sandbox.expires_at
    when = f"ends at {moment(expires, view.now)}, in {in_words(expires - view.now)}" if expires else "ends soon"
    parts = [_titled(view), words(f"{when}. To keep it: `{style.prefix} extend {style.ref(view)}`")]
    if owner is not None:
        parts.insert(0, _address(owner))
    return message([joined(parts)])


def render_over(view: SandboxView, style: Style) -> Content:
    """What a warning is edited to when it is not true any more."""
    sandbox = view.sandbox
    if view.live and sandbox.expires_at:
        said = f"was extended until {moment(sandbox.expires_at, view.now)}."
    else:
        return message([joined((joined((_titled(view), words(":")), "", ""), _stated(headline(view, view.now))))])
    return message([joined((_titled(view), words(said)))])


def news(view: SandboxView, owner: Owner) -> str:
    """The card in one line, for a notification."""
    state = headline(view, view.now)
    said = f"{state.state.lower()}{state.rest}" + (f": {state.why}" if state.why else "")
    if update_failed(view):
        said = view.notice
    return f"{theirs(owner.name, 60).plain}: {_full_ref(view)}: {one_line(said, 600)}"


def as_text(content: Content, owner: Owner) -> Content:
    """The notice as a text that highlights it for the owner; by the default push rules it notifies everybody else."""
    return content | {"msgtype": "m.text", "m.mentions": {"user_ids": [owner.user_id]}}


def render_why(view: SandboxView, style: Style) -> Content:
    """Why a sandbox is in its state: the cause in a sentence, and as many of the view's events as fit."""
    cause = joined((bold(f"{style.name(view)}:"), _stated(headline(view, view.now))))
    notice = [marked(f"{_upper(view.notice)}.")] if view.notice else []
    return first_that_fits(message([_lines([cause, *notice, *_events(view, most)])]) for most in _MOST_EVENTS)


def render_logs(view: SandboxView, runs: Sequence[Run], style: Style) -> Content:
    """What set-up and tests printed in the newest run, and in the last one that failed."""
    name = bold(style.name(view))
    if not runs:
        return message([joined((name, words("Set-up and tests have printed nothing so far.")))])

    def parts(most: int) -> Iterator[Span]:
        for run in runs:
            what = "Set-up and tests" if run.ok else "The run that failed,"
            head = [joined((name, words(f"{what} at {moment(run.at, view.now)}:")))]
            for result in run.results:
                yield _lines([*head, _step(result)])
                yield preformatted(block(result.tail, most))
                head = []

    return first_that_fits(message(parts(most)) for most in (6000, 2000, 500))


def digest(content: Content) -> str:
    """Equal for contents that look the same."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "replace")).hexdigest()[:32]


def _lines(spans: Sequence[Span]) -> Span:
    return joined(spans, "\n", "<br>")


def _parts(first: Sequence[Span], view: SandboxView, last: Sequence[Span]) -> list[Span]:
    """The lines, with the last lines of the output of a failed step between them."""
    if result := failed_result(view):
        return [_lines(first), preformatted(last_lines(result.tail)), _lines(last)]
    return [_lines([*first, *last])]


def _top(view: SandboxView, day: datetime) -> list[Span]:
    state = headline(view, day)
    title = theirs(view.mr.title)
    address = link(view.mr.web_url, "").plain.strip()  # in HTML, the reference is the link
    lines = [
        joined((words(state.sign), _titled(view), Span(f"{title.plain} {address}".rstrip(), title.html))),
        _stated(state),
    ]
    if view.notice and is_up(view):
        lines.append(joined((words("⚠️"), marked(f"{_upper(view.notice)}."))))
    if view.access is not None:
        lines += _ways_in(view.access)
        lines += _pages(view, view.access)
    lines.append(_facts(view))
    if view.live:
        lines += _file_news(view.file)
    return lines


def _stated(state: Headline) -> Span:
    parts = [bold(state.state), words(state.rest)]
    if state.why:
        parts.append(marked(state.why, 1000))
        parts.insert(-1, words(": "))
    return joined(parts, "", "")


def _ways_in(access: Access) -> Iterator[Span]:
    if access.web_port is not None:
        url = access.web_url
        web = link(url, url) if url else words("nothing answers on its web port yet")
        yield Span(f"Web: {web.plain}", f"🌐 {web.html}")
    ssh = code(access.ssh_command)
    yield Span(f"SSH: {ssh.plain}", f"💻 {ssh.html}")
    for fingerprint in access.fingerprints:
        key = code(fingerprint)
        yield Span(f"Host key: {key.plain}", f"🔑 host key {key.html}")


def _pages(view: SandboxView, access: Access) -> Iterator[Span]:
    """The pages that `.rave.yml` links. Their paths were checked when it was read; their names are untrusted."""
    if not view.links or access.web_url is None:
        return
    web = access.web_url.rstrip("/")
    pages = joined((link(web + path, one_line(name, 40)) for name, path in view.links[:_MOST_PAGES]), ", ", " · ")
    more = f", {_more(len(view.links) - _MOST_PAGES)}" if len(view.links) > _MOST_PAGES else ""
    yield Span(f"Pages: {pages.plain}{more}", f"📄 {pages.html}{more}")


_FILE = "`.rave.yml`"


def _file_news(news: FileNews) -> Iterator[Span]:
    """The first of what is to be said of `.rave.yml`."""
    for said, what in (
        (news.troubles, f"{_FILE} has mistakes, so it does not count here:"),
        (news.remarks, _FILE if news.remarks and news.remarks[0].startswith(_FILE) else ""),
    ):
        if said:
            more = [words(f"({_more(len(said) - 1)})")] if len(said) > 1 else []
            text = marked(said[0].removeprefix(_FILE).lstrip(), 200)
            yield joined((words(f"⚠️ {what}".rstrip()), text, *more))


def _more(count: int) -> str:
    return f"{count} more in the note on the merge request"


def _facts(view: SandboxView) -> Span:
    """Owner, commit, branch, and how set-up and tests went."""
    sandbox = view.sandbox
    owner, branch = theirs(view.mr.author.username, 60), theirs(view.mr.source_branch, 120)
    commit = code(one_line(sandbox.running_sha or sandbox.sha)[:8])
    parts = [
        Span(f"Owner {owner.plain}", owner.html),
        Span(f"commit {commit.plain}", commit.html),
        Span(f"branch {branch.plain}", branch.html),
    ]
    for result in view.stages:
        if result.ok and result.stage in (Stage.SETUP, Stage.TEST):
            parts.append(Span(went(result), f"✅ {went(result)}"))
    if view.cases and (counts := view.cases.in_short):
        parts.append(Span(counts, f"{'❌' if view.cases.failed else '✅'} {counts}"))
    return joined(parts, ", ", " · ")


def _step(result: StageResult) -> Span:
    return words(f"{'✅' if result.ok else '❌'} {went(result)}")


def _say(view: SandboxView, style: Style) -> Span:
    """What can be typed next."""

    def typed(verb: str) -> Span:
        return code(f"{style.prefix} {verb} {style.ref(view)}")

    sandbox = view.sandbox
    if sandbox.is_kept:
        again = (words("Look inside over SSH. To run copy, set-up and tests again, push a fix or say"), typed("retry"))
        return joined((*again, words("· or"), joined([code(verb) for verb in _KEPT], ", ", ", ")))
    if sandbox.end_reason is EndReason.FAILED and not view.mr.from_fork:
        return joined((words("Push a fix, then say"), typed("retry"), words("· all output:"), typed("logs")))
    if sandbox.state not in _NEXT:
        head = f" {view.mr.head_sha}" if view.mr.from_fork else ""
        return joined((words("For a new one, say"), code(f"{style.prefix} start {style.ref(view)}{head}")))
    first, *others = _NEXT[sandbox.state]
    return joined((words("Say"), joined((typed(first), *map(code, others)), ", ", ", ")))


def _events(view: SandboxView, most: int) -> list[Span]:
    shown = view.history[-most:] if most else ()
    return [joined((code(f"{line.at:%m-%d %H:%M:%S}"), marked(line.text, 300))) for line in shown]


def _address(owner: Owner) -> Span:
    named = pill(owner.user_id, owner.name)
    return Span(f"{named.plain}:", f"{named.html}:")


def _titled(view: SandboxView) -> Span:
    linked = link(view.mr.web_url, _full_ref(view))
    return Span(_full_ref(view), f"<strong>{linked.html}</strong>")


def _full_ref(view: SandboxView) -> str:
    return f"{one_line(view.mr.project_path, 255)}!{view.mr.ref.iid}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
