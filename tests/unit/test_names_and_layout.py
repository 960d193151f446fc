"""A class name stands for one thing, and the top level of the package can be taken in at a glance."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping

from tests.unit.test_imports_point_inwards import ROOT, read_sources

MOST_AT_THE_TOP = 10


def told_twice(sources: Mapping[str, str]) -> list[str]:
    """Class names that more than one class has."""
    trees = map(ast.parse, sources.values())
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return sorted(name for name, count in names.items() if count > 1)


def at_the_top(sources: Iterable[str], package: str = "ravebot") -> list[str]:
    """The package's own modules, less its `__main__`."""
    folders = {name.rpartition(".")[0] for name in sources}
    own = (name for name in sources if name.rpartition(".")[0] == package and name not in folders)
    return sorted(name for name in own if not name.endswith(".__main__"))


def test_a_class_name_stands_for_one_thing() -> None:
    assert told_twice(read_sources(ROOT)) == []


def test_the_top_level_holds_at_most_ten_modules() -> None:
    modules = at_the_top(read_sources(ROOT))
    assert "ravebot.app" in modules
    assert len(modules) <= MOST_AT_THE_TOP, modules


def test_the_check_finds_a_name_that_two_classes_have_also_inside_a_function() -> None:
    source = "def make():\n    class Room: pass\n    return Room"
    assert told_twice({"ravebot.a": source, "ravebot.b": "class Room: pass\nclass Other: pass"}) == ["Room"]


def test_the_check_counts_modules_and_no_folders() -> None:
    assert at_the_top(["ravebot", "ravebot.__main__", "ravebot.app", "ravebot.store", "ravebot.store.inbox"]) == [
        "ravebot.app"
    ]
