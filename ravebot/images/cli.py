"""`ravebot image`: what a subcommand needs is imported inside it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ravebot.config.values import parse_size
from ravebot.errors import BuildFailed
from ravebot.images.recipe import Preset, Recipe, Suite, parse_packages
from ravebot.sandboxes.view import in_bytes
from ravebot.terminal import Output, clean

T = TypeVar("T")

app = typer.Typer(help="Build images for sandboxes.", no_args_is_help=True)
output = Output()


@app.command()
def build(
    out: Annotated[Path, typer.Argument(metavar="OUT.qcow2", help="The image's file.")],
    suite: Annotated[Suite, typer.Option(help="The Debian release.")] = Suite.BOOKWORM,
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

    Packages, --script and npm run as root in a chroot, which isolates nothing: use only what you trust as root here.
    """
    from ravebot.images.build import build as build_image

    try:
        recipe = Recipe(
            suite, preset, parse_packages(packages), script.read_bytes() if script else None,
            parse_size(size) if size else None,
        )  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with Steps(output) as steps:
        try:
            built = asyncio.run(
                _until_interrupted(build_image(recipe, out, force=force, boot_files=boot_files, progress=steps))
            )
        except BuildFailed as error:
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


class Steps:
    """Shows a build on stderr: a line for each finished step, and on a terminal the one that runs."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._name = ""
        self._began = 0.0
        self._live: Progress | None = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        self.stop()

    def step(self, name: str) -> None:
        self._finish()
        self._name, self._began = name, time.monotonic()
        if self._output.errors.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            self._live = Progress(*columns, console=self._output.errors, transient=True)
            self._live.add_task(name)
            self._live.start()

    def detail(self, text: str) -> None:
        if self._live is not None:
            self._live.update(self._live.task_ids[0], description=clean(f"{self._name}: {text}"))

    def line(self, text: str) -> None:
        self._output.complain(f"  {clean(text)}", "dim")

    def _finish(self) -> None:
        self.stop()
        if self._name:
            self._output.complain(f"{self._name}: {time.monotonic() - self._began:.1f} s", "dim")
        self._name = ""

    def stop(self) -> None:
        """Take the line of the running step away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


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
