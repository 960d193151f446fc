"""Where the demo's story is told: colour, panels and a spinner on a terminal, whole plain lines in a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tests.support.demo.readable import Kind, Row

_STYLES = {"alice": "cyan", "mallory": "red", "ravebot": "magenta"}
_REPEAT_SECONDS = 10


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to us what to do; rich would exit on the spot, and nothing would be taken away."""
        raise BrokenPipeError


class Screen:
    """Everything the demo prints goes through here, in order.

    When whoever read it is gone (a closed pipe or terminal), `on_lost` is called, once, and the rest is silence.
    """

    def __init__(self) -> None:
        self.console: Console = _Console(highlight=False, markup=False, emoji=False)
        self.on_lost: Callable[[], object] = lambda: None
        self._began = time.monotonic()

    @property
    def rich(self) -> bool:
        """Whether a person's terminal is at the other end."""
        return self.console.is_terminal

    def chapter(self, title: str) -> None:
        if self.rich:
            self._print("")
            self._print(Rule(Text(title, style="bold"), align="left", style="blue"))
        else:
            self._line(f"\n== {title}")

    def say(self, text: str, style: str = "") -> None:
        """A sentence of the narrator."""
        self._line(text, style)

    def seen(self, text: str) -> None:
        """Something that was checked and holds."""
        self._prefixed("✔", "bold green", text)

    def failed(self, text: str) -> None:
        self._prefixed("✘", "bold red", text, "red")

    def said(self, where: str, who: str, text: str) -> None:
        """Somebody's words, in the room or on the merge request, with the seconds since the demo's start."""
        at = f"{time.monotonic() - self._began:6.1f} s"
        first, *rest = text.split("\n")
        if not self.rich:
            self._line(f"{at}  {where:<6} {who}: {first}")
            for line in rest:
                self._line(f"{'':>18}{line}")
            return
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(style="blue", no_wrap=True, min_width=5)
        grid.add_column(style=_STYLES.get(who, "bold"), no_wrap=True, min_width=7)
        grid.add_column(ratio=1, overflow="fold")
        grid.add_row(at, where, who, Text(text))
        self._print(grid)

    def copyable(self, command: str) -> None:
        """A command on lines of its own, never folded by us, so that it can be copied."""
        self._print(Text(f"  {command}", style="bold green"), soft_wrap=True)

    def message(self, title: str, rows: Sequence[Row], style: str) -> None:
        """A whole message as people see it."""
        if not self.rich:
            self._line(f"--- {title}")
            for row in rows:
                lead = f"{row.label}: " if row.label else ""
                self._line("    " + (lead + row.text).replace("\n", "\n" + " " * (4 + len(lead))))
            self._line("---")
            return
        width = max((len(row.label) for row in rows), default=0)
        body = Group(*(_rendered(row, width) for row in rows))
        self._print(Panel(body, title=Text(title), title_align="left", border_style=style, padding=(0, 1)))

    def table(self, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """The first column is text, the others are figures."""
        listed = list(rows)
        if not self.rich:
            widths = [max(map(len, column)) for column in zip(titles, *listed, strict=True)]
            for cells in [titles, *listed]:
                padded = [cell.ljust(widths[0]) if n == 0 else cell.rjust(widths[n]) for n, cell in enumerate(cells)]
                self._line("  ".join(padded))
            return
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
        for number, title in enumerate(titles):
            table.add_column(title, justify="right" if number else "left")
        for cells in listed:
            table.add_row(*(Text(cell) for cell in cells))
        self._print(table)

    @asynccontextmanager
    async def waiting(self, text: str) -> AsyncIterator[None]:
        """Shows that something goes on, and for how long, while the block runs."""
        began = time.monotonic()
        if not self.rich:
            self._line(f"{text} …")
        ticker = asyncio.create_task(self._spin(text, began) if self.rich else self._repeat(text, began))
        try:
            yield
        finally:
            ticker.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await ticker

    async def _spin(self, text: str, began: float) -> None:
        with self.console.status(Text(f"{text} …", style="dim")) as status:
            while True:
                await asyncio.sleep(1)
                status.update(Text(f"{text} … {time.monotonic() - began:.0f} s", style="dim"))

    async def _repeat(self, text: str, began: float) -> None:
        while True:
            await asyncio.sleep(_REPEAT_SECONDS)
            self._line(f"{text} … {time.monotonic() - began:.0f} s")

    def _prefixed(self, sign: str, sign_style: str, text: str, style: str = "") -> None:
        if not self.rich:
            self._line(f"{sign} {text}")
            return
        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text(sign, style=sign_style), Text(text, style=style, overflow="fold"))
        self._print(grid)

    def _print(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        try:
            self.console.print(what, soft_wrap=soft_wrap)
        except OSError:
            self.console.quiet = True
            # What is buffered must not fail again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.on_lost()

    def _line(self, text: str, style: str = "") -> None:
        self._print(Text(text, style=style), soft_wrap=not self.rich)


def _rendered(row: Row, label_width: int) -> RenderableType:
    if row.kind is Kind.HEADING:
        return Text(row.text, style="bold")
    if row.kind is Kind.CODE:
        return Text(row.text, style="green", overflow="fold")
    if row.kind is Kind.TEXT:
        return Text(row.text, style="dim" if row.text.startswith(("·", "▸")) else "")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True, width=label_width)
    grid.add_column(overflow="fold", ratio=1)
    style = "green" if row.label == "SSH" else ""
    grid.add_row(row.label, Text(row.text, style=style))
    return grid
