"""Which merge requests a caller reaches, and what it may there now: never more than the token, its owner, the turn.

A token's scope and patterns are looked at first: they say nothing of what exists. Then GitLab is asked for its owner's
role. In a sandbox there is only that sandbox; it is acted on only while an agent's turn runs there, with its rights.
"""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.agents.model import AGENT
from ravebot.agents.rights import ChainRights
from ravebot.commands import refs
from ravebot.commands.permissions import Decision
from ravebot.commands.refs import Ref
from ravebot.config.patterns import matches_project
from ravebot.errors import Forbidden, NotFound
from ravebot.sandboxes.model import Actor, MergeRequest, SandboxId
from ravebot.store import agent_work, conversations, merge_requests, sandboxes
from ravebot.store.database import Transaction
from ravebot.tools.callers import Caller, SandboxCaller, TokenCaller
from ravebot.tools.problems import ProblemKind, ToolProblem
from ravebot.tools.workbench import Workbench

OWN = "."
"""What a caller in a sandbox means where it names no merge request."""
_READS = Decision(True, "It is the sandbox that asks.")
NO_TURN = Decision(
    False,
    "No turn of an agent runs in this sandbox.",
    "Outside one, nothing is done for it: speak to the agent, and have it do this in its turn.",
)


@dataclass(frozen=True)
class Reached:
    """A merge request, in whose name something is done there, and whether that is allowed."""

    mr: MergeRequest
    actor: Actor
    decision: Decision


async def reach(bench: Workbench, caller: Caller, written: str, *, acts: bool = False) -> Reached:
    """The merge request that is meant. Raises ToolProblem where the caller does not reach it, and as GitLab answers.

    For a look, the decision is always a yes; of an act, the caller records a refusal.
    """
    if isinstance(caller, SandboxCaller):
        return await _own(bench, caller, written, acts)
    try:
        ref = refs.read_full(written)
    except ValueError as error:
        raise ToolProblem(ProblemKind.INVALID, str(error)) from error
    must_match(bench, caller, ref)
    try:
        mr = await bench.people.merge_request(ref)
        decision = await bench.people.may_still(caller.actor, mr.ref.project_id, mr.project_path)
        is_member = decision.allowed or await bench.people.level(caller.token.owner, mr.ref.project_id) > 0
    except (NotFound, Forbidden):
        raise _missing(ref) from None
    if not is_member:  # what they can't see on GitLab is not told here
        raise _missing(ref)
    if not matches_project(caller.token.projects, mr.project_path):  # it was moved
        raise _missing(ref)
    if not decision.allowed and not acts:
        raise ToolProblem(ProblemKind.FORBIDDEN, decision.refusal)
    return Reached(mr, caller.actor, decision)


def must_match(bench: Workbench, caller: TokenCaller, ref: Ref) -> None:
    """Raises ToolProblem where the token's patterns, or ravebot's own, do not name the project."""
    if not matches_project(caller.token.projects, ref.project_path):
        reaches = ", ".join(caller.token.projects)
        why = f"This token does not reach {ref.project_path}: it is for {reaches}. Make one with --project for it."
        raise ToolProblem(ProblemKind.FORBIDDEN, why)
    if not bench.config.serves(ref.project_path):
        why = f"ravebot does not serve {ref.project_path}: an admin can add it to gitlab.projects."
        raise ToolProblem(ProblemKind.FORBIDDEN, why)


async def may_see(bench: Workbench, caller: Caller, mr: MergeRequest) -> bool:
    """Whether a caller may look at what is known of a merge request. Raises Unavailable."""
    if isinstance(caller, SandboxCaller):
        sandbox = await bench.database.read(lambda tx: sandboxes.get(tx, caller.sandbox_id))
        return sandbox is not None and sandbox.mr == mr.ref
    if not matches_project(caller.token.projects, mr.project_path) or not bench.config.serves(mr.project_path):
        return False
    try:
        decision = await bench.people.may_still(caller.actor, mr.ref.project_id, mr.project_path)
    except (NotFound, Forbidden):
        return False
    return decision.allowed


async def _own(bench: Workbench, caller: SandboxCaller, written: str, acts: bool) -> Reached:
    mr = await bench.database.read(lambda tx: of_sandbox(tx, caller.sandbox_id))
    if written not in (OWN, mr.full_ref):
        why = f"From this sandbox only its own merge request is reached, {mr.full_ref}: leave `ref` out."
        raise ToolProblem(ProblemKind.FORBIDDEN, why)
    if not acts:
        return Reached(mr, Actor(AGENT, mr.full_ref), _READS)
    running = await bench.database.read(lambda tx: agent_work.running_in(tx, caller.sandbox_id))
    if not running:
        raise ToolProblem(ProblemKind.FORBIDDEN, NO_TURN.refusal)  # not recorded: a guest could fill the log
    newest = running[0]
    found = await bench.database.read(
        lambda tx: (conversations.get(tx, newest.conversation_id), conversations.turn(tx, newest.turn_id))
    )
    conversation, turn = found
    assert conversation
    assert turn
    decision = await ChainRights(bench.config, bench.database, bench.people).still_may(conversation, turn)
    return Reached(mr, Actor(AGENT, newest.agent), decision)


def of_sandbox(tx: Transaction, sandbox_id: SandboxId) -> MergeRequest:
    """The merge request of a sandbox. Raises ToolProblem if it has ended."""
    sandbox = sandboxes.get(tx, sandbox_id)
    mr = merge_requests.get(tx, sandbox.mr) if sandbox else None
    if sandbox is None or mr is None or sandbox.ended_at is not None:
        raise ToolProblem(ProblemKind.NOT_FOUND, "This sandbox has ended: nothing more can be asked from here.")
    return mr


def _missing(ref: Ref) -> ToolProblem:
    return ToolProblem(ProblemKind.NOT_FOUND, refs.missing(ref))
