"""What the shell commands share: options, exit codes, and what they print.

They print tables and colour on a terminal, tab-separated lines in a pipe.

Texts from people and guests are shown without control characters: they can't move the cursor or fake a line.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
import signal
import sys
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ravebot.config.file import InvalidConfigError
from ravebot.operations.reports import AuditReport, CleanupReport, RemainsReport, SandboxLine, Strangers
from ravebot.sandboxes import naming
from ravebot.sandboxes.view import in_words

DEFAULT_CONFIG = Path("/etc/ravebot/config.yaml")
FAILED, UNUSABLE, NOT_RUNNING, INTERRUPTED = 1, 2, 3, 130

ConfigPath = Annotated[
    Path, typer.Option("--config", "-c", envvar="RAVEBOT_CONFIG", help="The configuration file.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

T = TypeVar("T")

_NOT_ASCII = re.compile(r"[^\n -~]")
_BETWEEN = 2
"""Spaces between the columns of a table."""
_LAST_COLUMN = 24
"""It is broken into no narrower ones."""
_STATE_STYLES = {"ready": "green", "starting": "yellow", "queued": "blue", "stopping": "magenta", "kept": "red"}


def clean(text: str) -> str:
    """The text in one line, with what can't be printed replaced by its escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _in_json(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


@dataclass(frozen=True)
class Cell:
    """One value of a table and how it looks on a terminal."""

    text: str
    style: str = ""


def _text(cell: Cell) -> Text:
    return Text(clean(cell.text), style=cell.style)


class Output:
    """Prints answers to stdout, and errors and notes to stderr."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.errors = Console(stderr=True, highlight=False, markup=False, emoji=False)

    def say(self, text: str, style: str = "") -> None:
        """Print a message: wrapped at words on a terminal, one whole line in a pipe."""
        self.console.print(Text(text, style=style), soft_wrap=not self.console.is_terminal)

    def complain(self, text: str, style: str = "red") -> None:
        """Print a message to stderr, after what was printed before it."""
        if sys.stdout is not None:
            with suppress(OSError):  # told where the next line is written to it
                sys.stdout.flush()
        self.errors.print(Text(text, style=style), soft_wrap=not self.errors.is_terminal)

    def table(self, titles: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> None:
        """Print a table, or a list where it is too wide for the terminal; in a pipe, tab-separated lines under a header
        line."""
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
        if not self.console.is_terminal:
            for line in [[title.upper() for title in titles], *([clean(cell.text) for cell in row] for row in cells)]:
                self.raw("\t".join(line))
            return
        if not self._fits(titles, cells):
            for head, *more in cells:
                named = [
                    Text.assemble(f"{title}: ", _text(cell))
                    for title, cell in zip(titles[1:], more, strict=True)
                    if cell.text
                ]
                self.console.print(_text(head))
                self.console.print(Padding(Text(", ").join(named), (0, 0, 0, 4)))
            return
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _BETWEEN, 0, 0))
        for title in titles:
            table.add_column(title, overflow="fold")
        for row in cells:
            table.add_row(*map(_text, row))
        self.console.print(table)

    def _fits(self, titles: Sequence[str], cells: Sequence[Sequence[Cell]]) -> bool:
        """Whether a table fits into the terminal: only its last column may be broken, and not into snippets."""
        columns = zip(titles, *((clean(cell.text) for cell in row) for row in cells), strict=True)
        *widths, last = (max(map(cell_len, column)) for column in columns)
        return sum(width + _BETWEEN for width in widths) + min(last, _LAST_COLUMN) <= self.console.width

    def item(self, head: Sequence[str | Cell], below: Iterable[str]) -> None:
        """Print one of a list on a terminal: short values in a line, and longer texts indented below it."""
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in head if cell]
        self.console.print(Text("  ").join(map(_text, cells)))
        for text in filter(None, below):
            self.console.print(Padding(Text(clean(text)), (0, 0, 0, 4)))

    @property
    def is_watched(self) -> bool:
        """Whether a person reads stderr and can answer."""
        return self.errors.is_terminal and sys.stdin is not None and sys.stdin.isatty()

    def confirm(self, question: str) -> bool:
        """Ask on stderr; only `y` or `yes` confirms."""
        self.errors.print(Text(f"{question} [y/N] "), end="")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def stream(self, text: str) -> None:
        """Print the next piece of a text of many lines, at once; what can't be printed is replaced by its escape."""
        if sys.stdout is None:
            raise OSError(errno.EBADF, "standard output is closed")
        sys.stdout.write("\n".join(clean(line) for line in text.split("\n")))
        sys.stdout.flush()

    def raw(self, text: str) -> None:
        """Print without wrapping or colour, for programs and for copying. Raises OSError if stdout is closed."""
        if sys.stdout is None:  # so Python sets it if descriptor 1 was not open
            raise OSError(errno.EBADF, "standard output is closed")
        sys.stdout.write(text + "\n")

    def json(self, value: object) -> None:
        """Print as JSON, with the letters of all scripts, but with escapes for what could move a terminal's cursor or
        reverse a line. Raises OSError if stdout is closed."""
        from pydantic_core import to_json

        self.raw(_NOT_ASCII.sub(_in_json, to_json(value, indent=2).decode()))


output = Output()


def reference(text: str | None) -> str | None:
    """Check only the form: the bot knows which merge requests exist."""
    if text is not None and (len(text) > 500 or not text.isprintable()):
        raise typer.BadParameter("write one like group/app!42")
    return text


async def until_interrupted(work: Coroutine[object, object, T]) -> T:
    """Cancel the work on the first SIGINT, SIGTERM or SIGHUP, and only once, so that it can clean up in peace."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    told = False

    def stop() -> None:
        nonlocal told
        if not told:
            told = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    return await task


def show_sandboxes(output: Output, lines: Sequence[SandboxLine], now: datetime) -> None:
    """`ravebot list`."""
    if not lines and output.console.is_terminal:
        output.say("No sandbox is running or queued.")
        return
    if not output.console.is_terminal:
        titles = ("sandbox", "state", "owner", "commit", "expires", "machine", "ssh", "web", "title")
        output.table(
            titles,
            (
                (
                    line.ref, _state(line), line.owner, line.sha, utc(line.expires_at), line.machine,
                    line.ssh_command, line.web_url, line.title,
                )
                for line in lines
            ),
        )  # fmt: skip
        return
    output.table(
        ("Sandbox", "State", "Owner", "Commit", "Ends"),
        (
            (
                Cell(line.ref, "bold"),
                Cell(_state(line), "yellow" if line.trouble else _STATE_STYLES.get(line.state, "")),
                line.owner,
                line.sha[:8],
                f"in {in_words(line.expires_at - now)}" if line.expires_at else "",
            )
            for line in lines
        ),
    )
    for line in lines:
        if line.ssh_command:
            output.console.print()
            output.say(clean(line.ref), "bold")
            output.raw(f"  {clean(line.ssh_command)}")
            if line.web_url:
                output.raw(f"  {clean(line.web_url)}")


def _state(line: SandboxLine) -> str:
    if line.queue_position is not None:
        return f"{line.state}, place {line.queue_position}"
    but = f", but {line.trouble}" if line.trouble else ""
    return (f"{line.state}: {line.stage}" if line.stage else line.state) + but


def utc(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else ""


def show_audit(output: Output, report: AuditReport) -> None:
    """`ravebot audit`: the events, then the head's hash; of a check only its result and the hash."""
    checked = report.checked_rows is not None
    rows = ((utc(line.at), line.kind, line.ref, line.actor, line.machine, line.detail) for line in report.lines)
    if not checked and not report.lines and output.console.is_terminal:
        output.say("No event matches.")
    elif not checked:
        output.table(("When", "What", "Merge request", "Who", "Machine", "Detail"), rows)
    note = output.say if checked or output.console.is_terminal else output.complain
    note(f"Hash of the newest event: {report.head}", "dim")
    if report.broken_at is not None:
        output.complain(
            f"The event log was changed or damaged: event {report.broken_at} is missing or altered; "
            "compare with a backup of the database."
        )
    elif checked:
        note(f"All {report.checked_rows} events are intact.", "green")


def show_cleanup(output: Output, report: CleanupReport) -> None:
    """`ravebot cleanup`: what was removed, and what was kept and why."""
    groups = (
        ("ended", report.ended, ""),
        ("machine removed", report.machines, ""),
        ("disk removed", report.volumes, ""),
        ("DHCP entry removed", report.addresses, ""),
        ("removed", report.shared, ""),
        ("kept", report.kept, "yellow"),
    )
    rows = [(Cell(what, style), name) for what, names, style in groups for name in names]
    if rows:
        output.table(("What", "Which"), rows)
    elif not report.failed:
        output.say("There was nothing to clean up.")
    for failure in report.failed:
        output.complain(clean(failure))


def announce_adoption(output: Output, found: Strangers) -> None:
    """What `ravebot cleanup --adopt` is about to do, on stderr."""
    output.complain("The database does not know these; they will be ended and removed:", "yellow")
    lines = [f"machine {name}, with its disk" for name in found.machines]
    lines += [f"disk {name}" for name in found.volumes]
    lines += [f"DHCP entry {mac}" for mac in found.addresses]
    for line in lines:
        output.complain(f"  {clean(line)}", "")


def show_remains(output: Output, found: RemainsReport) -> None:
    """`ravebot cleanup --instance-id ID --all`: what exists, and the command that removes it."""
    rows = [("machine", f"{machine.name}, {machine.state}") for machine in found.machines]
    rows += [("disk", name) for name in found.volumes]
    rows += [("DHCP entry", address) for address in found.addresses]
    rows += [("shared", what) for what in found.shared]
    if not rows:
        output.say(f"This host has nothing of instance id {found.instance_id}.")
        return
    output.table(("What", "Which"), rows)
    if found.bot:
        output.complain(f"This instance is running: {clean(found.bot)}.", "yellow")
    output.complain(
        f"Nothing was changed. To end and remove all of it: {naming.removal_command(found.instance_id)}", "dim"
    )


def show_invalid(output: Output, error: InvalidConfigError) -> None:
    """Every problem of a configuration file, one a line: file, line, key, what to do."""
    for problem in error.problems:
        place = f"{error.path}:{problem.line}" if problem.line else str(error.path)
        text = Text.assemble(
            (f"{clean(place)}: ", "bold"),
            (f"{clean(problem.path)}: " if problem.path else "", "cyan"),
            clean(problem.message),
        )
        output.errors.print(text, soft_wrap=not output.errors.is_terminal)
    count = len(error.problems)
    output.complain(f"{count} problem{'s' if count > 1 else ''}; the configuration can't be used as it is.")
