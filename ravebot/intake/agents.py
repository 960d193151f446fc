"""Says what `agents` and `budget` show: who can be spoken to, what goes on, what is asked, and what was used today."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from ravebot.agents import overview, registry
from ravebot.agents.limits import Spent
from ravebot.agents.model import Conversation
from ravebot.agents.overview import AgentAtWork
from ravebot.config.model import Config
from ravebot.config.patterns import matches_project
from ravebot.matrix.text import one_line
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.model import Actor
from ravebot.sandboxes.view import in_words
from ravebot.store import approvals, conversations, merge_requests
from ravebot.store.database import Transaction

_MOST_LINES = 10
NO_AGENTS = "No agent serves the projects of this room: an admin of ravebot adds them to `agents` in its configuration."


@dataclass(frozen=True)
class AgentReports:
    """Each method returns lines of text; the names of agents are configured, all else is made harmless."""

    config: Config

    def agents(self, tx: Transaction, patterns: Iterable[str], places: Iterable[str]) -> str:
        """The agents that serve these projects, and what goes on and is asked in these places: a room's id and names.

        What is said elsewhere is not shown.
        """
        here = frozenset(places)
        serving = {agent.name: agent.owner for agent in registry.serving_any(self.config, patterns)}
        if not serving:
            return NO_AGENTS
        at_work = {one.name: one for one in overview.agents(tx, self.config)}
        lines = [_agent(at_work[name], owner or "") for name, owner in serving.items()]
        lines += _first(self._talks(tx, here), "conversations")
        asked = (one for one in approvals.are_open(tx) if one.place in here)
        lines += _first((f"Approval {one.id} is open: {one_line(one.title, 200)}" for one in asked), "approvals")
        return "\n".join(lines)

    def budget(self, tx: Transaction, who: Actor, patterns: Iterable[str]) -> str:
        """What a person and the agents of these projects used today, and what their sandboxes did over their lives."""
        wanted = tuple(patterns)
        lines = [f"You: {_spent(overview.spent_for(tx, self.config, who))}"]
        serving = registry.serving_any(self.config, wanted)
        lines += [f"`{agent.name}`: {_spent(overview.spent_by(tx, agent))}" for agent in serving]
        lines.append("It is counted anew from 00:00 UTC.")
        return "\n".join([*lines, *_first(self._in_sandboxes(tx, wanted), "sandboxes")])

    def _in_sandboxes(self, tx: Transaction, patterns: tuple[str, ...]) -> Iterator[str]:
        """Those in which most was used first."""
        most = self.config.budgets.sandbox.tokens
        views = (one for one in Views(self.config).live(tx) if matches_project(patterns, one.mr.project_path))
        for view in sorted(views, key=lambda one: -one.model_tokens):
            if view.model_tokens:
                used = f"{view.model_tokens:,} of {most:,} tokens of models"
                yield f"Sandbox of {view.mr.full_ref}: {used}, over its life"

    def _talks(self, tx: Transaction, here: frozenset[str]) -> Iterator[str]:
        for conversation_id in conversations.with_open_turns(tx):
            pending = overview.pending(tx, conversation_id)
            if pending is None or pending.conversation.place not in here:
                continue
            parts = [pending.running.state.value] if pending.running else []
            if pending.waiting:
                parts.append(f"{len(pending.waiting)} waiting")
            if pending.conversation.paused:
                parts.append(f"paused: {pending.conversation.paused}")
            yield f"`{pending.conversation.agent}`{_about(tx, pending.conversation)}: {', '.join(parts)}"


def _agent(agent: AgentAtWork, owner: str) -> str:
    parts = [f"`{agent.name}` of {one_line(owner, 60)}"]
    if agent.paused_by:
        parts.append(f"paused by {one_line(agent.paused_by, 100)}")
    parts.append(f"{agent.running} at work, {agent.waiting} waiting" if agent.running or agent.waiting else "free")
    return ", ".join(parts)


def _about(tx: Transaction, conversation: Conversation) -> str:
    mr = merge_requests.get(tx, conversation.mr) if conversation.mr else None
    return f" in {mr.full_ref}" if mr else ""


def _spent(spent: Spent) -> str:
    seconds = f", at work for {in_words(timedelta(seconds=round(spent.seconds)))}" if spent.seconds >= 1 else ""
    tokens = f", {spent.tokens:,} of {spent.most_tokens:,} tokens of models" if spent.most_tokens else ""
    return f"{spent.messages:,} of {spent.most:,} messages today{seconds}{tokens}"


def _first(lines: Iterable[str], what: str) -> list[str]:
    listed = list(lines)
    more = [f"and {len(listed) - _MOST_LINES} more {what}"] if len(listed) > _MOST_LINES else []
    return listed[:_MOST_LINES] + more
