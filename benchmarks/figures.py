"""The measured figures, their aims, and facts about the machine."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import ceil

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from ravebot.providers.libvirt.probe import probe_kvm


@dataclass(frozen=True)
class Figure:
    """One line of a result. `met` is None without an aim; `note` says how the value was measured."""

    name: str
    value: str
    aim: str = ""
    met: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Result:
    """One benchmark's figures, and the load of the machine when it began."""

    benchmark: str
    load_at_start: float
    seconds: float
    figures: tuple[Figure, ...]


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def median(values: Iterable[float]) -> float:
    return percentile(values, 50)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def spread(seconds: Sequence[float]) -> str:
    """Median and 99th percentile."""
    return f"median {ms(median(seconds))}, p99 {ms(percentile(seconds, 99))}"


def machine_facts() -> dict[str, str]:
    """Facts about the machine that affect the figures."""
    return {
        "processors": f"{os.cpu_count()} ({_processor()})",
        "memory": f"{psutil.virtual_memory().total / 1024**3:.1f} GiB",
        "kvm": asyncio.run(probe_kvm("qemu-system-x86_64")).reason,
        "python": platform.python_version(),
        "load at start": f"{os.getloadavg()[0]:.2f}",
        "at": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def show(result: Result) -> None:
    """Print a table; not limited in width unless stdout is a terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200, highlight=False)
    title = f"{result.benchmark} ({result.seconds:.0f} s, load at start {result.load_at_start:.2f})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2)
    for heading in ("figure", "measured", "aim", "met", "what it is"):
        table.add_column(heading)
    marks = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}
    for figure in result.figures:
        table.add_row(figure.name, figure.value, figure.aim, marks[figure.met], figure.note)
    console.print(table)


def as_json(facts: dict[str, str], results: Sequence[Result]) -> str:
    return json.dumps({"machine": facts, "results": [asdict(result) for result in results]}, indent=2)
