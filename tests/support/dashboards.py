"""Reads monitoring/grafana/: dashboards, their panels, and the queries that Grafana would send to Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.pages import ROOT, code, rows

FOLDER = ROOT / "monitoring" / "grafana"
DASHBOARDS = tuple(sorted(FOLDER.glob("*.json")))
BUILT_IN = frozenset({"__rate_interval", "__range", "__interval"})
"""Variables that Grafana has everywhere, of those that queries can use."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
_SELECTED = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?=[{\[])")
_OURS = re.compile(r"\b(?:ravebot|process)_[a-z0-9_]+\b")
_OF_HISTOGRAMS = re.compile(r"_(?:bucket|sum|count)$")

Panel = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    """The whole dashboard."""
    board = json.loads(path.read_text())
    assert isinstance(board, dict), path
    return board


def panels(board: Mapping[str, Any]) -> Iterator[Panel]:
    """Everything on it, also what is in a row that is folded up."""
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", ())


def queries(path: Path, values: Mapping[str, str]) -> list[tuple[str, str]]:
    """The title of its panel and the query, for each query, with the variables' values.

    Raises KeyError for a variable that has none.
    """
    return [
        (panel["title"], filled(target["expr"], values))
        for panel in panels(read(path))
        for target in panel.get("targets", ())
    ]


def filled(text: str, values: Mapping[str, str]) -> str:
    """With the variables' values."""
    return _VARIABLE.sub(lambda found: values[found[1] or found[2]], text)


def variables(text: str) -> set[str]:
    """Those that a text uses."""
    return {braced or plain for braced, plain in _VARIABLE.findall(text)}


def metrics(query: str) -> set[str]:
    """Those that a query asks for; a histogram's by its own name."""
    plain = re.sub(r'"[^"]*"', '""', query)
    names = {*_SELECTED.findall(plain), *_OURS.findall(plain)} - {"by", "without", "on", "ignoring"}
    return {name if name in documented() else _OF_HISTOGRAMS.sub("", name) for name in names}


def documented() -> set[str]:
    """The metrics that docs/operate.md names."""
    return {code(name) for name, *_ in rows("operate.md", "metric")}
