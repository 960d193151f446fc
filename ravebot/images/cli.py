"""`ravebot image`: build an image for the machines, and check any image."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from pydantic_core import to_json

from ravebot.config.values import parse_size
from ravebot.errors import ImageBuildFailed, ImageNotWritable
from ravebot.images import sources
from ravebot.images.recipe import Preset, Recipe, Suite, parse_packages, suite_for
from ravebot.sandboxes.view import in_bytes
from ravebot.terminal import DEFAULT_CONFIG, FAILED, ConfigPath, Json, clean, output

if TYPE_CHECKING:
    from ravebot.images.check.examine import Point
    from ravebot.images.check.report import Report
    from ravebot.images.check.settings import Settings

T = TypeVar("T")

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
    For rave, this host's npm fetches pinned packages and runs none of their scripts.
    """
    from ravebot.images.build import build as build_image
    from ravebot.images.steps import Steps

    recipe = Recipe(suite, preset)
    with _parameter("--packages"):
        recipe = replace(recipe, packages=parse_packages(packages))
    with _parameter("--script"):
        recipe = replace(recipe, script=script.read_bytes() if script else None)
    with _parameter("--size"):
        recipe = replace(recipe, size_bytes=parse_size(size) if size else None)
    with Steps(output) as steps:
        try:
            built = asyncio.run(
                _until_interrupted(build_image(recipe, out, force=force, boot_files=boot_files, progress=steps))
            )
        except ImageNotWritable as error:
            raise typer.BadParameter(str(error), param_hint="OUT.qcow2") from error
        except ImageBuildFailed as error:
            steps.stop()
            for line in error.lines:
                output.complain(f"  {clean(line)}", "dim")
            raise
        except KeyboardInterrupt:
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


@app.command()
def check(
    image: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A qcow2 image; by default the configured one.")
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    limit: Annotated[
        str | None,
        typer.Option(metavar="1m", help="How long to wait for the guest agent, instead of pool.build_timeout."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Boot an image as a sandbox would be, twice, and tell point by point what of the guest contract it meets.

    Needs root. The machines are apart from the bot's, which may run; of the configuration, memory, disk, user, web port
    and time limits are used, or the defaults if there is none. Ends with 1 if a point failed.
    """
    from ravebot.images.check.report import Report
    from ravebot.operations.doctor.finding import Verdict

    settings, state_dir = _settings(config, image, limit)
    if not as_json:
        what = (
            f"{settings.image}, as {'its configuration says' if state_dir else 'the defaults say (no configuration)'}"
        )
        output.complain(f"Checking {what}. It takes about two boots of the machine.", "dim")
    report = None if as_json else Report(output)
    points = asyncio.run(_until_interrupted(_examine(settings, report)))
    failed = [point.name for point in points if point.verdict in (Verdict.FAILED, Verdict.UNKNOWN)]
    if state_dir is not None:
        from ravebot.images.check import record

        record.keep(
            state_dir, settings.image, failed, [point.name for point in points if point.verdict is Verdict.WARNING]
        )
    if report is None:
        output.raw(to_json(points, indent=2).decode())
    else:
        report.end(points)
    if failed:
        raise typer.Exit(FAILED)


def _settings(config: Path, image: Path | None, limit: str | None) -> tuple[Settings, Path | None]:
    """What to check with, and the state folder, if there is a configuration."""
    from ravebot.config.file import load
    from ravebot.config.values import parse_duration
    from ravebot.images.check.settings import Settings

    state_dir = None
    if config.exists() or image is None or config != DEFAULT_CONFIG:
        loaded = load(config).config
        settings, state_dir = Settings.of(loaded, image and image.absolute()), loaded.state_dir
    else:
        settings = Settings.without_config(image.absolute())
    if limit is not None:
        try:
            settings = settings.patient(parse_duration(limit))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    return settings, state_dir


async def _examine(settings: Settings, report: Report | None) -> tuple[Point, ...]:
    from ravebot import logs
    from ravebot.images.check.examine import Examination

    logs.set_up("error", ())
    if report is None:
        return await Examination(settings, lambda _name: None, lambda _point: None).run()
    with report.running():
        return await Examination(settings, report.begins, report.told).run()


async def _until_interrupted(work: Coroutine[object, object, T]) -> T:
    """Cancel the work once on the first SIGINT, SIGTERM or SIGHUP, so that it can clean up in peace."""
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
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
