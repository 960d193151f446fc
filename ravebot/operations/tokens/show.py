"""How tokens are printed: a table on a terminal, tab-separated lines in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from ravebot.operations.tokens.reports import TokenLine
from ravebot.terminal import Cell, Output, utc


def show_tokens(output: Output, lines: Sequence[TokenLine]) -> None:
    """`ravebot token list`."""
    if not lines and output.console.is_terminal:
        output.say("There is no token: `ravebot token create` makes one.")
        return
    titles = ("Token", "Name", "Owner", "Scopes", "Projects", "Agent", "Until", "Last used", "State")
    output.table(
        titles,
        (
            (
                str(line.id),
                Cell(line.name, "bold"),
                line.owner,
                ", ".join(line.scopes),
                ", ".join(line.projects),
                line.agent,
                utc(line.expires_at),
                utc(line.used_at) if line.used_at else "never",
                Cell(line.problem or "valid", "red" if line.problem else "green"),
            )
            for line in lines
        ),
    )
