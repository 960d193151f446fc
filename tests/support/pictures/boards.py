"""Draws a dashboard of monitoring/grafana/ from what a real Prometheus answers to its queries.

Debian has no Grafana. The pictures show each panel with its place, title, unit, limits and data, but not how Grafana
draws it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import aiohttp

from tests.support import dashboards
from tests.support.dashboards import Panel
from tests.support.pictures import browser, charts
from tests.support.pictures.charts import Frame, Line
from tests.support.pictures.picture import Picture

WIDTH = 1440
_COLUMN, _ROW, _GAP = WIDTH / 24, 34, 8
_POINTS = 240
_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_TABLE_HEAD = "Value #"
_STYLE = """
body { margin: 0; background: #fff; font: 12px Inter, sans-serif; color: #222; position: relative }
h1 { font-size: 18px; margin: 12px 10px 0 } h1 small { font-weight: normal; font-size: 12px; color: #666 }
.panel { position: absolute; border: 1px solid #ddd; border-radius: 3px; overflow: hidden; box-sizing: border-box }
.panel h2 { font-size: 12px; margin: 5px 8px } .row { font-weight: 600; font-size: 14px; padding: 8px 10px; border: 0 }
.none { color: #666; text-align: center; margin-top: 40px }
.figure { font-size: 30px; text-align: center; margin: 22px 0 }
svg text { font-size: 10px; fill: #555 } svg .grid { stroke: #eee }
.keys { margin: 0 8px } .keys span { margin-right: 12px; white-space: nowrap }
.keys i { display: inline-block; width: 10px; height: 3px; margin: 0 4px 3px 0 }
.bar { display: flex; margin: 8px } .bar b { width: 130px; font-weight: normal }
.bar em { width: 70px; text-align: right }
.bar span { flex: 1; background: #eee } .bar span i { display: block; height: 16px }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: 4px 8px; border-top: 1px solid #eee }
"""


@dataclass(frozen=True)
class Source:
    """A Prometheus, the last so many seconds of it, and the values of the dashboards' variables."""

    url: str
    seconds: float
    values: Mapping[str, str]

    async def picture(self, path: Path) -> Picture:
        """The dashboard of that file."""
        return await browser.photograph(await self.page(path), WIDTH)

    async def page(self, path: Path) -> str:
        """It as HTML."""
        board, until = dashboards.read(path), time.time()
        async with aiohttp.ClientSession() as session:
            drawing = _Drawing(self, session, until)
            placed = [await drawing.placed(panel) for panel in dashboards.panels(board)]
        title = f"{escape(board['title'])} <small>drawn from the queries' results, not by Grafana</small>"
        return f'<!doctype html><meta charset="utf-8"><style>{_STYLE}</style><h1>{title}</h1>{"".join(placed)}'


@dataclass(frozen=True)
class _Drawing:
    source: Source
    session: aiohttp.ClientSession
    until: float

    async def placed(self, panel: Panel) -> str:
        at = panel["gridPos"]
        left, top = at["x"] * _COLUMN, 44 + at["y"] * _ROW
        width, height = at["w"] * _COLUMN - _GAP, at["h"] * _ROW - _GAP
        place = f"left:{left + 6:.0f}px;top:{top}px;width:{width:.0f}px;height:{height}px"
        if panel["type"] == "row":
            return f'<div class="panel row" style="{place}">{escape(panel["title"])}</div>'
        shown = {"timeseries": self._chart, "table": self._table, "bargauge": self._bars}.get(
            panel["type"], self._figure
        )
        return f'<div class="panel" style="{place}"><h2>{escape(panel["title"])}</h2>{await shown(panel)}</div>'

    async def _chart(self, panel: Panel) -> str:
        at, settings = panel["gridPos"], panel["fieldConfig"]["defaults"]
        since = self.until - self.source.seconds
        step = max(1, self.source.seconds / _POINTS)
        times = [since + n * step for n in range(int(self.source.seconds / step) + 1)]
        lines = []
        for target in panel["targets"]:
            for one in await self._ask("query_range", target, start=since, end=self.until, step=step):
                found = {round((float(at) - since) / step): float(value) for at, value in one["values"]}
                points = tuple((at, found.get(n, float("nan"))) for n, at in enumerate(times))
                name = _legend(target, one["metric"])
                lines.append(Line(name, points, *_look(panel, name)))
        width = round(at["w"] * _COLUMN - _GAP - 2)
        frame = Frame(
            width,
            at["h"] * _ROW - (64 if sum(len(line.name) + 5 for line in lines) * 7 < width else 82),
            since,
            self.until,
            settings["unit"],
            tuple((step["value"], step["color"]) for step in _steps(settings) if step["value"] is not None),
            settings.get("min"),
            settings.get("max"),
            settings["custom"]["stacking"]["mode"] == "normal",
        )
        return charts.chart(lines, frame)

    async def _figure(self, panel: Panel) -> str:
        settings = panel["fieldConfig"]["defaults"]
        found = await self._ask("query", panel["targets"][0], time=self.until)
        if not found:
            return '<p class="none">no data</p>'
        value = float(found[0]["value"][1])
        for mapping in settings.get("mappings", ()):
            if mapping["type"] == "special" and value != value and mapping["options"]["match"] == "nan":
                return charts.figure(mapping["options"]["result"]["text"], "text")
            if mapping["type"] == "value" and (result := mapping["options"].get(f"{value:g}")):
                return charts.figure(result["text"], result["color"])
        shown = charts.words(value, settings["unit"], settings.get("decimals"))
        return charts.figure(shown, _reached(settings, value))

    async def _bars(self, panel: Panel) -> str:
        settings, target = panel["fieldConfig"]["defaults"], panel["targets"][0]
        values = [
            (_legend(target, one["metric"]), float(one["value"][1]), _reached(settings, float(one["value"][1])))
            for one in await self._ask("query", target, time=self.until)
        ]
        return charts.bars(values, settings.get("max", 1), settings["unit"], settings.get("decimals"))

    async def _table(self, panel: Panel) -> str:
        """As its transformations have it: one line for what all queries are grouped by."""
        (organized,) = (one["options"] for one in panel["transformations"] if one["id"] == "organize")
        names = organized["renameByName"]
        (key,) = (name for name in names if not name.startswith(_TABLE_HEAD))
        lines: dict[str, dict[str, str]] = {}
        for target in panel["targets"]:
            column = names[_TABLE_HEAD + target["refId"]]
            for one in await self._ask("query", target, time=self.until):
                words = charts.words(float(one["value"][1]), _unit(panel, column))
                lines.setdefault(one["metric"][key], {})[column] = words
        columns = list(names.values())[1:]
        return charts.table(
            [names[key], *columns], [[name, *(line.get(one, "") for one in columns)] for name, line in lines.items()]
        )

    async def _ask(self, how: str, target: Mapping[str, Any], **more: float) -> list[dict[str, Any]]:
        asked = {"query": dashboards.filled(target["expr"], self.source.values)}
        asked |= {name: f"{value:.3f}" for name, value in more.items()}
        async with self.session.get(f"{self.source.url}/api/v1/{how}", params=asked) as answer:
            body = await answer.json()
        assert body["status"] == "success", body
        found: list[dict[str, Any]] = body["data"]["result"]
        return found


def _legend(target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    return _LABEL.sub(lambda found: labels.get(found[1], ""), target["legendFormat"])


def _steps(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = settings.get("thresholds", {}).get("steps", [])
    return found


def _reached(settings: Mapping[str, Any], value: float) -> str:
    """The colour of the last limit that the value reached."""
    reached = [one["color"] for one in _steps(settings) if one["value"] is None or value >= one["value"]]
    return str(reached[-1]) if reached else ""


def _look(panel: Panel, name: str) -> tuple[str, bool]:
    """The colour of that line if it has one, and whether it stands beside the stack."""
    set_here = {
        one["id"]: one["value"]
        for override in panel["fieldConfig"]["overrides"]
        if override["matcher"] == {"id": "byName", "options": name}
        for one in override["properties"]
    }
    return set_here.get("color", {}).get("fixedColor", ""), "custom.lineStyle" in set_here


def _unit(panel: Panel, column: str) -> str:
    """That of a table's column."""
    for override in panel["fieldConfig"]["overrides"]:
        matcher = override["matcher"]
        if re.fullmatch(matcher["options"] if matcher["id"] == "byRegexp" else re.escape(matcher["options"]), column):
            for one in override["properties"]:
                if one["id"] == "unit":
                    return str(one["value"])
    return str(panel["fieldConfig"]["defaults"]["unit"])
