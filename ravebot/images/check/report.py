"""Prints the points of an image check as they are found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.text import Text

from ravebot.images.check.point import Point
from ravebot.operations.doctor.finding import Verdict
from ravebot.operations.doctor.report import STYLES, summarize
from ravebot.terminal import Output, clean

_NAME_WIDTH = 16


class Report:
    """A line for each point; on a terminal, also what is being looked at."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._status = output.console.status("") if output.console.is_terminal else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the points come in."""
        if self._status is None:
            self._output.raw("\t".join(("VERDICT", "POINT", "SECONDS", "FOUND", "FIX")))
            yield
            return
        with self._status:
            yield

    def begins(self, name: str) -> None:
        if self._status is not None:
            self._status.update(Text(f"{name} …", style="dim"))

    def told(self, point: Point) -> None:
        if self._status is None:
            cells = (point.verdict.value, point.name, f"{point.seconds:.1f}", point.detail, point.fix)
            self._output.raw("\t".join(map(clean, cells)))
            return
        style = STYLES[point.verdict]
        line = Text.assemble(
            (f"{point.verdict.value:<8}", style),
            (f"{point.name:<{_NAME_WIDTH}}", "bold"),
            (f"{point.seconds:6.1f} s  ", "dim"),
            clean(point.detail),
        )
        if point.fix:
            line.append(f"\n{'':8}→ {clean(point.fix)}", style=style)
        self._output.console.print(line)

    def end(self, points: Sequence[Point]) -> None:
        """The console of a silent guest, and the sum."""
        for point in points:
            if point.console:
                self._output.complain("The last lines on the console:", "bold")
                for line in point.console.splitlines():
                    self._output.complain(f"  {clean(line)}", "dim")
            elif point.name == "guest agent" and point.verdict is Verdict.FAILED:
                self._output.complain("The console is empty: is `console=ttyS0` on the kernel's command line?", "bold")
        summarize(self._output, [point.verdict for point in points])
