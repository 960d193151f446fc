"""Reads the documentation: README.md, docs/ and config.example.yaml, and in them tables, headings, links and keys."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from ravebot.config.tree import KeyPath

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "config.example.yaml"
PAGES = (README, *sorted(DOCS.glob("*.md")))

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def everything() -> str:
    """All pages as one text."""
    return "\n".join(page.read_text() for page in PAGES)


def table(page: str, head: str) -> list[list[str]]:
    """The only table of a page in docs/ whose first column is called `head`: its rows of cells, the head first."""
    found: list[list[list[str]]] = [[]]
    for line in (DOCS / page).read_text().splitlines():
        if not line.startswith("|"):
            found.append([])
        elif not line.startswith("|--"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    fitting = [lines for lines in found if lines and lines[0][0] == head]
    assert len(fitting) == 1, f"{page} has {len(fitting)} tables whose first column is called {head}"
    return fitting[0]


def rows(page: str, head: str) -> list[list[str]]:
    """The same rows without the head."""
    return table(page, head)[1:]


def grid(page: str, head: str) -> dict[tuple[str, str], str]:
    """A table of rows × columns, by its names of both; empty cells (–) are left out."""
    (_, *columns), *lines = table(page, head)
    cells = {(name, column): cell for name, *rest in lines for column, cell in zip(columns, rest, strict=True)}
    return {place: cell for place, cell in cells.items() if cell != "–"}


def code(cell: str) -> str:
    """The text between the backticks that a cell is."""
    match = re.fullmatch(r"`([^`]+)`", cell)
    assert match, cell
    return match[1]


def codes(cell: str) -> list[str]:
    """Every text between backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, but for those to other sites."""
    return [target for target in _LINK.findall(_FENCED.sub("", page.read_text())) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of a page ends with, as GitLab and GitHub make it."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def example_keys() -> set[KeyPath]:
    """The paths of all keys of config.example.yaml, those that are commented out included, without list positions."""
    found: set[KeyPath] = set()

    def collect(value: object, path: KeyPath) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                found.add((*path, key))
                collect(child, (*path, key))
        elif isinstance(value, list):
            for child in value:
                collect(child, path)

    collect(yaml.safe_load("\n".join(_uncommented(line) for line in EXAMPLE.read_text().splitlines())), ())
    return found


def _uncommented(line: str) -> str:
    """The line without its `#`, if a key or a list item follows."""
    match = re.fullmatch(r"( *)# ( *(?:- )?[{]?[a-z_]+:(?: .*)?)", line)
    return f"{match[1]}{match[2]}" if match else line
