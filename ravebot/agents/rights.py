"""Whether a message may be given to an agent: nobody in its chain may less than that, now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ravebot.agents import registry
from ravebot.agents.model import AGENT, AgentDoor, Conversation, Turn
from ravebot.commands.people import People
from ravebot.commands.permissions import SHELL, Decision, Right
from ravebot.config.model import AgentConfig, Config
from ravebot.config.patterns import matches_project
from ravebot.errors import Forbidden, NotFound
from ravebot.sandboxes.model import Actor, MergeRequest, SandboxId
from ravebot.store import agent_work, api_tokens, conversations, merge_requests, outbox
from ravebot.store.api_tokens import Scope, TokenId
from ravebot.store.database import Database, Transaction

_NOT_MAPPED = Decision(False, "This room is not mapped to that project.", "Ask in a room that is.")
_NO_SUCH_PROJECT = Decision(
    False, "GitLab has no such project any more, or ravebot may not see it.", "Ask a Maintainer to add ravebot to it."
)


def by_configuration(agent: AgentConfig | None, name: str, mr: MergeRequest) -> Decision:
    """Whether an agent may work on a merge request, by the configuration alone."""
    if agent is None:
        return Decision(
            False,
            f"No agent called {name} is configured.",
            "Ask for one that is, or have an admin of ravebot add it to `agents`.",
        )
    if not matches_project(agent.projects, mr.project_path):
        whom = f"Ask another agent, or have an admin of ravebot add the project to agents[].projects of {name}."
        return Decision(False, f"{name} does not serve {mr.project_path}.", whom)
    if mr.from_fork and not agent.forks:
        return Decision(
            False,
            f"{mr.full_ref} comes from a fork, and {name} is off in forks.",
            f"An admin of ravebot can set agents[].forks of {name}.",
        )
    return Decision(True, f"{name} serves {mr.project_path}.")


def chain(agent: str, owner: str, links: Iterable[tuple[bool, Decision]]) -> Decision:
    """The intersection of the rights of all in a chain; each link says whether it is the agent's owner's.

    The first refusal is the whole chain's.
    """
    allowed = Decision(True, "Everybody in the chain may do that.")
    for is_owner, decision in links:
        if not decision.allowed and is_owner:
            rule = f"{agent} may do at most what its owner {owner} may: {decision.rule}"
            return Decision(False, rule, decision.advice)
        if not decision.allowed:
            return decision
    return allowed


async def may_ask(
    people: People,
    config: Config,
    name: str,
    root: Actor,
    mr: MergeRequest,
    *,
    mapped: bool = True,
    direct: bool = False,
) -> Decision:
    """Whether a message that goes back to `root` may be given to that agent, in a place that is `mapped` to the merge
    request's project, or a direct chat. Raises Unavailable while GitLab can't be asked: that is no refusal.
    """
    agent = registry.find(config, name)
    configured = by_configuration(agent, name, mr)
    if agent is None or not configured.allowed:
        return configured
    project_id, project = mr.ref.project_id, mr.project_path
    try:
        asker = await _asker(people, root, mr, mapped=mapped, direct=direct)
        if agent.owner is None:
            return Decision(False, f"{name} has no owner.", "An admin of ravebot sets agents[].owner.")
        owner = await people.may_still(Actor("gitlab", agent.owner), project_id, project)
    except (NotFound, Forbidden):
        return _NO_SUCH_PROJECT
    return chain(name, agent.owner, ((False, asker), (True, owner)))


async def _asker(people: People, root: Actor, mr: MergeRequest, *, mapped: bool, direct: bool) -> Decision:
    if root.kind == "shell":
        return SHELL
    if root.kind == "matrix":
        return await people.from_room(
            Right.COMMAND,
            root.name,
            project_id=mr.ref.project_id,
            mapped=mapped,
            direct=direct,
            project=mr.project_path,
        )
    return await people.may_still(root, mr.ref.project_id, mr.project_path)


@dataclass(frozen=True)
class ChainRights:
    """Looks up again, right before a turn is given, whether it still may be."""

    config: Config
    database: Database
    people: People

    async def still_may(self, conversation: Conversation, turn: Turn) -> Decision:
        """Whether a turn may be given to its agent now. Raises Unavailable while GitLab can't be asked: it waits."""
        found = await self.database.read(lambda tx: self._found(tx, conversation, turn))
        if isinstance(found, Decision):
            return found
        root, mr, mapped, direct = found
        return await may_ask(self.people, self.config, conversation.agent, root, mr, mapped=mapped, direct=direct)

    def _found(
        self, tx: Transaction, conversation: Conversation, turn: Turn
    ) -> tuple[Actor, MergeRequest, bool, bool] | Decision:
        mr = merge_requests.get(tx, conversation.mr) if conversation.mr else None
        if mr is None:
            return Decision(False, "This conversation is about no merge request that is known.", "Ask again, with one.")
        root = conversations.message(tx, turn.message_id).root
        if conversation.door is AgentDoor.API and (ended := _token_problem(tx, conversation, mr)):
            return ended
        if conversation.door is not AgentDoor.MATRIX:
            return root, mr, True, False
        ids = outbox.rooms(tx)
        names = {name for name in self.config.matrix.room_names if conversation.place in (name, ids.get(name))}
        mapped = not names.isdisjoint(self.config.rooms_of(mr.project_path))
        if (names and not mapped) or (not names and conversation.place in ids.values()):  # one that was configured
            return _NOT_MAPPED
        return root, mr, mapped, not names  # ravebot listens in configured rooms and direct chats only


def _token_problem(tx: Transaction, conversation: Conversation, mr: MergeRequest) -> Decision | None:
    """Why the token by which it was said does not allow it any more; None: it does."""
    token = api_tokens.get(tx, TokenId(int(conversation.place)))
    problem = token.problem(tx.now) if token else "is gone"
    if token is None or problem:
        return Decision(False, f"The token by which this was said {problem}.", "Send it again with one that is valid.")
    if not token.has(Scope.MESSAGE) or not matches_project(token.projects, mr.project_path):
        return Decision(
            False, f"The token by which this was said does not reach {mr.project_path}.", "Take another one."
        )
    return None


@dataclass(frozen=True)
class RunRights:
    """Looks up again, right before a command that waited is started in a sandbox, whether it still may be."""

    database: Database
    people: People

    async def why_not(self, sandbox_id: SandboxId, mr: MergeRequest, by: Actor) -> str:
        """Why not; empty: it may be. An agent's command needs a running turn of that agent. Raises Unavailable."""
        if by.kind == AGENT:
            running = await self.database.read(lambda tx: agent_work.running_in(tx, sandbox_id))
            return "" if any(turn.agent == by.name for turn in running) else "the agent's turn has ended"
        try:
            decision = await self.people.may_still(by, mr.ref.project_id, mr.project_path)
        except (NotFound, Forbidden):
            decision = _NO_SUCH_PROJECT
        return "" if decision.allowed else f"{by.name} may not do that any more. {decision.rule}"
