"""The tables are the whole behaviour: no cell is dead, one match carries it out, and no state changes past it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product

import pytest

from ravebot.sandboxes.decide import (
    MACHINES,
    SANDBOXES,
    Do,
    Happened,
    Then,
    decide_sandbox,
)
from ravebot.sandboxes.model import MachineState, SandboxState, Stage
from tests.support.records import a_machine, a_sandbox
from tests.unit.test_imports_point_inwards import ROOT, read_sources

LIVES = ("ravebot.sandboxes.lifecycle", "ravebot.sandboxes.machine_life", "ravebot.sandboxes.transitions")
WARM_ONLY = {Do.REFILL, Do.STOP, Do.RESUME}
BOOKS = {
    "ravebot.sandboxes.chain.stages": {"web_scheme"},
    "ravebot.sandboxes.pool.health": {"web_scheme", "notice"},
    "ravebot.sandboxes.pool.moments": {
        "created_at", "expires_at", "not_before", "ready_at", "stage_started_at", "state_since", "warned",
    },
}  # fmt: skip
"""What other modules change of a sandbox's or a machine's row."""


@cache
def trees() -> Mapping[str, ast.Module]:
    return {name: ast.parse(text) for name, text in read_sources(ROOT).items()}


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of `name(…)` or `….name(…)`, with its module."""
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
                yield module, node


def members(node: ast.AST, enum: str) -> set[str]:
    """The members of an enum that are named in there."""
    found = ast.walk(node)
    return {one.attr for one in found if isinstance(one, ast.Attribute) and ast.unparse(one.value) == enum}


def cases(module: str, enum: str) -> list[str]:
    """The members that the matches of a module name in their patterns, each as often as it is named."""
    matches = [node for node in ast.walk(trees()[module]) if isinstance(node, ast.Match)]
    patterns = [ast.walk(case.pattern) for match in matches for case in match.cases]
    values = [node.value for pattern in patterns for node in pattern if isinstance(node, ast.MatchValue)]
    return sorted(member for value in values for member in members(value, enum))


def test_whatever_the_tables_answer_is_carried_out_in_one_match() -> None:
    assert cases("ravebot.sandboxes.lifecycle", "Then") == sorted(Then.__members__)
    assert cases("ravebot.sandboxes.pool.actions", "Do") == sorted(Do.__members__)
    for module in ("ravebot.sandboxes.lifecycle", "ravebot.sandboxes.pool.actions"):
        assert module in {where for where, _ in calls("assert_never")}


def test_only_the_lifecycle_asks_the_sandboxes_table() -> None:
    assert {module for module, _ in calls("decide_sandbox")} == {
        "ravebot.sandboxes.decide", "ravebot.sandboxes.lifecycle",
    }  # fmt: skip
    assert {module for module, _ in calls("decide_machine")} == {"ravebot.sandboxes.pool.loop"}


def test_every_answer_of_the_sandboxes_table_is_given_by_a_cell() -> None:
    assert set(SANDBOXES.values()) == set(Then) - {Then.NOTHING}


def test_every_answer_of_the_machines_table_is_given_by_a_cell_and_only_the_warm_row_waits() -> None:
    without_warm = {do for (state, _), do in MACHINES.items() if state is not MachineState.WARM}
    assert set(MACHINES.values()) == set(Do) - {Do.NOTHING}
    assert set(MACHINES.values()) - without_warm == WARM_ONLY


def test_no_fact_turns_a_cell_into_what_no_cell_says() -> None:
    for state, happened, stage, attempt in product(SandboxState, Happened, [None, *Stage], [1, 9]):
        sandbox = a_sandbox(state=state, stage=stage, attempt=attempt)
        for unbuilt in (None, a_machine(), a_machine(restarts=1)):
            then = decide_sandbox(sandbox, happened, unbuilt)
            assert (then is Then.NOTHING) or (state, happened) in SANDBOXES


@pytest.mark.parametrize("happened", Happened)
def test_every_event_of_the_sandboxes_table_is_said_by_somebody(happened: Happened) -> None:
    assert [module for module, tree in trees().items() if happened.name in members(tree, "Happened")]


def test_no_warm_machine_is_made_yet() -> None:
    made = {module for module, tree in trees().items() if "WARM" in members(tree, "MachineState")}
    assert made == set()


def test_a_state_is_replaced_in_the_lives_modules_only() -> None:
    changed = {module for module, call in calls("replace") if "state" in {one.arg for one in call.keywords}}
    others = {
        module for module in changed if module.startswith(("ravebot.agents.", "ravebot.store.agent_"))
    }  # the states of turns
    others |= {"ravebot.sandboxes.runs", "ravebot.operations.readiness"}  # those of runs, and of a part of ours
    in_gitlab = ("ravebot.notify.environments.", "ravebot.sandboxes.environments.")
    others |= {module for module in changed if module.startswith(in_gitlab)}  # those of environments
    others |= {"ravebot.sandboxes.pipelineimages", "ravebot.store.pipeline_images"}  # those of images from pipelines
    assert changed - others == set(LIVES)


def test_rows_of_sandboxes_and_machines_are_written_by_the_lives_modules_but_for_named_columns() -> None:
    writers: dict[str, set[str]] = {}
    for name in ("save", "insert"):
        for module, call in calls(name):
            if ast.unparse(call.func).split(".")[0] in ("sandboxes", "machines"):
                writers.setdefault(module, set())
    for module in writers:
        replaced = [call for where, call in calls("replace") if where == module]
        writers[module] = {one.arg for call in replaced for one in call.keywords if one.arg}
    assert {module: columns for module, columns in writers.items() if module not in LIVES} == BOOKS
