"""What an asker may have an agent do: never more than both of them may, in a project that the agent serves."""

from __future__ import annotations

from ravebot.commands.people import People
from ravebot.commands.permissions import Decision, Right
from ravebot.config.model import AgentConfig
from ravebot.sandboxes.model import MergeRequest


async def may_ask(people: People, agent: AgentConfig, mr: MergeRequest, asker: Decision) -> Decision:
    """Whether an agent may be asked about a merge request; `asker`: the decision on the asker's own right on it.

    Raises as GitLab answers.
    """
    if not asker.allowed:
        return asker
    if not agent.serves(mr.project_path):
        whom = "Ask an admin of ravebot to add the project to the agent's."
        return Decision(False, f"{agent.name} does not serve {mr.project_path}.", whom)
    if mr.from_fork and not agent.forks:
        whom = "An admin of ravebot may allow it, with `forks` of that agent."
        return Decision(False, f"{mr.full_ref} comes from a fork, and {agent.name} does not work on forks.", whom)
    owner = await people.of_user(Right.COMMAND, mr.ref.project_id, mr.project_path, agent.owner or "")
    if not owner.allowed:
        return Decision(False, f"{agent.name} may do no more than its owner: {owner.rule}", owner.advice)
    return asker
