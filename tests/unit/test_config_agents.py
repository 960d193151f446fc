"""What the configuration of an agent must have, so that it can be spoken to and does no more than its owner may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ravebot.commands.verbs import VERBS
from ravebot.config.checks import check
from ravebot.config.checks.agents import RESERVED_NAMES
from ravebot.config.model import AgentConfig, ApiConfig
from ravebot.gitlab.addressing import RESERVED
from tests.support.records import make_config

API = ApiConfig(listen="127.0.0.1:8081")
GOOD: dict[str, Any] = {"name": "coder", "owner": "alice", "projects": ["group/*"], "acp": {"command": ["opencode"]}}


def complaints(folder: Path, *agents: dict[str, Any]) -> list[tuple[str, str]]:
    """The key and the message of every error about agents, where machines have a network."""
    config = make_config(folder, provider={"network": "bridge"})
    config = config.model_copy(update={"agents": tuple(map(AgentConfig.model_validate, agents)), "api": API})
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
        ({"acp": None, "approve": ["edit"]}, "agents.0.approve", "add `acp`, `webhook` or `inbox`"),
        ({"acp": None, "limits": {"turn": "5m"}}, "agents.0.limits", "add `acp`, `webhook` or `inbox`"),
        ({"acp": None, "forks": True}, "agents.0.forks", "add `acp`, `webhook` or `inbox`"),
    ],
)
def test_what_is_wrong_with_an_agent_is_said_at_its_key(
    tmp_path: Path, facts: dict[str, Any], key: str, word: str
) -> None:
    ((where, message),) = complaints(tmp_path, {**GOOD, **facts})
    assert where == key
    assert word in message


WEBHOOK: dict[str, Any] = {"url": "https://reviewer.example.net/hook", "signing_key_file": "/key"}


@pytest.mark.parametrize(
    ("facts", "key", "word"),
    [
        ({"webhook": WEBHOOK, "inbox": True}, "agents.0", "has `webhook` and `inbox`"),
        ({"acp": {"command": ["opencode"]}, "inbox": True}, "agents.0", "keep one of them"),
        ({"inbox": True, "approve": ["edit"]}, "agents.0.approve", "only an agent with `acp`"),
        ({"inbox": True, "owner": None}, "agents.0.owner", "whose agent it is"),
        ({"webhook": WEBHOOK, "projects": []}, "agents.0.projects", "list the projects"),
        *(
            ({"webhook": {**WEBHOOK, "url": url}}, "agents.0.webhook.url", word)
            for url, word in {
                "https://bob:secret@reviewer.example.net/": "leave the user name and password out",
                "http://reviewer.example.net/hook": "use https",
                "http://8.8.8.8/hook": "use https",
                "http://0.0.0.0/hook": "use https",
                "https://reviewer.example.net/hook#part": "leave out everything from the '#' on",
            }.items()
        ),
    ],
)
def test_what_is_wrong_with_an_agent_that_works_elsewhere_is_said_at_its_key(
    tmp_path: Path, facts: dict[str, Any], key: str, word: str
) -> None:
    agent = {**GOOD, "acp": None, **facts}
    ((where, message),) = complaints(tmp_path, agent)
    assert where == key
    assert word in message


@pytest.mark.parametrize(
    "url",
    [
        "https://reviewer.example.net/hook?of=ravebot", "http://127.0.0.1:8000/", "http://localhost:8000/",
        "http://[::1]:8000/", "http://10.0.5.7/hook", "http://192.168.1.2:1/",
    ],
)  # fmt: skip
def test_a_webhook_goes_encrypted_or_stays_near(tmp_path: Path, url: str) -> None:
    assert complaints(tmp_path, {**GOOD, "acp": None, "webhook": {**WEBHOOK, "url": url}}) == []


@pytest.mark.parametrize("url", ["ftp://reviewer.example.net/", "file:///etc/passwd", "reviewer.example.net"])
def test_a_webhook_is_spoken_to_by_http(url: str) -> None:
    with pytest.raises(ValidationError):
        AgentConfig.model_validate({**GOOD, "acp": None, "webhook": {**WEBHOOK, "url": url}})


def test_agents_that_work_elsewhere_need_no_network_of_sandboxes(tmp_path: Path) -> None:
    config = make_config(tmp_path, provider={"network": "none"})
    agent = AgentConfig.model_validate({**GOOD, "acp": None, "inbox": True})
    errors = check(config.model_copy(update={"agents": (agent,), "api": API})).errors
    assert [error for error in errors if error.path[0] == "agents"] == []


def test_agents_that_work_elsewhere_need_the_api(tmp_path: Path) -> None:
    agent = AgentConfig.model_validate({**GOOD, "acp": None, "inbox": True})
    config = make_config(tmp_path).model_copy(update={"agents": (agent,)})
    [message] = [error.message for error in check(config).errors if error.path[0] == "agents"]
    assert message == "coder answers by the API, which is off: set api.listen"


def test_two_agents_of_one_name_are_refused(tmp_path: Path) -> None:
    ((where, message),) = complaints(tmp_path, GOOD, {**GOOD, "projects": ["other/*"]})
    assert (where, message) == ("agents", "2 agents are called coder: give each a name of its own")


def test_no_agent_is_called_like_a_command() -> None:
    assert RESERVED | {verb.name for verb in VERBS} <= RESERVED_NAMES
