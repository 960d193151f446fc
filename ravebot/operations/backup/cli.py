"""The commands `ravebot backup` and `ravebot restore`; what they do is imported inside, so that others start fast."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ravebot import terminal
from ravebot.config.file import read
from ravebot.sandboxes.view import in_bytes
from ravebot.terminal import DEFAULT_CONFIG, FAILED, ConfigPath, Json, output, until_interrupted

if TYPE_CHECKING:
    from ravebot.operations.backup.restore import RestoreReport


def backup(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to write it; it must not exist yet.")
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write it into this folder, named after the instance and the time."),
    ] = None,
    keep: Annotated[
        int, typer.Option(min=1, max=10_000, help="With --into: how many of this instance's backups stay there.")
    ] = 14,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write database, instance id and Matrix login to one file; works with the bot up or down."""
    from ravebot.clock import SystemClock
    from ravebot.operations.backup.make import Maker
    from ravebot.operations.backup.stopping import in_thread

    if (file is None) == (into is None):
        raise typer.BadParameter("say where to write it: a FILE, or --into DIR")
    if into is not None and force:
        raise typer.BadParameter("--force goes with FILE: a backup in a folder never replaces another")
    settings = read(config)
    maker = Maker(settings.instance, settings.state_dir, SystemClock())
    if into is not None:
        folder = into
        work = in_thread(lambda stop: maker.into(folder, keep, stop))
    else:
        target = file or Path()
        work = in_thread(lambda stop: maker.to_file(target, stop, force=force))
    done = asyncio.run(until_interrupted(work))
    if as_json:
        output.json(done)
        return
    output.say(f"{terminal.clean(done.file)} is complete and checked: {in_bytes(done.size_bytes)}.", "green")
    output.say(f"Its newest event has the hash {done.manifest.head}.", "dim")
    for old in done.removed:
        output.say(f"{terminal.clean(old)} was removed, because {keep} backups are kept.", "dim")
    output.complain(
        "It contains the Matrix login, so keep it private. It does not contain the configuration and its secret files: "
        "keep copies of them, and of this file, elsewhere.",
        "dim",
    )


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup that `ravebot backup` wrote.")],
    config: ConfigPath = DEFAULT_CONFIG,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also restore a backup of an instance with another name.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a backup and put it in the place of the present state, which is kept; only while no bot runs."""
    from ravebot.clock import SystemClock
    from ravebot.operations.backup.restore import Restorer
    from ravebot.operations.backup.stopping import in_thread

    settings = read(config)
    with Restorer(settings.instance, settings.state_dir, SystemClock()) as restorer:
        prepared = asyncio.run(
            until_interrupted(in_thread(lambda stop: restorer.prepare(file, stop, force=force))),
        )
        if not as_json:
            _announce(prepared.report)
        if not yes and not (output.is_watched and output.confirm("Go on?")):
            output.complain("Nothing was changed." if output.is_watched else "Nothing was changed: add --yes to go on.")
            raise typer.Exit(FAILED)
        prepared.commit()
    if as_json:
        output.json(prepared.report)
        return
    output.say("The backup is restored. Start ravebot now.", "green")
    output.say(
        "What this instance has on this host and the backup does not know is not touched, and while there is any, no "
        "sandbox is started: `ravebot cleanup --adopt` ends and removes it. Commands from before now that are not in "
        "the backup are not carried out."
    )


def _announce(report: RestoreReport) -> None:
    manifest = report.manifest
    made = f"{manifest.made_at:%Y-%m-%d %H:%M:%S} UTC"
    lines = [
        f"The backup is of {made}, by ravebot {manifest.ravebot}, of the instance {manifest.instance} with the id "
        f"{manifest.instance_id}. It is whole: {manifest.events} events, the newest with the hash {manifest.head}.",
        f"The state in {report.state_dir} will be replaced by it.",
    ]
    if report.before:
        lines.append(f"The present state will be kept in {report.before}.")
    if report.other_instance:
        lines.append(
            f"The present state has another id. What that instance has on this host stays there, until you run "
            f"`ravebot cleanup --instance-id {report.other_instance} --all --force`."
        )
    for line in lines:
        output.complain(terminal.clean(line), "")


def add(app: typer.Typer) -> None:
    """Add both commands."""
    app.command()(backup)
    app.command()(restore)
