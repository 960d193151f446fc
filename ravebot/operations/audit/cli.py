"""`ravebot audit`: asks the running bot, or reads the database while none runs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ravebot import terminal
from ravebot.config.file import read_state_dir
from ravebot.errors import NotRunningError, Refused
from ravebot.operations.reports import AuditQuery
from ravebot.operations.spans import span
from ravebot.sandboxes.model import EventKind
from ravebot.terminal import DEFAULT_CONFIG, FAILED, ConfigPath, Json, output, reference

if TYPE_CHECKING:
    from ravebot.operations.audit.export import Exporter
    from ravebot.operations.reports import AuditReport, ExportPlace

MORE = (
    "An export has a line of JSON for each event with all that its hash is computed over, and for who connected to"
    " sandboxes; every event of the log is checked meanwhile, also those that are not asked for."
)
_USUAL = 100


def audit(
    ref: Annotated[
        str | None,
        typer.Argument(metavar="REF", callback=reference, help="Only this merge request, like group/app!42."),
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    project: Annotated[
        str | None, typer.Option(metavar="PATH", help="Only this project, like group/app.", show_default=False)
    ] = None,
    person: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only what this person caused: a user name of GitLab's, a Matrix id, or a user of this host; may be"
            " given several times.",
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND", help="Only such events, like sandbox.ended, or sandbox. for all that begin so; repeatable."
        ),
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only from then on: 7d for a week back, or 2026-01-31.")] = None,
    until: Annotated[str | None, typer.Option(help="Only before that: 7d, or 2026-01-31.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=100_000, help=f"How many of the last events; usual: {_USUAL}.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the whole log; prints only the result.")] = False,
    export: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Check the whole log, and write all events that match to a new file; - is the output."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what happened, who caused it, and the newest event's hash; works with the bot down, too."""
    begin, end = span(since, until, datetime.now(UTC))
    query = AuditQuery(
        ref=ref,
        project=project,
        people=tuple(person or ()),
        kinds=tuple(_kind(one) for one in kind or ()),
        since=begin,
        until=end,
        limit=limit or _USUAL,
        verify=verify,
    )
    if export is not None:
        if verify or as_json or limit is not None:
            raise typer.BadParameter(
                "--export always checks the whole log and writes all events that match, as JSON: leave out --verify,"
                " --json and --limit"
            )
        asyncio.run(terminal.until_interrupted(_export(config, query, export)))
        return
    report = asyncio.run(_report(config, query))
    if as_json:
        output.json(report)
    else:
        terminal.show_audit(output, report)
        if limit is None and not verify and len(report.lines) == _USUAL:
            output.complain(f"These are the last {_USUAL}; --limit shows more, and --export all.", "dim")
    if report.broken_at is not None:
        raise typer.Exit(FAILED)


def _kind(text: str) -> str:
    """A kind, or its beginning up to a dot."""
    if any(text == kind for kind in EventKind):
        return text
    start = text.rstrip(".*") + "."
    if not any(kind.startswith(start) for kind in EventKind):
        groups = sorted({f"{kind.partition('.')[0]}." for kind in EventKind})
        raise typer.BadParameter(
            f"no event is called {terminal.clean(text)}: write its whole name, like sandbox.ended, or one of"
            f" {' '.join(groups)}"
        )
    return start


async def _report(config: Path, query: AuditQuery) -> AuditReport:
    from ravebot.operations.audit.report import read_offline
    from ravebot.web.admin import AdminClient, socket_path

    state_dir = read_state_dir(config)
    try:
        return await AdminClient(socket_path(state_dir)).audit(query)
    except NotRunningError:
        return await read_offline(state_dir, query)


async def _export(config: Path, query: AuditQuery, target: str) -> None:
    from ravebot.operations.audit.export import pieces

    done: ExportPlace | None = None
    async with _exporter(read_state_dir(config)) as exporter:
        with _writing(target) as file, _progress(target) as progress:
            async for piece in pieces(exporter, query):
                file.writelines(f"{line}\n" for line in piece.lines)
                if piece.broken_at is not None:
                    what = "the lines above end before it" if target == "-" else f"{target} was not written"
                    raise Refused(
                        f"the event log was changed or damaged: event {piece.broken_at} is missing or altered; {what};"
                        " compare with a backup of the database"
                    )
                if piece.place is not None:
                    done = piece.place
                    progress(done.event, done.last)
    if done is not None:
        where = "" if target == "-" else f" to {terminal.clean(target)}"
        counted = f"{_count(done.events, 'event')} and {_count(done.visits, 'line')} of access"
        output.complain(f"All {done.last:,} events are intact; {counted} exported{where}.", "green")
        output.complain(f"Hash of the newest event: {done.hash}", "dim")
        if not query.with_access:
            output.complain("Access is left out: it is known by address and time, not by person or event.", "dim")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@asynccontextmanager
async def _exporter(state_dir: Path) -> AsyncIterator[Exporter]:
    from ravebot.clock import SystemClock
    from ravebot.operations.audit.export import OfflineExporter
    from ravebot.operations.offline import opened
    from ravebot.web.admin import AdminClient, socket_path

    client = AdminClient(socket_path(state_dir))
    try:
        await client.audit(AuditQuery(limit=1))
    except NotRunningError:
        async with opened(state_dir, SystemClock()) as database:
            yield OfflineExporter(database)
        return
    yield client


@contextmanager
def _writing(target: str) -> Iterator[TextIO]:
    """Standard output, or a private file beside the target, which gets its name at the end. Raises Refused."""
    if target == "-":
        if sys.stdout is None:
            raise Refused("standard output is closed: name a file")
        yield sys.stdout
        sys.stdout.flush()
        return
    path = Path(target)
    if os.path.lexists(path):
        raise Refused(f"{path} exists: choose another name, or remove it first")
    if not path.parent.is_dir():
        raise Refused(f"there is no folder {path.parent}: make it first")
    part = path.with_name(f".{path.name}.{os.urandom(8).hex()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(part, flags, 0o600)
    except OSError as error:
        raise Refused(f"{path} can't be written ({error.strerror}): choose another name or folder") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.path.lexists(path):
                raise Refused(f"{path} exists by now: choose another name")
            part.rename(path)  # a link would replace nothing for sure, but not every file system has links
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _progress(target: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, unless the lines are written there."""
    watched = output.errors.is_terminal and not (target == "-" and output.console.is_terminal)
    bar = Progress(
        TextColumn("Checking events"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=output.errors, transient=True, disable=not watched
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
