"""What goes on with agents, for `agents`, `budget` and the shell: facts that each door shows in its own words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ravebot.agents.limits import Spent, bounds_of, day_of, person_of, worked
from ravebot.agents.model import AGENT, Conversation, ConversationId, Turn
from ravebot.config.model import AgentConfig, Config
from ravebot.sandboxes.model import Actor
from ravebot.store import agent_figures, conversations, model_uses
from ravebot.store.database import Transaction


@dataclass(frozen=True)
class Pending:
    """What goes on in a conversation. `running`: the turn that the agent has; `waiting`: those behind it."""

    conversation: Conversation
    running: Turn | None
    waiting: tuple[Turn, ...]
    paused_by: str  # who paused the agent everywhere; empty: nobody did


@dataclass(frozen=True)
class AgentAtWork:
    """One agent that can be spoken to: how many turns run and wait, and what it was given today."""

    name: str
    running: int
    waiting: int
    paused_by: str
    spent: Spent


def pending(tx: Transaction, conversation_id: ConversationId) -> Pending | None:
    """What runs and waits in a conversation; None if there is no such conversation."""
    conversation = conversations.get(tx, conversation_id)
    if conversation is None:
        return None
    turns = conversations.open_turns(tx, conversation_id)
    running = given(turns)
    waiting = tuple(turn for turn in turns if turn is not running)
    return Pending(conversation, running, waiting, conversations.paused_agents(tx).get(conversation.agent, ""))


def agents(tx: Transaction, config: Config) -> tuple[AgentAtWork, ...]:
    """Every agent that can be spoken to, by name."""
    paused = conversations.paused_agents(tx)
    running: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    for conversation_id in conversations.with_open_turns(tx):
        found = pending(tx, conversation_id)
        assert found
        running[found.conversation.agent] += found.running is not None
        waiting[found.conversation.agent] += len(found.waiting)
    return tuple(
        AgentAtWork(
            agent.name,
            running[agent.name],
            waiting[agent.name],
            paused.get(agent.name, ""),
            spent_by(tx, agent),
        )
        for agent in sorted(config.agents, key=lambda agent: agent.name)
        if agent.can_be_spoken_to
    )


def spent_by(tx: Transaction, agent: AgentConfig) -> Spent:
    """What an agent was given today, and how long it worked."""
    day = day_of(tx.now)
    turns = [turn for turn in agent_figures.worked_turns(tx, *bounds_of(day)) if turn.agent == agent.name]
    who, limits = Actor(AGENT, agent.name), agent.limits
    seconds, messages = _seconds(tx, day, turns), agent_figures.messages_on(tx, day, who)
    if not agent.models:
        return Spent(day, messages, limits.messages_per_day, seconds)
    tokens = model_uses.tokens_on(tx, day, who)
    return Spent(day, messages, limits.messages_per_day, seconds, tokens, limits.tokens_per_day)


def spent_for(tx: Transaction, config: Config, person: Actor) -> Spent:
    """What a person had given to agents today, and how long those worked on it."""
    day, one = day_of(tx.now), person_of(config, person)
    turns = [turn for turn in agent_figures.worked_turns(tx, *bounds_of(day)) if person_of(config, turn.root) == one]
    budget, seconds, messages = config.budgets.person, _seconds(tx, day, turns), agent_figures.messages_on(tx, day, one)
    if not any(agent.models for agent in config.agents):
        return Spent(day, messages, budget.messages_per_day, seconds)
    tokens = model_uses.tokens_on(tx, day, one)
    return Spent(day, messages, budget.messages_per_day, seconds, tokens, budget.tokens_per_day)


def given(turns: Iterable[Turn]) -> Turn | None:
    """The turn that the agent may have."""
    return next((turn for turn in turns if turn.is_given), None)


def _seconds(tx: Transaction, day: str, turns: Iterable[agent_figures.WorkedTurn]) -> float:
    return sum(worked(turn.given_at, turn.ended_at or tx.now, day).total_seconds() for turn in turns)
