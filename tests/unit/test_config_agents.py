"""What the configuration of an agent must have, so that it can be spoken to and does no more than its owner may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ravebot.commands.verbs import VERBS
from ravebot.config.checks import RESERVED_NAMES, check
from ravebot.config.model import AgentConfig
from ravebot.gitlab.addressing import RESERVED
from tests.support.records import make_config

GOOD: dict[str, Any] = {"name": "coder", "owner": "alice", "projects": ["group/*"], "acp": {"command": ["opencode"]}}


def complaints(folder: Path, *agents: dict[str, Any]) -> list[tuple[str, str]]:
    """The key and the message of every error about agents, where machines have a network."""
    config = make_config(folder, provider={"network": "bridge"})
    config = config.model_copy(update={"agents": tuple(map(AgentConfig.model_validate, agents))})
    return [
        (".".join(map(str, error.path)), error.message) for error in check(config).errors if error.path[0] == "agents"
    ]


def test_an_agent_with_owner_projects_and_a_name_is_fine(tmp_path: Path) -> None:
    more = {"approve": ["edit"], "limits": {"turn": "5m"}, "forks": True}
    assert complaints(tmp_path, {**GOOD, **more}, {"name": "keys_only", "ssh_keys": []}) == []


@pytest.mark.parametrize(
    ("facts", "key", "word"),
    [
        ({"owner": None}, "agents.0.owner", "whose agent it is"),
        ({"owner": ""}, "agents.0.owner", "whose agent it is"),
        ({"projects": []}, "agents.0.projects", "list the projects"),
        ({"name": "my_coder"}, "agents.0.name", "small letters, digits and hyphens"),
        ({"name": "2fast"}, "agents.0.name", "the first of them a letter"),
        ({"name": "c"}, "agents.0.name", "take 2 to 31"),
        *(({"name": name}, "agents.0.name", "take another name") for name in sorted(RESERVED_NAMES)),
        ({"acp": None, "approve": ["edit"]}, "agents.0.approve", "add `acp`, or remove it"),
        ({"acp": None, "limits": {"turn": "5m"}}, "agents.0.limits", "add `acp`, or remove it"),
        ({"acp": None, "forks": True}, "agents.0.forks", "add `acp`, or remove it"),
    ],
)
def test_what_is_wrong_with_an_agent_is_said_at_its_key(
    tmp_path: Path, facts: dict[str, Any], key: str, word: str
) -> None:
    ((where, message),) = complaints(tmp_path, {**GOOD, **facts})
    assert where == key
    assert word in message


def test_two_agents_of_one_name_are_refused(tmp_path: Path) -> None:
    ((where, message),) = complaints(tmp_path, GOOD, {**GOOD, "projects": ["other/*"]})
    assert (where, message) == ("agents", "2 agents are called coder: give each a name of its own")


def test_no_agent_is_called_like_a_command() -> None:
    assert RESERVED | {verb.name for verb in VERBS} <= RESERVED_NAMES
