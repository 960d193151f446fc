"""A budget of tokens is used up to its last one, and the request that exceeds it is told which it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from ravebot.agents.models.budget import over_budget
from ravebot.config.model import AgentConfig, Budgets, PersonBudget, SandboxBudget
from ravebot.store.model_uses import TokensUsed
from tests.support.records import make_config

CODER = AgentConfig.model_validate({"name": "coder", "limits": {"tokens_per_day": 100}})


@pytest.mark.parametrize(
    ("used", "why"),
    [
        (TokensUsed(90, 0, 0), "budgets.sandbox.tokens"),
        (TokensUsed(0, 90, 0), "agents[].limits.tokens_per_day"),
        (TokensUsed(0, 0, 90), "budgets.person.tokens_per_day"),
    ],
)
def test_the_last_token_of_each_budget_can_be_reserved_and_no_more(tmp_path: Path, used: TokensUsed, why: str) -> None:
    budgets = Budgets(person=PersonBudget(tokens_per_day=100), sandbox=SandboxBudget(tokens=100))
    config = make_config(tmp_path, budgets=budgets)
    assert over_budget(config, CODER, used, 10) == ""
    assert why in over_budget(config, CODER, used, 11)
