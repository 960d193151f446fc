"""What the configuration of a service of models must have, so that what is used there can be counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from ravebot.config.checks import check
from ravebot.config.checks.remarks import Remarks
from ravebot.config.model import AgentConfig, ModelConfig
from ravebot.config.values import Tokens
from tests.support.records import make_config

GOOD: dict[str, Any] = {
    "name": "big", "url": "https://api.example.org/below", "key_file": "/secret",
    "paths": ["/v1/messages", "/v1/messages/count_tokens"], "allow": ["claude-*"],
}  # fmt: skip
CODER: dict[str, Any] = {"name": "coder", "owner": "alice", "projects": ["group/*"], "acp": {"command": ["opencode"]}}


def remarks(folder: Path, *models: dict[str, Any], uses: tuple[str, ...] = ("big",)) -> Remarks:
    config = make_config(folder, provider={"network": "bridge"})
    agents = (AgentConfig.model_validate({**CODER, "models": uses}),)
    return check(config.model_copy(update={"models": tuple(map(ModelConfig.model_validate, models)), "agents": agents}))


def about_models(folder: Path, *models: dict[str, Any], uses: tuple[str, ...] = ("big",)) -> list[tuple[str, str]]:
    found = remarks(folder, *models, uses=uses)
    return [
        (".".join(map(str, one.path)), one.message)
        for one in (*found.errors, *found.warnings)
        if one.path[0] in ("models", "agents")
    ]


def test_a_service_that_an_agent_uses_is_fine(tmp_path: Path) -> None:
    other = {**GOOD, "name": "other", "key_file": None, "url": "http://10.0.0.1", "paths": ["/chat/completions"]}
    assert about_models(tmp_path, GOOD, other, uses=("big", "other")) == []


@pytest.mark.parametrize(
    ("facts", "key", "word"),
    [
        ({"paths": ["/v1/embeddings"]}, "models.0.paths.0", "paths that it can count end in one of …/messages, …/me"),
        ({"url": "https://user:x@api.example.org"}, "models.0.url", "leave the user name and password out"),
        ({"url": "https://api.example.org/?key=1"}, "models.0.url", "leave out everything from the '?'"),
        ({"url": "http://api.example.org"}, "models.0.url", "is plain http"),
        ({"key_file": None, "header": "x-api-key"}, "models.0.header", "there is no key to send"),
    ],
)
def test_what_is_wrong_with_a_service_is_said_at_its_key(
    tmp_path: Path, facts: dict[str, Any], key: str, word: str
) -> None:
    ((where, message),) = about_models(tmp_path, {**GOOD, **facts})
    assert where == key
    assert word in message


def test_names_must_be_one_service_s_each_and_be_there(tmp_path: Path) -> None:
    ((where, message),) = about_models(tmp_path, GOOD, GOOD)
    assert (where, message) == ("models", "2 models are called big: give each a name of its own")
    ((where, message),) = about_models(tmp_path, GOOD, uses=("big", "none"))
    assert (where, message) == ("agents.0.models.1", "no model is called none: write the name of one in `models`")
    ((where, message),) = about_models(tmp_path, GOOD, uses=())
    assert where == "models.0"
    assert "no agent may use big" in message


@pytest.mark.parametrize(
    "facts",
    [
        {"name": "Big"},
        {"name": "a/b"},
        {"paths": []},
        {"paths": ["v1/messages"]},
        {"paths": ["/v1/../messages"]},
        {"paths": ["/v1//messages"]},
        {"paths": ["/v1/messages?a=b"]},
        {"allow": []},
        {"allow": ["a b"]},
        {"max_output": 0},
        {"max_request": "1"},
        {"header": "cookie"},
        {"server_tools": "yes"},
    ],
)
def test_values_that_can_t_work_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelConfig.model_validate({**GOOD, **facts})


@pytest.mark.parametrize(
    ("text", "number"), [("200k", 200_000), ("5M", 5_000_000), ("1_000", 1000), (7, 7), ("2 G", 2_000_000_000)]
)
def test_numbers_of_tokens_are_written_as_people_write_them(text: object, number: int) -> None:
    assert TypeAdapter(Tokens).validate_python(text) == number


@pytest.mark.parametrize("text", ["", "many", "-1", 0, "0", "1.5M", True, "9999G"])
def test_what_is_no_number_of_tokens_is_refused(text: object) -> None:
    with pytest.raises(ValidationError, match="write a number"):
        TypeAdapter(Tokens).validate_python(text)


def test_models_are_allowed_by_patterns() -> None:
    model = ModelConfig.model_validate({**GOOD, "allow": ["claude-*", "tiny"]})
    assert [model.allows(name) for name in ("claude-9", "tiny", "tiny2", "Claude-9", "")] == [
        True, True, False, False, False,
    ]  # fmt: skip
