"""Imports point inwards: the domain knows no adapter, adapters do not know each other, and nothing goes in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2] / "ravebot"

PURE = tuple(
    f"ravebot.sandboxes.{name}"
    for name in (
        "model",
        "decide",
        "transitions",
        "naming",
        "results",
        "junit",
        "masking",
        "pipelineimages",
        "view",
        "pool.plan",
    )
)
BASICS = ("ravebot.errors", "ravebot.clock", "ravebot.backoff", "ravebot.sshkeys")
CONTRACTS = ("ravebot.providers.base", "ravebot.access.rules", "ravebot.access.guard")
INNER = (
    *BASICS,
    *CONTRACTS,
    "ravebot.config.model",
    "ravebot.config.patterns",
    "ravebot.config.values",
    "ravebot.config.repository",
    "ravebot.config.modelapis",
    "ravebot.sandboxes",
    "ravebot.store",
)
# Whose modules may import what: the longest matching name counts; a module may always import its own package's name.
ALLOWED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(PURE, (*PURE, *BASICS)),
    "ravebot.sandboxes.pool.plan": (*PURE, *BASICS, "ravebot.providers.base"),
    **dict.fromkeys(
        ("ravebot.sandboxes.environments.model", "ravebot.sandboxes.environments.plan"),
        (*PURE, *BASICS, "ravebot.sandboxes.environments.model"),
    ),
    "ravebot.errors": (),
    "ravebot.clock": (),
    "ravebot.backoff": (),
    "ravebot.sshkeys": (),
    "ravebot.config": ("ravebot.config", "ravebot.errors", "ravebot.sshkeys"),
    "ravebot.config.model": ("ravebot.config.patterns", "ravebot.config.values"),
    "ravebot.config.patterns": (),
    "ravebot.config.values": (),
    "ravebot.config.modelapis": (),
    "ravebot.config.tree": (),
    "ravebot.config.secrets": (),
    "ravebot.logs": ("ravebot.logs",),
    "ravebot.providers.base": ("ravebot.sandboxes.model", "ravebot.errors"),
    "ravebot.access.rules": ("ravebot.sandboxes.model", "ravebot.errors"),
    "ravebot.sandboxes": INNER,
    "ravebot.store": (
        "ravebot.store",
        "ravebot.sandboxes.model",
        "ravebot.sandboxes.environments.model",
        "ravebot.sandboxes.pipelineimages",
        "ravebot.sandboxes.results",
        "ravebot.agents.model",
        *BASICS,
    ),
    "ravebot.providers": (),
    "ravebot.providers.guest": ("ravebot.errors",),
    "ravebot.providers.libvirt": (*INNER, "ravebot.providers.guest", "ravebot.providers.libvirt"),
    "ravebot.providers.memory": (*INNER, "ravebot.providers.guest", "ravebot.providers.memory"),
    "ravebot.access": INNER,
    "ravebot.access.nftables": (*INNER, "ravebot.access.nftables"),
    "ravebot.agents": (*INNER, "ravebot.commands", "ravebot.agents"),
    "ravebot.agents.model": ("ravebot.sandboxes.model",),
    "ravebot.agents.questions": (
        "ravebot.agents.model",
        "ravebot.clock",
        "ravebot.config.model",
        "ravebot.sandboxes.model",
    ),
    "ravebot.agents.ruling": ("ravebot.agents.model", "ravebot.agents.questions", "ravebot.sandboxes.model"),
    "ravebot.agents.diff.model": ("ravebot.sandboxes.model", "ravebot.errors"),
    "ravebot.agents.diff.summary": ("ravebot.agents.diff.model",),
    "ravebot.agents.routing": ("ravebot.agents.model", "ravebot.sandboxes.model", "ravebot.commands.refs"),
    "ravebot.agents.registry": ("ravebot.config.model", "ravebot.config.patterns"),
    "ravebot.commands": (*INNER, "ravebot.commands"),
    "ravebot.commands.refs": (),
    "ravebot.commands.permissions": ("ravebot.sandboxes.model",),
    "ravebot.gitlab": (
        *INNER,
        "ravebot.commands.verbs",
        "ravebot.agents.model",
        "ravebot.agents.diff.model",
        "ravebot.agents.questions",
        "ravebot.agents.wording",
        "ravebot.gitlab",
    ),
    "ravebot.matrix": (
        *INNER,
        "ravebot.commands.verbs",
        "ravebot.commands.refs",
        "ravebot.agents.model",
        "ravebot.agents.questions",
        "ravebot.agents.wording",
        "ravebot.matrix",
    ),
    "ravebot.intake": (
        *INNER,
        "ravebot.intake",
        "ravebot.commands",
        "ravebot.agents",
        "ravebot.gitlab",
        "ravebot.matrix",
    ),
    "ravebot.notify": (*INNER, "ravebot.notify", "ravebot.agents", "ravebot.gitlab", "ravebot.matrix"),
    "ravebot.tools": (*INNER, "ravebot.commands", "ravebot.agents", "ravebot.tools"),
    "ravebot.web": (
        *INNER,
        "ravebot.web",
        "ravebot.agents.model",
        "ravebot.operations.reports",
        "ravebot.operations.agents.reports",
        "ravebot.operations.tokens.reports",
    ),
    "ravebot.web.ci": (
        *INNER,
        "ravebot.gitlab.ci",
        "ravebot.tools.limits",
        "ravebot.tools.waiting",
        "ravebot.web.api.addresses",
        "ravebot.web.api.gate",
        "ravebot.web.ci",
    ),
    "ravebot.web.api": (*INNER, "ravebot.tools", "ravebot.web.api"),
    # Where it all comes together.
    "ravebot.app": ("ravebot",),
    "ravebot.chat": ("ravebot",),
    "ravebot.parts": ("ravebot",),
    "ravebot.operations": ("ravebot",),
    "ravebot.images": ("ravebot",),
    "ravebot.operations.imagechecks": ("ravebot.config.model",),
    "ravebot.operations.hostlock": BASICS,
    **dict.fromkeys(
        (
            "ravebot.operations.reports",
            "ravebot.operations.agents.reports",
            "ravebot.operations.tokens.reports",
        ),
        ("ravebot.sandboxes.model", "ravebot.sandboxes.intents"),
    ),
    "ravebot.terminal": (
        "ravebot.config.file",
        "ravebot.sandboxes.naming",
        "ravebot.sandboxes.view",
        "ravebot.operations.reports",
    ),
    "ravebot.cli": ("ravebot",),
    "ravebot.__main__": ("ravebot.cli",),
    "ravebot": (),
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def read_sources(root: Path) -> dict[str, str]:
    """Every module's text by its full name; a package's `__init__` goes by the package's name."""
    sources = {}
    for file in sorted(root.rglob("*.py")):
        parts = (root.name, *file.relative_to(root).with_suffix("").parts)
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text()
    return sources


def imports_of(name: str, source: str, known: frozenset[str]) -> Iterator[tuple[str, int]]:
    """The modules of ours that one imports anywhere in its text, with the line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*name.split(".")[: -node.level], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in known else base), node.lineno


def graph(sources: Mapping[str, str]) -> dict[str, dict[str, int]]:
    known = frozenset(sources)
    return {
        name: {target: line for target, line in imports_of(name, source, known) if within(target, "ravebot")}
        for name, source in sources.items()
    }


def violations(sources: Mapping[str, str]) -> list[str]:
    found = []
    for name, targets in graph(sources).items():
        owner = max((package for package in ALLOWED if within(name, package)), key=len)
        if owner == "ravebot" and name != "ravebot":
            found.append(f"{name} has no place in this table yet: say what it may import")
        for target, line in targets.items():
            if target in ("ravebot", name) or any(within(target, package) for package in ALLOWED[owner]):
                continue
            found.append(f"{name}:{line} imports {target}")
    return found


def cycle(sources: Mapping[str, str]) -> list[str]:
    """One circle of imports, or nothing."""
    edges = {name: set(targets) & set(sources) - {name} for name, targets in graph(sources).items()}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_imports_only_what_lies_further_in() -> None:
    sources = read_sources(ROOT)
    assert "ravebot.sandboxes.model" in sources
    assert violations(sources) == []


def test_no_imports_go_in_a_circle() -> None:
    assert cycle(read_sources(ROOT)) == []


def test_the_check_finds_a_domain_module_that_imports_an_adapter() -> None:
    assert violations({"ravebot.sandboxes.pool.loop": "\n\nfrom ravebot.providers.libvirt import domain"}) == [
        "ravebot.sandboxes.pool.loop:3 imports ravebot.providers.libvirt"
    ]


def test_the_check_finds_a_pure_module_that_imports_the_store() -> None:
    assert violations({"ravebot.sandboxes.decide": "import ravebot.store.database"}) == [
        "ravebot.sandboxes.decide:1 imports ravebot.store.database"
    ]


def test_the_check_finds_adapters_that_import_each_other_also_inside_a_function() -> None:
    source = "def render():\n    from ravebot.gitlab.client import GitLab\n    return GitLab"
    assert violations({"ravebot.matrix.cards": source}) == ["ravebot.matrix.cards:2 imports ravebot.gitlab.client"]
    assert violations({"ravebot.notify.delivery": source}) == []


def test_the_check_finds_relative_imports() -> None:
    sources = {"ravebot.gitlab.notes": "from ..matrix import cards", "ravebot.matrix.cards": ""}
    assert violations(sources) == ["ravebot.gitlab.notes:1 imports ravebot.matrix.cards"]


def test_the_check_finds_an_adapter_that_imports_the_app() -> None:
    assert violations({"ravebot.web.server": "from ravebot.app import run"}) == [
        "ravebot.web.server:1 imports ravebot.app"
    ]


def test_the_check_finds_a_configuration_that_knows_the_rest() -> None:
    assert violations({"ravebot.config.model": "from ravebot.sandboxes.model import Stage"}) != []


def test_the_check_finds_a_module_nobody_gave_a_place() -> None:
    assert violations({"ravebot.helpers": ""}) == [
        "ravebot.helpers has no place in this table yet: say what it may import"
    ]


def test_the_check_finds_a_circle() -> None:
    sources = {
        "ravebot.store.a": "from ravebot.store import b",
        "ravebot.store.b": "import ravebot.store.c",
        "ravebot.store.c": "from .a import x",
    }
    assert set(cycle(sources)) == set(sources)
    assert cycle({"ravebot.store.a": "from ravebot.store import b", "ravebot.store.b": ""}) == []
