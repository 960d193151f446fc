"""The commands of the service: `ravebot uninstall`, and what its timer runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ravebot.config.file import InvalidConfigError, load, read_state_dir
from ravebot.errors import Refused
from ravebot.terminal import DEFAULT_CONFIG, FAILED, ConfigPath, clean, output, until_interrupted

if TYPE_CHECKING:
    from ravebot.operations.service.layout import Installation
    from ravebot.operations.service.uninstall import InstalledThings, RemovalStep, Uninstalled


def uninstall(
    config: ConfigPath = DEFAULT_CONFIG,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Also remove configuration, secrets and state folder."),
    ] = False,
    files_only: Annotated[
        bool,
        typer.Option("--files-only", help="Leave sandboxes, machines, network, firewall and webhooks as they are."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
) -> None:
    """Stop ravebot and remove what was installed for it; shows first what that is, and at the end what stays."""
    from ravebot.operations.service import uninstall as service

    if os.geteuid() != 0:
        raise Refused("uninstalling needs root: run it with sudo")
    if purge and files_only:
        raise typer.BadParameter(
            "give one of --purge and --files-only: without the state folder nothing knows the machines"
        )
    installation = _installation(config)
    steps, others = ((), ()) if files_only else _beyond(config)
    found = service.look(installation, purge=purge, steps=steps, others=others)
    _show(found)
    if found.is_empty:
        output.say("Nothing that ravebot installed is left to remove.")
        return
    if not yes:
        if not output.is_watched:
            raise Refused("nothing was removed: add --yes to remove this without being asked")
        if not output.confirm("Remove this?"):
            output.complain("Nothing was removed.")
            raise typer.Exit(FAILED)
    service.stop(installation, _say)
    done = asyncio.run(until_interrupted(service.remove(installation, found, _say)))
    _show_end(done, installation)
    if done.failed:
        raise typer.Exit(FAILED)


def _installation(config: Path) -> Installation:
    """As the configuration says; without a usable one, in the usual folders."""
    from ravebot.operations.service.layout import Installation

    try:
        return Installation(config=config.absolute(), state_dir=read_state_dir(config))
    except InvalidConfigError:
        return Installation(config=config.absolute())


def _beyond(config: Path) -> tuple[tuple[RemovalStep, ...], tuple[str, ...]]:
    """What goes and what stays beyond the files that were installed."""
    from ravebot.operations.service import beyond

    if not config.exists():
        return (), ()
    try:
        loaded = load(config)
    except InvalidConfigError as error:
        raise Refused(
            f"nothing was removed: without a valid configuration machines and webhooks can't be found ({error});"
            " correct it, or leave them with --files-only"
        ) from error
    return beyond.steps(loaded), beyond.kept(loaded.config)


def _say(text: str) -> None:
    output.complain(clean(text), "dim")


def _show(found: InstalledThings) -> None:
    for title, lines in (("This will be removed:", found.lines()), ("This stays:", found.kept)):
        if lines:
            output.say(title, "bold")
            for line in lines:
                output.say(f"  {clean(line)}")


def _show_end(done: Uninstalled, installation: Installation) -> None:
    program = installation.program.parent.parent
    venv = f"  {program}: the program itself; remove it with rm -r {program}"
    for title, lines in (
        ("Could not be removed:", [f"  {clean(line)}" for line in done.failed]),
        ("Stays:", [f"  {clean(line)}" for line in done.kept] + ([venv] if (program / "pyvenv.cfg").exists() else [])),
    ):
        if lines:
            output.say(title, "bold")
            for line in lines:
                output.say(line)
    again = f"ravebot is not completely removed: correct that, and run `{installation.program} uninstall` again."
    output.say(again if done.failed else "ravebot is uninstalled.")


def tend_logs(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Let ravebot's user read its machines' logs, and remove old ones of machines that are gone; needs root."""
    from ravebot.config.file import read
    from ravebot.operations.service.logs import tend

    tend(read(config), lambda text: output.say(clean(text)))
