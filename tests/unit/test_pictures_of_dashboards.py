"""How the pictures of dashboards draw what Prometheus answered."""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ravebot.web.server import serve
from tests.support.dashboards import DASHBOARDS
from tests.support.pictures.boards import Source
from tests.support.pictures.charts import Frame, Line, bars, chart, words

OPERATORS, PROJECT, _ = DASHBOARDS
VALUES = {"instance": "ravebot:8080", "project": "group/app", "__rate_interval": "10s", "__range": "60s"}
FRAME = Frame(400, 200, 0, 100, "s")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.5, "percentunit", "50 %"),
        (3 * 1024**3, "bytes", "3 GiB"),
        (1536, "binBps", "1.5 KiB/s"),
        (0.025, "s", "25 ms"),
        (5400, "s", "1.5 h"),
        (0, "s", "0 s"),
        (2, "short", "2"),
        (1200, "short", "1.2 k"),
        (0.25, "reqps", "0.25 req/s"),
        (math.nan, "s", "–"),
    ],
)
def test_values_are_written_with_their_unit(value: float, unit: str, text: str) -> None:
    assert words(value, unit) == text


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [(6.01, "short", 0, "6"), (0.0103, "percentunit", 0, "1 %"), (0.153, "none", 2, "0.15"), (90, "s", 0, "1.5 min")],
)
def test_a_panel_says_how_many_decimals_there_are(value: float, unit: str, decimals: int, text: str) -> None:
    assert words(value, unit, decimals) == text


@pytest.mark.parametrize(
    ("most", "steps"),
    [
        (8, ("2 s", "4 s", "6 s", "8 s")),
        (55, ("15 s", "30 s", "45 s", "1 min")),
        (75, ("30 s", "1 min", "1.5 min", "2 min")),
        (5000, ("30 min", "1 h", "1.5 h", "2 h")),
    ],
)
def test_an_axis_of_time_has_steps_that_people_count_in(most: float, steps: tuple[str, ...]) -> None:
    drawn = chart([Line("some", ((0.0, 1.0), (100.0, most)))], FRAME)
    assert [text for text in steps if f">{text}<" not in drawn] == []


def test_a_line_has_a_gap_where_there_is_no_value_and_a_chart_without_values_says_so() -> None:
    points = tuple((float(at), math.nan if at == 50 else at / 10) for at in range(0, 101, 10))
    assert chart([Line("some", points)], FRAME).count("<polyline") == 2
    assert "no data" in chart([Line("none", ((1.0, math.nan),))], FRAME)
    assert "no data" in bars([], 1, "s")


def test_names_of_others_can_not_be_markup() -> None:
    drawn = chart([Line("<b>x</b>", ((0.0, 1.0), (100.0, 2.0)))], FRAME) + bars([("<b>", 1, "red")], 1, "s")
    assert "<b>x" not in drawn
    assert "&lt;b&gt;" in drawn


async def page(path: Path, answer: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The page of a dashboard if every query is answered so, and the queries."""
    asked: list[str] = []

    async def query(request: web.Request) -> web.Response:
        asked.append(request.query["query"])
        found = answer if request.path.endswith("/query") else []
        return web.json_response({"status": "success", "data": {"result": found}})

    app = web.Application()
    app.router.add_get("/api/v1/{what}", query)
    async with serve(app, "127.0.0.1", 0) as (host, port):
        return await Source(f"http://{host}:{port}", 60, VALUES).page(path), asked


async def test_a_page_shows_every_panel_and_asks_every_query() -> None:
    board = json.loads(OPERATORS.read_text())
    drawn, asked = await page(OPERATORS, [])
    assert [panel["title"] for panel in board["panels"] if f">{escape(panel['title'])}<" not in drawn] == []
    assert "drawn from the queries' results, not by Grafana" in drawn
    assert len(asked) == sum(len(panel.get("targets", ())) for panel in board["panels"])
    assert not any("$" in query for query in asked)


async def test_a_table_has_a_line_for_each_merge_request() -> None:
    drawn, _ = await page(PROJECT, [{"metric": {"mr": "group/app!7"}, "value": [0, "1024"]}])
    assert "<th>Merge request</th><th>Processors in use</th>" in drawn
    assert drawn.count("<td>group/app!7</td>") == 1
    assert "<td>1 KiB</td>" in drawn
