"""Whether a request to a model may be sent: for which turn it counts, and whether the budgets have room. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ravebot.agents import registry
from ravebot.agents.models.refusals import forbidden
from ravebot.config.model import AgentConfig, Config
from ravebot.store.agent_work import TurnUnderWay
from ravebot.store.model_uses import TokensUsed


def turn_for(config: Config, running: Sequence[TurnUnderWay], model: str) -> tuple[TurnUnderWay, AgentConfig]:
    """The turn that a request to that model is of; `running` has the one that was given last first.

    Raises ModelRefusal.
    """
    if not running:
        raise forbidden(
            "no message of a person is being worked on in this sandbox, and models are there only for that."
            " Ask the agent something, in the room or on the merge request."
        )
    for turn in running:
        agent = registry.find(config, turn.agent)
        if agent is not None and model in agent.models:
            return turn, agent
    names = ", ".join(dict.fromkeys(turn.agent for turn in running))
    raise forbidden(f"{names} may not use {model}. An admin of ravebot can add it to agents[].models.")


def over_budget(config: Config, agent: AgentConfig, used: TokensUsed, reserve: int) -> str:
    """Why a request that may cost so many tokens is not sent, in words for the agent's user; empty: it is."""
    new_day = "From 00:00 UTC on there are new ones."
    sandbox, day, person = (
        config.budgets.sandbox.tokens,
        agent.limits.tokens_per_day,
        config.budgets.person.tokens_per_day,
    )
    budgets = (
        (used.sandbox, sandbox, "This sandbox", "budgets.sandbox.tokens", "A new sandbox has new ones."),
        (used.agent, day, f"{agent.name} today", "agents[].limits.tokens_per_day", new_day),
        (used.person, person, "The person who asked today", "budgets.person.tokens_per_day", new_day),
    )
    for so_far, most, who, key, mend in budgets:
        if so_far + reserve > most:
            return (
                f"{who} has used {so_far:,} of {most:,} tokens of models ({key}), and the next request may need"
                f" {reserve:,} more. {mend} An admin of ravebot can set a larger budget."
            )
    return ""
