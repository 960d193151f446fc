"""`ravebot image`: build an image for the machines, and check any image."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ravebot.config.values import parse_duration, parse_size
from ravebot.errors import ImageBuildFailed, ImageNotWritable, RavebotError
from ravebot.images import sources
from ravebot.images.recipe import Preset, Recipe, Suite, parse_npm, parse_packages, suite_for
from ravebot.sandboxes.view import in_bytes
from ravebot.terminal import DEFAULT_CONFIG, FAILED, ConfigPath, Json, clean, output, until_interrupted

if TYPE_CHECKING:
    from ravebot.config.model import Config
    from ravebot.images.check.point import Point
    from ravebot.images.check.report import Report

_LONGEST_SCRIPT_BYTES = 1024**2

app = typer.Typer(name="image", help="Build an image for the machines, and check any image.", no_args_is_help=True)


@app.command()
def build(
    out: Annotated[Path, typer.Argument(metavar="OUT.qcow2", help="The image's file.")],
    suite: Annotated[
        Suite,
        typer.Option(
            default_factory=lambda: suite_for(sources.codename()),
            show_default="this host's own, or trixie",
            help="The Debian release.",
        ),
    ],
    packages: Annotated[str, typer.Option(metavar="A,B", help="Further Debian packages, with commas.")] = "",
    npm: Annotated[
        str,
        typer.Option(
            metavar="A@1.2.3,B@4.5.6",
            help="Programs from npm, such as coding agents, with commas: packages that depend on no other.",
        ),
    ] = "",
    script: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, exists=True, help="Run this in the image's chroot, as root, at the end."
        ),
    ] = None,
    preset: Annotated[
        Preset,
        typer.Option(help="minimal meets the guest contract; web adds nginx on port 3002; rave adds the RAVE stack."),
    ] = Preset.MINIMAL,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of the virtual disk, like 4GiB; by default as needed.")
    ] = None,
    boot_files: Annotated[
        bool, typer.Option("--boot-files", help="Write OUT.qcow2.vmlinuz and OUT.qcow2.initrd, for direct boot.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.qcow2 if it exists.")] = False,
) -> None:
    """Build a Debian image for sandboxes from this host's own package sources; needs root.

    Packages and --script run as root in a chroot, which isolates nothing: use only what you trust as root here.
    For rave and --npm, this host's npm fetches packages and runs none of their scripts.
    """
    from ravebot.images.build import build as build_image
    from ravebot.images.steps import Steps

    recipe = Recipe(suite, preset)
    with _parameter("--packages"):
        recipe = replace(recipe, packages=parse_packages(packages))
    with _parameter("--npm"):
        recipe = replace(recipe, npm=parse_npm(npm))
    with _parameter("--script"):
        recipe = replace(recipe, script=_read_script(script) if script else None)
    with _parameter("--size"):
        recipe = replace(recipe, size_bytes=parse_size(size) if size else None)
    with Steps(output) as steps:
        try:
            built = asyncio.run(
                until_interrupted(build_image(recipe, out, force=force, boot_files=boot_files, progress=steps))
            )
        except ImageNotWritable as error:
            raise typer.BadParameter(str(error), param_hint="OUT.qcow2") from error
        except ImageBuildFailed as error:
            steps.stop()
            for line in error.lines:
                output.complain(f"  {clean(line)}", "dim")
            raise
        except asyncio.CancelledError:
            steps.stop()
            output.complain("Interrupted: nothing is left of this build.", "yellow")
            raise
    output.say(
        f"{built.image}: {in_bytes(built.image_bytes)}, a disk of {in_bytes(built.virtual_bytes)},"
        f" built in {built.seconds:.0f} s",
        "green",
    )
    for hint in built.hints:
        output.complain(f"hint: {clean(hint)}", "yellow")
    output.say(f"Next: ravebot image check {built.image}")


@contextmanager
def _parameter(name: str) -> Iterator[None]:
    """A ValueError is a mistake in this option."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=name) from error


def _read_script(path: Path) -> bytes:
    """Raises ValueError for what is no file, or a file that is too large to be a script."""
    if not path.is_file() or path.stat().st_size > _LONGEST_SCRIPT_BYTES:
        raise ValueError(f"{path} is no file of at most 1 MiB")
    return path.read_bytes()


@app.command()
def check(
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE|NAME", help="A qcow2 image, or a name of provider.images; by default the configured one."
        ),
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    limit: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Wait so long for the guest agent, instead of pool.build_timeout."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Boot an image as a sandbox would be, twice, and tell point by point what of the guest contract it meets.

    Needs root. The bot may run: the machines have a network, firewall and disks of their own.
    Memory, disk, user, web port and time limits are those of the configuration, or the defaults if there is none.
    Ends with 1 if a point failed.
    """
    from ravebot.images.check import settings
    from ravebot.images.check.point import names
    from ravebot.images.check.report import Report
    from ravebot.operations import imagechecks
    from ravebot.operations.doctor.finding import Verdict

    chosen, configured = _chosen(config, image)
    if os.geteuid() != 0:
        raise RavebotError("checking an image needs root, for a bridge and firewall rules: run it with sudo")
    if limit is not None:
        with _parameter("--limit"):
            chosen = settings.with_agent_limit(chosen, parse_duration(limit))
    report = None if as_json else Report(output)
    if report is not None:
        how = f"with the settings of {config}" if configured else f"with the defaults, because there is no {config}"
        output.complain(f"Checking {chosen.provider.image} {how}. It takes about two boots of the machine.", "dim")
    try:
        points = asyncio.run(until_interrupted(_examine(chosen, report)))
    except asyncio.CancelledError:
        output.complain("Interrupted: nothing is left of this check.", "yellow")
        raise
    failed = names(points, Verdict.FAILED, Verdict.UNKNOWN)
    if (
        configured
        and chosen.provider.image.is_file()
        and not imagechecks.keep(chosen, failed, names(points, Verdict.WARNING))
    ):
        why = f"The result can't be kept in {chosen.state_dir}, so `ravebot doctor` won't show it:"
        output.complain(f"{why} start ravebot once, and check again.", "yellow")
    if report is None:
        output.json(points)
    else:
        report.end(points)
    if failed:
        raise typer.Exit(FAILED)


def _chosen(path: Path, image: str | None) -> tuple[Config, bool]:
    """What to check with, and whether there is a configuration. A name of provider.images goes before a file of that
    name: write ./NAME for the file."""
    from ravebot.config.file import defaults, read
    from ravebot.images.check import settings

    if image is not None and path == DEFAULT_CONFIG and not path.exists():
        return defaults(Path(image).absolute()), False
    config = read(path)
    if image is None:
        return config, True
    return settings.for_image(config, config.provider.images.get(image) or Path(image).absolute()), True


async def _examine(config: Config, report: Report | None) -> tuple[Point, ...]:
    from ravebot import logs
    from ravebot.images.check.examine import Examination

    logs.set_up("error", ())
    if report is None:
        return await Examination(config, lambda _name: None, lambda _point: None).run()
    with report.running():
        return await Examination(config, report.begins, report.told).run()
