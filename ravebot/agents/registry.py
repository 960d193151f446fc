"""Which of the configured agents can be spoken to, and which projects they serve. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ravebot.config.model import AgentConfig, Config
from ravebot.config.patterns import patterns_overlap


def names(config: Config) -> frozenset[str]:
    """The names of all agents that can be spoken to."""
    return frozenset(agent.name for agent in config.agents if agent.can_be_spoken_to)


def find(config: Config, name: str) -> AgentConfig | None:
    """The agent of exactly that name, if it can be spoken to."""
    return next((agent for agent in config.agents if agent.name == name and agent.can_be_spoken_to), None)


def serving(config: Config, project_path: str) -> tuple[AgentConfig, ...]:
    """The agents that serve a project, by name."""
    return _sorted(agent for agent in config.agents if agent.can_be_spoken_to and agent.serves(project_path))


def serving_any(config: Config, patterns: Iterable[str]) -> tuple[AgentConfig, ...]:
    """The agents that serve a project which one of these patterns matches, by name."""
    wanted = tuple(patterns)
    return _sorted(
        agent for agent in config.agents if agent.can_be_spoken_to and patterns_overlap(agent.projects, wanted)
    )


def default_of(config: Config, rooms: Iterable[str]) -> str:
    """The agent of a room, by the room's configured names; empty if it has none."""
    here = set(rooms)
    return next((room.agent for room in config.matrix.rooms if room.agent and room.room in here), "")


def _sorted(agents: Iterable[AgentConfig]) -> tuple[AgentConfig, ...]:
    return tuple(sorted(agents, key=lambda agent: agent.name))
