"""The dashboards of monitoring/grafana/, as far as they can be checked without Grafana and Prometheus."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dashboards import BUILT_IN, DASHBOARDS, documented, filled, metrics, panels, queries, read, variables
from tests.support.pages import ROOT

CORE = {"bargauge", "gauge", "heatmap", "row", "stat", "table", "text", "timeseries"}
"""Panels that every Grafana has."""
WIDTH = 24
RULES = ROOT / "monitoring" / "prometheus" / "ravebot.rules.yml"

each = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def drawn(path: Path) -> list[dict[str, Any]]:
    """The panels that show something of Prometheus."""
    return [panel for panel in panels(read(path)) if panel["type"] not in ("row", "text")]


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return not (beside or above)


def test_there_is_one_for_operators_one_for_a_project_and_one_for_a_sandbox() -> None:
    assert [(path.stem, read(path)["uid"]) for path in DASHBOARDS] == [
        (name, f"ravebot-{name}") for name in ("operators", "project", "sandbox")
    ]
    assert len({read(path)["title"] for path in DASHBOARDS}) == len(DASHBOARDS)


@each
def test_it_is_written_as_it_is_reviewed_and_leads_to_the_others(path: Path) -> None:
    board = read(path)
    assert path.read_text() == json.dumps(board, indent=2, ensure_ascii=False) + "\n"
    assert board["id"] is None  # Grafana refuses a number that it does not know
    (link,) = board["links"]
    assert (link["type"], link["tags"]) == ("dashboards", board["tags"])


@each
def test_its_panels_are_of_every_grafana_and_ask_the_chosen_data_source(path: Path) -> None:
    assert {panel["type"] for panel in panels(read(path))} <= CORE
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in drawn(path):
        assert panel["datasource"] == chosen, panel["title"]
        assert all(target["datasource"] == chosen for target in panel["targets"]), panel["title"]


@each
def test_every_panel_has_a_title_of_its_own_a_description_and_a_unit(path: Path) -> None:
    everything = list(panels(read(path)))
    for counted in (Counter(panel["title"] for panel in everything), Counter(panel["id"] for panel in everything)):
        assert [one for one, count in counted.items() if count > 1] == []
    for panel in drawn(path):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@each
def test_every_query_asks_for_metrics_of_the_documentation(path: Path) -> None:
    assert all(panel["targets"] for panel in drawn(path))
    for panel in drawn(path):
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH")[: len(panel["targets"])]
        for target in panel["targets"]:
            asked = metrics(target["expr"])
            assert asked, panel["title"]
            assert asked <= documented(), panel["title"]


@each
def test_its_panels_lie_beside_each_other_and_within_the_width(path: Path) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in panels(read(path))]
    assert [title for title, at in places if at["x"] < 0 or at["x"] + at["w"] > WIDTH] == []
    assert [(a, b) for (a, one), (b, other) in combinations(places, 2) if overlap(one, other)] == []


@each
def test_the_variables_that_it_uses_are_defined_before(path: Path) -> None:
    board = read(path)
    known: set[str] = set()
    for variable in board["templating"]["list"]:
        assert variables(json.dumps(variable)) <= known, variable["name"]
        known.add(variable["name"])
        assert metrics(variable.get("definition", "")) <= documented(), variable["name"]
    for panel in drawn(path):
        for target in panel["targets"]:
            assert variables(target["expr"]) <= known | BUILT_IN, panel["title"]


def test_where_a_panel_promises_an_alert_there_is_one_that_watches_the_same_metrics() -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    watched = [metrics(rule["expr"]) for rule in group["rules"]]
    promising = [panel for path in DASHBOARDS for panel in drawn(path) if "alert is raised" in panel["description"]]
    assert len(promising) > 15
    for panel in promising:
        asked = set().union(*(metrics(target["expr"]) for target in panel["targets"]))
        assert any(one & asked for one in watched), panel["title"]


def test_a_metric_is_found_in_a_query_wherever_it_stands() -> None:
    query = (
        'sum by (le) (rate(some_seconds_bucket{of="ravebot_none{"}[5m])) / ravebot_sandboxes_limit - process_max_fds{}'
    )
    assert metrics(query) == {"some_seconds", "ravebot_sandboxes_limit", "process_max_fds"}
    assert metrics("increase(ravebot_stage_seconds_bucket[1h])") == {"ravebot_stage_seconds"}


def test_queries_come_with_the_values_of_their_variables() -> None:
    values = {"project": "group/app", "mr": "group/app!1", "__rate_interval": "20s"}
    found = queries(DASHBOARDS[2], values)
    assert len(found) == sum(len(panel["targets"]) for panel in drawn(DASHBOARDS[2]))
    assert not any("$" in query for _, query in found)
    assert any('{project="group/app", mr="group/app!1"}[20s]' in query for _, query in found)
    assert filled("${a:pipe} $b $", {"a": "1", "b": "2"}) == "1 2 $"
    with pytest.raises(KeyError):
        queries(DASHBOARDS[2], {"project": "group/app"})
