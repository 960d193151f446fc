"""Prints the doctor's findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ravebot.operations.doctor.finding import Finding, Verdict
from ravebot.terminal import Cell, Output, clean

STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "bold red", Verdict.UNKNOWN: "cyan"}


def show(output: Output, findings: Sequence[Finding], of: Sequence[Finding] | None = None) -> None:
    """A table with the fixes on a terminal; tab-separated lines in a pipe. `of`: all, if some are not shown."""
    if output.console.is_terminal:
        output.console.print(_table(findings))
    else:
        rows = ((Cell(f.verdict.value), f.name, f.detail, f.fix) for f in findings)
        output.table(("verdict", "check", "found", "fix"), rows)
    summarize(output, [finding.verdict for finding in of or findings])


def summarize(output: Output, verdicts: Sequence[Verdict]) -> None:
    """How many there are of each verdict, on stderr."""
    counts = Counter(verdicts)
    worst = next((v for v in (Verdict.FAILED, Verdict.WARNING, Verdict.UNKNOWN) if counts[v]), Verdict.OK)
    said = {"ok": Verdict.OK, "to look at": Verdict.WARNING, "unknown": Verdict.UNKNOWN, "failed": Verdict.FAILED}
    output.complain(", ".join(f"{counts[verdict]} {name}" for name, verdict in said.items()), STYLES[worst])


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        style = STYLES[finding.verdict]
        found = Text(clean(finding.detail))
        if finding.fix:
            found.append(f"\n→ {clean(finding.fix)}", style=style)
        table.add_row(Text(finding.verdict.value, style=style), Text(clean(finding.name), style="bold"), found)
    return table
