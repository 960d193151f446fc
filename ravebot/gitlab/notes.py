"""The comments we write on merge requests, as GitLab's Markdown. Pure; everything from people or guests is escaped."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from ravebot.commands.verbs import Door, help_groups
from ravebot.gitlab.commands import WORD
from ravebot.gitlab.escape import code, text
from ravebot.gitlab.results import cases_table, commands_table, log
from ravebot.sandboxes.model import (
    CODE_FOLDER,
    EndReason,
    MergeRequest,
    MergeRequestRef,
    SandboxState,
    Stage,
    StageResult,
)
from ravebot.sandboxes.starting import StartGate, StartWait
from ravebot.sandboxes.view import FileNews, HistoryLine, SandboxView, in_words
from ravebot.sandboxes.wording import account, broke, failed_result, headline, is_up, went

_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_BOLD = re.compile(r"\*\*(?=\w)([^*]*\w)\*\*")
HISTORY_LINES = 20
_REPLY_LINES = 20
_DATED = datetime.min.replace(tzinfo=UTC)
"""As the day of a text that may be read on any day: every moment in it has its date."""

_TO_TYPE = {
    SandboxState.QUEUED: ("stop",),
    SandboxState.STARTING: ("stop", "rebuild"),
    SandboxState.READY: ("extend 1h", "rebuild", "stop"),
}
_KEPT = ("stop", "rebuild", "extend 1h")
_HEADLINES = {
    SandboxState.QUEUED: "Sandbox waits in the queue",
    SandboxState.STARTING: "Sandbox is starting",
    SandboxState.READY: "Sandbox is ready",
    SandboxState.STOPPING: "Sandbox is being stopped",
    SandboxState.ENDED: "Sandbox ended",
}


def marker(ref: MergeRequestRef, instance_id: str, what: str = "status") -> str:
    """The hidden first line that identifies a comment of ours; `what` distinguishes several on one merge request.

    It can't be forged: a comment of ours never begins with foreign text.
    """
    return f"<!-- ravebot {_plain(instance_id)} {ref.project_id:d}!{ref.iid:d} {_plain(what)} -->"


def render_note(view: SandboxView, marker: str) -> str:
    """The status note: one sandbox at a glance, rewritten as things change; how it came about is folded away."""
    parts = [f"{marker}\n### {_headline(view)}"]
    if view.notice and is_up(view):
        parts.append(f"⚠️ {said(_capital(view.notice))}")
    if result := failed_result(view):
        parts.append(details("The end of what it printed", log(result.tail)))
    if view.live:
        parts += file_news(view.file)
    if view.hint and view.live:
        parts.append(f"⚠️ {said(view.hint)}")
    if view.access:
        parts.append(f"```sh\n{view.access.ssh_command}\n```")
    parts.append(_table(_rows(view)))
    parts += _results(view)
    if view.mr.state == "opened":
        parts.append(_next(view))
    if happened := _history(view):
        parts.append(details("What happened", "\n".join(happened)))
    return "\n\n".join(parts) + "\n"


def render_fork_waiting(mr: MergeRequest, marker: str) -> str:
    """The note of a fork's merge request whose head is not approved yet."""
    return (
        f"{marker}\n### 🔒 Sandbox waits for a Developer\n\n"
        "This merge request comes from a fork, so its code runs only when somebody with the role Developer or more has "
        "looked at it. To let in exactly the commit that is its head now, and no later one, comment:\n\n"
        f"> {code(f'{WORD} start {mr.head_sha}')}\n\n{_table([('Commit', _commit(mr, mr.head_sha))])}\n"
    )


def render_start_waiting(mr: MergeRequest, marker: str, wait: StartWait) -> str:
    """The note of a merge request whose sandbox does not start by itself, or not yet."""
    by_command = f"when a Developer comments {code(f'{WORD} start')}."
    match wait.gate:
        case StartGate.DRAFT:
            what, when = "📝 Sandbox waits: this is a draft", "when the merge request is marked as ready, or "
        case StartGate.LABEL:
            what, when = "🏷️ Sandbox waits for a label", f"when the merge request has the label {code(wait.label)}, or "
        case StartGate.SKIP:
            what, when = f"💤 No sandbox: the label {code(wait.label)} is set", "when the label is taken off, or "
        case StartGate.COMMAND:
            what, when = "💤 No sandbox yet", ""
    parts = [f"{marker}\n### {what}", f"One starts {when}{by_command}", *file_news(wait.file)]
    return "\n\n".join([*parts, _table([("Commit", _commit(mr, mr.head_sha))])]) + "\n"


def file_news(news: FileNews) -> list[str]:
    """What is to be said of the project's `.rave.yml`."""
    parts = [f"⚠️ {said(remark)}{'' if remark.endswith('?') else '.'}" for remark in news.remarks]
    if news.troubles:
        lines = "\n".join(f"- {said(trouble)}" for trouble in news.troubles)
        parts.append(f"⚠️ {code('.rave.yml')} has mistakes, so it does not count here:\n\n{lines}")
    return parts


def render_none(mr: MergeRequest, marker: str) -> str:
    """The note of a merge request whose sandbox's record was lost with the database."""
    return (
        f"{marker}\n### ⚪ No sandbox\n\n"
        "ravebot lost its record of the earlier sandbox, and its machine is gone. A Developer can start a new one with "
        f"{code(f'{WORD} start')}.\n\n{_table([('Commit', _commit(mr, mr.head_sha))])}\n"
    )


def render_elsewhere(marker: str) -> str:
    """The final text of a removed instance's note, where its successor has a note too."""
    return (
        f"{marker}\n### ⚪ This sandbox is gone\n\n"
        "This ravebot was replaced; the other comment by this bot shows the current state.\n"
    )


def render_never_started(mr: MergeRequest, marker: str) -> str:
    """The note of a merge request that ended without a known sandbox."""
    return f"{marker}\n### 🏁 No sandbox: the merge request is {text(mr.state, 20)}\n"


def render_warning(view: SandboxView, username: str, marker: str = "") -> str:
    """A separate comment (an edit notifies nobody) that warns only the owner of the coming end."""
    expires = view.sandbox.expires_at
    when = f"at {_moment(expires)}, in {in_words(expires - view.now)}" if expires else "soon"
    return f"{_opening(marker, username)}This sandbox ends {when}. To keep it longer, {_comment('extend 1h')}.\n"


def render_reply(message: str, username: str | None = None, marker: str = "") -> str:
    """An answer to somebody's command, line by line; pings them when their name is given."""
    lines = [said(line[:1000]) for line in message.splitlines()[:_REPLY_LINES] if line.strip()] or ["Done."]
    return _opening(marker, username) + "\n\n".join(lines) + "\n"


def render_help(username: str | None = None, marker: str = "") -> str:
    """Every command, from the command table, by what people want to do."""
    lines = ["Developers of this project can type, on a line of its own in a comment:", ""]
    for heading, rows in help_groups(Door.COMMENT, WORD):
        lines.append(f"- **{heading}**")
        lines += [f"  - {code(usage)} – {text(purpose)}" for usage, purpose in rows]
    return _opening(marker, username) + "\n".join(lines) + "\n"


def said(line: str, limit: int = 500, *, bold: bool = False) -> str:
    """A line of an answer, in which text between backticks becomes code; each part in at most `limit` characters.

    With `bold`, text between pairs of asterisks stands out, as whoever wrote it meant.
    """
    shown = ""
    for at, part in enumerate(_CODE.split(line)):
        if at % 2:
            shown += code(part, limit)
            continue
        for number, piece in enumerate(_BOLD.split(part) if bold else [part]):
            shown += f"**{text(piece, limit)}**" if number % 2 else _beside_code(piece, limit)
    return shown.strip()


def _beside_code(part: str, limit: int) -> str:
    """Escaping takes the spaces around a text away; before and after code they are needed."""
    before, after = (" " * one.isspace() for one in (part[:1], part[-1:]))
    return f"{before}{text(part, limit)}{after}" if part.strip() else before


def _headline(view: SandboxView) -> str:
    """The state, until when, and why. When something ended is in the table below."""
    now = headline(view, _DATED)
    state = _HEADLINES[view.sandbox.state] + now.rest
    if view.sandbox.is_kept:
        state = f"Sandbox is kept{now.rest}"
    elif broke(view.sandbox.end_reason):
        state = now.state
    elif view.sandbox.state is SandboxState.ENDED:
        state = _HEADLINES[view.sandbox.state]
    return f"{now.sign} {state}" + (f": {said(now.why)}" if now.why else "")


def _rows(view: SandboxView) -> list[tuple[str, str]]:
    sandbox = view.sandbox
    rows: list[tuple[str, str]] = []
    if view.access:
        web = view.access.web_url
        if view.access.web_port is not None:
            rows.append(
                ("Web", f"<{web}>" if web else f"nothing answers on the web port ({view.access.web_port:d}) yet")
            )
        if web and view.links:
            rows.append(("Pages", " · ".join(_page(name, web, path) for name, path in view.links)))
        rows.append(("Host key", "<br>".join(code(one) for one in view.access.fingerprints) or "—"))
    where = f", in {code(CODE_FOLDER)}" if view.access else ""
    rows.append(("Commit", _commit(view.mr, sandbox.running_sha or sandbox.sha) + where))
    if sandbox.running_sha and sandbox.running_sha != sandbox.sha and view.live:
        rows.append(("Newest commit", code(sandbox.sha[:12])))
    if view.image_job:
        name, url = view.image_job
        rows.append(("Image", f"from the job [{text(name, 100)}]({url})"))
    if view.environment_url and view.access:
        rows.append(("Environment", f"<{view.environment_url}>"))
    if sandbox.ended_at:
        rows.append(("Ended", _moment(sandbox.ended_at)))
    outcomes = [_outcome(result) for result in view.stages if result.stage in (Stage.SETUP, Stage.TEST)]
    if outcomes:
        rows.append(("Set-up and tests", ", ".join(outcomes)))
    return rows


def _results(view: SandboxView) -> list[str]:
    parts = [commands_table(view.commands)] if view.commands else []
    if view.cases:
        parts += cases_table(view.cases)
        parts += [f"⚠️ Test report: {said(problem)}." for problem in view.cases.problems]
    return parts


def _page(name: str, web: str, path: str) -> str:
    """A link. Its path was checked when the file was read."""
    return f"[{text(name, 40)}]({web.rstrip('/')}{path})"


def _history(view: SandboxView) -> list[str]:
    """The steps and events of the sandbox, and what it used."""
    lines = [f"- {line.at:%Y-%m-%d %H:%M:%S} UTC: {_event(line)}" for line in view.history]
    if view.summary:
        lines.append(f"- {account(view.summary)}")
    return lines


def _event(line: HistoryLine) -> str:
    return text(line.text.partition("\n")[0], 200)


def _commit(mr: MergeRequest, sha: str) -> str:
    return f"{code(sha[:12])} on {code(mr.source_branch, 100)}"


def _outcome(result: StageResult) -> str:
    return f"{'✅' if result.ok else '❌'} {went(result)}"


def details(summary: str, body: str) -> str:
    """Something that is folded away."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = [f"| **{name}** | {value} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *cells])


def _next(view: SandboxView) -> str:
    if view.sandbox.is_kept:
        again = f"To run copy, set-up and tests again, push a fix or {_comment('retry')}."
        return f"Look inside with the command above. {again} To end it or to keep it longer, {_comment(*_KEPT)}."
    commands = _TO_TYPE.get(view.sandbox.state)
    if commands:
        return f"To change it, {_comment(*commands)}."
    if view.sandbox.end_reason is EndReason.FAILED and not view.mr.from_fork:
        return f"Push a fix, then {_comment('retry')}."
    return f"For a new one, {_comment(f'start {view.mr.head_sha}' if view.mr.from_fork else 'start')}."


def _comment(*commands: str) -> str:
    """Commands as inline code inside a line, so that neither GitLab nor ravebot executes them."""
    return "comment " + " or ".join(code(f"{WORD} {command}") for command in commands)


def _opening(marker: str, username: str | None) -> str:
    """The marker's line, and `@name: ` for a valid user name; other names are not mentioned."""
    ping = f"@{username}: " if username and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}", username) else ""
    return f"{marker}\n{ping}" if marker else ping


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9:_.]", "", value)[:64]
