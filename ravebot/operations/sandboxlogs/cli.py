"""`ravebot logs`: asks the running bot or reads the database what to show, and reads the files itself."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ravebot.config.file import read_state_dir
from ravebot.errors import NotRunningError
from ravebot.sandboxes.view import in_words
from ravebot.terminal import DEFAULT_CONFIG, FAILED, ConfigPath, Json, clean, output, reference, utc

if TYPE_CHECKING:
    from ravebot.operations.reports import LogsReport
    from ravebot.operations.sandboxlogs.reading import LogEnd
    from ravebot.sandboxes.model import Run

MORE = "Without an option, all three are shown. They are kept as long as `keep` in the configuration says."


class LogSource(StrEnum):
    """Where a log comes from."""

    SETUP = "setup"
    CONSOLE = "console"
    QEMU = "qemu"


def logs(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF", callback=reference, help="Which sandbox, like group/app!42 (in quotes: ! is the shell's)."
        ),
    ],
    config: ConfigPath = DEFAULT_CONFIG,
    console: Annotated[bool, typer.Option("--console", help="What the machine printed on its console.")] = False,
    setup: Annotated[bool, typer.Option("--setup", help="What set-up and tests printed.")] = False,
    qemu: Annotated[bool, typer.Option("--qemu", help="QEMU's log of the machine.")] = False,
    lines: Annotated[int, typer.Option(min=1, max=100_000, help="How many lines of each, from its end.")] = 100,
    as_json: Json = False,
) -> None:
    """Show a sandbox's console, set-up output and QEMU log, also after its end; works with the bot down, too."""
    from ravebot.operations.sandboxlogs.reading import end_of
    from ravebot.operations.service.logs import CONSOLES, QEMU_LOGS

    state_dir = read_state_dir(config)
    wanted = {one for one, asked in zip(LogSource, (setup, console, qemu), strict=True) if asked} or set(LogSource)
    found = asyncio.run(_find(state_dir, ref))
    machine = found.machines[0] if found.machines else ""
    folders = {LogSource.CONSOLE: state_dir / CONSOLES, LogSource.QEMU: QEMU_LOGS}
    ends = {one: end_of(folder, machine, lines) for one, folder in folders.items() if machine and one in wanted}
    if as_json:
        output.json(_record(found, ends, wanted, lines))
    else:
        _show(found, ends, wanted, lines)
    if not any(end.lines for end in ends.values()) and not (found.runs and LogSource.SETUP in wanted):
        raise typer.Exit(FAILED)


async def _find(state_dir: Path, ref: str) -> LogsReport:
    from ravebot.operations.sandboxlogs.find import find_offline
    from ravebot.web.admin import AdminClient, socket_path

    try:
        return await AdminClient(socket_path(state_dir)).logs(ref)
    except NotRunningError:
        return await find_offline(state_dir, ref)


def _show(found: LogsReport, ends: dict[LogSource, LogEnd], wanted: set[LogSource], lines: int) -> None:
    """Each log below a line that names it; where one log is asked for in a pipe, that alone."""
    with_heads = output.console.is_terminal or len(wanted) > 1
    if LogSource.SETUP in wanted:
        for run in found.runs:
            if with_heads:
                how = "ended well" if run.ok else "failed"
                _head(f"Set-up and tests of {found.ref}, at {utc(run.at)}: they {how}")
            _show_run(run, lines)
        if not found.runs:
            output.complain(
                f"Set-up and tests of {clean(found.ref)} have printed nothing that is still kept.", "yellow"
            )
    for source, end in ends.items():
        if not end.lines:
            output.complain(f"{_NAMES[source]}, {clean(end.path)}: {clean(end.why)}. {_remedy(source, end)}", "yellow")
            continue
        if with_heads:
            _head(f"{_NAMES[source]}: {end.path}")
        _print(end.lines)
    if not found.machines and wanted != {LogSource.SETUP}:
        why = f"its newest sandbox is {found.state}" if found.state else "there was no sandbox of it"
        output.complain(f"{clean(found.ref)} has had no machine yet: {why}.", "yellow")
    elif len(found.machines) > 1 and output.console.is_terminal and ends:
        output.complain(f"Its machines before that one: {', '.join(map(clean, found.machines[1:]))}", "dim")


_NAMES = {LogSource.CONSOLE: "The machine's console", LogSource.QEMU: "QEMU's log"}


def _remedy(source: LogSource, end: LogEnd) -> str:
    if end.why == "it is empty":
        return "The guest wrote nothing to its serial console." if source is LogSource.CONSOLE else ""
    if "can't be read" in end.why:
        if source is LogSource.QEMU:
            return (
                "It belongs to root until the timer ravebot-logs gives it to ravebot's user: run this as root, or"
                " `systemctl start ravebot-logs.service` first."
            )
        return "Run this as root or as ravebot's user."
    if "no such file" in end.why:
        return "The machine was never started, or it is gone for longer than keep.consoles."
    return ""


def _head(text: str) -> None:
    output.say(f"==> {clean(text)} <==", "bold")


def _show_run(run: Run, lines: int) -> None:
    from ravebot.operations.sandboxlogs.reading import readable

    for result in run.results:
        _head(f"{result.stage.value}: {'ended well' if result.ok else 'failed'} after {_took(result.seconds)}")
        _print(readable(result.tail)[-lines:])


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else in_words(timedelta(seconds=seconds))


def _print(lines: tuple[str, ...] | list[str]) -> None:
    for line in lines:
        output.raw(clean(line))


def _record(found: LogsReport, ends: dict[LogSource, LogEnd], wanted: set[LogSource], lines: int) -> dict[str, Any]:
    from ravebot.operations.sandboxlogs.reading import readable

    record: dict[str, Any] = {"ref": found.ref, "state": found.state, "machines": found.machines}
    if LogSource.SETUP in wanted:
        record["setup"] = [
            {
                "at": run.at,
                "ok": run.ok,
                "stages": [
                    {
                        "stage": one.stage.value,
                        "ok": one.ok,
                        "seconds": one.seconds,
                        "lines": readable(one.tail)[-lines:],
                    }
                    for one in run.results
                ],
            }
            for run in found.runs
        ]
    return record | {source.value: vars(end) for source, end in ends.items()}
