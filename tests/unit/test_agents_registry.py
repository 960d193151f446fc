"""Which agents serve which projects, and what a configuration of agents must say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents import registry
from ravebot.config.checks import check
from ravebot.config.model import AgentConfig, Config
from ravebot.config.patterns import matches_project, patterns_overlap
from tests.support.records import ROOM, make_config

ACP = {"command": ["coder"]}


def agent(name: str, *projects: str, **more: Any) -> AgentConfig:
    return AgentConfig.model_validate({"name": name, "owner": "alice", "projects": projects, "acp": ACP} | more)


def config(*agents: AgentConfig, room: str | None = None) -> Config:
    made = make_config(Path("/nowhere"), provider={"network": "bridge"})
    rooms = tuple(one.model_copy(update={"agent": room}) for one in made.matrix.rooms)
    matrix = made.matrix.model_copy(update={"rooms": rooms})
    return made.model_copy(update={"agents": agents, "matrix": matrix})


def complaints(found: Config) -> dict[str, str]:
    return {".".join(map(str, one.path)): one.message for one in check(found).errors}


def test_agents_are_found_by_their_exact_name_if_they_can_be_spoken_to() -> None:
    made = config(agent("coder", "group/*"), AgentConfig(name="keys"))
    assert registry.names(made) == {"coder"}
    assert registry.find(made, "coder") is made.agents[0]
    assert registry.find(made, "Coder") is None
    assert registry.find(made, "keys") is None


def test_those_that_serve_a_project_or_a_room_are_listed_by_name() -> None:
    made = config(agent("zed", "group/*"), agent("all", "*"), agent("other", "tools/x"), AgentConfig(name="keys"))
    assert [one.name for one in registry.serving(made, "group/app")] == ["all", "zed"]
    assert [one.name for one in registry.serving(made, "tools/x")] == ["all", "other"]
    assert [one.name for one in registry.serving_any(made, ["group/app", "none/*"])] == ["all", "zed"]
    assert registry.serving_any(made, []) == ()


def test_a_room_s_own_agent_is_found_by_the_room_s_name() -> None:
    made = config(agent("coder", "group/*"), room="coder")
    assert registry.default_of(made, [ROOM]) == "coder"
    assert registry.default_of(made, ["#other:example.org"]) == ""
    assert registry.default_of(config(), [ROOM]) == ""


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("group/*", "group/app", True), ("group/*", "*", True), ("group/*", "*/app", True), ("a*c", "ab*", True),
        ("group/app", "group/app", True), ("a/*/c", "a/b/*", True), ("*", "*", True), ("**", "x", True),
        ("group/*", "groups/app", False), ("group/app", "group/apple", False), ("*/app", "*/tool", False),
        ("a*", "b*", False), ("a*b", "ab", True), ("a*b", "a", False),
    ],
)  # fmt: skip
def test_two_patterns_overlap_if_some_project_matches_both(one: str, other: str, overlap: bool) -> None:
    assert patterns_overlap((one,), (other,)) == overlap
    assert patterns_overlap((other,), (one,)) == overlap


shapes = st.text(alphabet="ab/*", min_size=1, max_size=7)


@given(one=shapes, other=shapes, path=st.text(alphabet="ab/", max_size=8))
def test_a_project_that_matches_both_patterns_is_never_missed(one: str, other: str, path: str) -> None:
    if matches_project((one,), path) and matches_project((other,), path):
        assert patterns_overlap((one,), (other,))


@given(one=shapes, path=st.text(alphabet="ab/", min_size=1, max_size=8))
def test_a_pattern_without_a_star_overlaps_what_it_matches_and_nothing_else(one: str, path: str) -> None:
    assert patterns_overlap((one,), (path,)) == matches_project((one,), path)


@pytest.mark.parametrize(
    ("found", "key", "words"),
    [
        (agent("9coder", "group/*"), "agents.0.name", "small letters"),
        (agent("co_der", "group/*"), "agents.0.name", "small letters"),
        (agent("c", "group/*"), "agents.0.name", "2 to 31"),
        (agent("approve", "group/*"), "agents.0.name", "take another name"),
        (agent("room", "group/*"), "agents.0.name", "take another name"),
        (agent("coder", "group/*", owner=None), "agents.0.owner", "give the GitLab user"),
        (agent("coder", "group/*", owner="@alice"), "agents.0.owner", "without the @"),
        (agent("coder"), "agents.0.projects", "list the projects"),
    ],
)
def test_an_agent_to_speak_to_has_a_name_to_write_an_owner_and_projects(
    found: AgentConfig, key: str, words: str
) -> None:
    assert words in complaints(config(found))[key]


def test_an_agent_with_only_keys_may_be_called_anything_and_needs_no_owner() -> None:
    assert complaints(config(AgentConfig(name="9_x"), agent("coder", "group/*"))) == {}


@pytest.mark.parametrize(
    ("agents", "words"),
    [
        ((), "no agent to speak to is called coder"),
        ((AgentConfig(name="coder"),), "no agent to speak to is called coder"),
        ((agent("coder", "tools/*"),), "serves none of this room's projects"),
        ((agent("coder", "*/app"),), ""),
    ],
)
def test_a_room_s_own_agent_is_one_that_serves_it(agents: tuple[AgentConfig, ...], words: str) -> None:
    found = complaints(config(*agents, room="coder")).get("matrix.rooms.0.agent", "")
    assert words in found
    assert bool(words) == bool(found)


def test_a_project_of_an_agent_that_gets_no_sandboxes_is_warned_of() -> None:
    found = check(config(agent("coder", "group/*", "tools/*"))).warnings
    assert [one.message for one in found if one.path == ("agents", 0, "projects", 1)] == [
        "tools/* is not among gitlab.projects"
    ]


def test_an_agent_that_does_nothing_is_warned_of() -> None:
    idle = AgentConfig(name="coder", owner="alice", projects=("group/*",))
    found = check(
        config(idle, AgentConfig(name="keys", ssh_keys=("ssh-ed25519 AAAA keys",)), agent("other", "group/*"))
    ).warnings
    assert [one.path for one in found if "does nothing" in one.message] == [("agents", 0)]
