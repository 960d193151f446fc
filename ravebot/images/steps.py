"""Shows a build to the person who waits for it."""

from __future__ import annotations

import time

from rich import progress

from ravebot.images.progress import Progress
from ravebot.terminal import Output, clean


class Steps(Progress):
    """Shows a build on stderr: a line for each finished step, and on a terminal the one that runs."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._name = ""
        self._began = 0.0
        self._live: progress.Progress | None = None

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
            columns = (
                progress.SpinnerColumn(),
                progress.TextColumn("{task.description}", markup=False),
                progress.TimeElapsedColumn(),
            )
            self._live = progress.Progress(*columns, console=self._output.errors, transient=True)
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
