"""How use is printed: a table on a terminal, tab-separated lines in a pipe, or CSV or JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import timedelta

from ravebot.operations.reports import AgentUsageLine, UsageBy, UsageLine, UsageLines
from ravebot.sandboxes.view import in_bytes, in_words
from ravebot.terminal import Cell, Output, clean

_TITLES = {UsageBy.PROJECT: "Project", UsageBy.PERSON: "Person", UsageBy.AGENT: "Agent", UsageBy.WEEK: "Week"}
_SANDBOXES: Mapping[str, Callable[[UsageLine], str]] = {
    "Sandboxes": lambda line: str(line.sandboxes),
    "Hours": lambda line: f"{line.hours:.1f}",
    "CPU hours": lambda line: f"{line.cpu_hours:.2f}",
    "GiB hours": lambda line: f"{line.memory_gib_hours:.1f}",
    "Usual wait": lambda line: in_words(timedelta(seconds=line.queue_median_seconds)),
    "Peak memory": lambda line: in_bytes(line.memory_peak_bytes),
    "Peak disk": lambda line: in_bytes(line.disk_peak_bytes),
    "Received": lambda line: in_bytes(line.received_bytes),
    "Sent": lambda line: in_bytes(line.sent_bytes),
    "Tokens": lambda line: str(line.model_tokens),
}
_AGENTS: Mapping[str, Callable[[AgentUsageLine], str]] = {
    "Turns": lambda line: str(line.turns),
    "Hours": lambda line: f"{line.hours:.1f}",
    "Tokens": lambda line: str(line.model_tokens),
}
_RISKY = tuple("=+-@＝＋－＠")
"""What formulas begin with, also behind spaces and in full width (OWASP, "CSV Injection")."""


def as_records(lines: UsageLines, by: Sequence[UsageBy]) -> list[dict[str, object]]:
    """Each line with its groups under their names, for JSON and CSV."""
    names = [one.value for one in by]
    return [{**dict(zip(names, line.group, strict=True)), **_figures(line)} for line in lines]


def as_csv(lines: UsageLines, by: Sequence[UsageBy]) -> str:
    """CSV with a line of titles, also when nothing was used."""
    kind = AgentUsageLine if UsageBy.AGENT in by else UsageLine
    titles = [*(one.value for one in by), *(one.name for one in fields(kind) if one.name != "group")]
    text = io.StringIO()
    writer = csv.DictWriter(text, titles, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in record.items()} for record in as_records(lines, by))
    return text.getvalue().rstrip("\n")


def show_usage(output: Output, lines: UsageLines, by: Sequence[UsageBy]) -> None:
    """`ravebot usage`."""
    watched = output.console.is_terminal
    if not lines and watched:
        output.say("Nothing was used in that time.")
        return
    titles = [_TITLES[one] for one in by] + list(_AGENTS if UsageBy.AGENT in by else _SANDBOXES)
    rows = [[*(Cell(name, "bold") for name in line.group), *map(Cell, _cells(line))] for line in lines]
    output.table(titles, rows)


def _figures(line: UsageLine | AgentUsageLine) -> Mapping[str, object]:
    return {one.name: _rounded(getattr(line, one.name)) for one in fields(line) if one.name != "group"}


def _rounded(value: float) -> float:
    return round(value, 4) if isinstance(value, float) else value


def _cell(value: object) -> object:
    """A name in one line, and never a formula."""
    if not isinstance(value, str):
        return value
    return "'" + clean(value) if value.lstrip().startswith(_RISKY) else clean(value)


def _cells(line: UsageLine | AgentUsageLine) -> list[str]:
    if isinstance(line, AgentUsageLine):
        return [shown(line) for shown in _AGENTS.values()]
    return [shown(line) for shown in _SANDBOXES.values()]
