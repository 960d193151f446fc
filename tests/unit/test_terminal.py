"""Tables on a terminal: whole where they fit, and a list where they don't."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ravebot.terminal import Cell, Output

TITLES = ("Project", "Sandboxes", "Peak memory", "Why")
ROWS: list[tuple[str | Cell, ...]] = [
    (Cell("group/app", "bold"), "4", "880 MiB", ""),
    ("漢字", "1", "", "a\x1b[2Jb " + "why " * 20),
]


def shown(width: int) -> list[str]:
    output, text = Output(), io.StringIO()
    output.console = Console(file=text, force_terminal=True, width=width, color_system=None, highlight=False)
    output.table(TITLES, ROWS)
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 200])
def test_a_table_that_fits_has_a_line_of_titles_and_its_last_column_may_be_broken(width: int) -> None:
    titles, first, second, *_ = shown(width)
    assert titles.split() == ["Project", "Sandboxes", "Peak", "memory", "Why"]
    assert first.split() == ["group/app", "4", "880", "MiB"]
    assert second.startswith("漢字       1                       a\\x1b[2Jb why")


def test_one_that_does_not_is_a_list_with_each_value_under_its_name_and_without_empty_ones() -> None:
    lines = shown(50)
    assert lines[:4] == [
        "group/app",
        "    Sandboxes: 4, Peak memory: 880 MiB            ",
        "漢字",
        "    Sandboxes: 1, Why: a\\x1b[2Jb why why why why  ",
    ]
    assert max(map(len, lines)) <= 50
