"""What the tools for agents that work elsewhere do: take a message, acknowledge it, answer it.

The token names its agent, and must be of that agent's owner; its projects hold here, too.
"""

from __future__ import annotations

from datetime import timedelta

from ravebot.agents import registry
from ravebot.agents.answers import AnswerEnd, AnswerRefusal, AnswerTaken
from ravebot.agents.model import TurnId
from ravebot.sandboxes.model import MergeRequest
from ravebot.store import conversations, deliveries, merge_requests
from ravebot.store.database import Transaction
from ravebot.tools import shapes
from ravebot.tools.callers.contract import Caller, token_of
from ravebot.tools.callers.token import HOW_TO_GET_ONE
from ravebot.tools.problems import ProblemKind, ToolProblem
from ravebot.tools.steps import PreparedAct
from ravebot.tools.workbench import Workbench

_KINDS = {
    AnswerRefusal.UNKNOWN: ProblemKind.NOT_FOUND,
    AnswerRefusal.TOO_LONG: ProblemKind.INVALID,
}  # fmt: skip
_EMPTY = shapes.InboxMessage(id="", message=None, leased_until=None, again=False)


async def take(bench: Workbench, caller: Caller, asked: shapes.TakeMessage) -> PreparedAct | shapes.InboxMessage:
    agent = _agent(bench, caller)

    async def reaches(mr: MergeRequest) -> bool:  # messages of other projects are for the agent's other tokens
        return await caller.may_see(bench, mr)

    found = await bench.answers.next_for(agent, timedelta(seconds=asked.wait), reaches)
    if found is None:
        return _EMPTY
    turn_id = found

    def step(tx: Transaction) -> shapes.InboxMessage:
        taken = bench.answers.take(tx, agent, turn_id)
        if taken is None:  # somebody else was faster
            return _EMPTY
        return shapes.InboxMessage(id=taken.id, message=taken.body, leased_until=taken.leased_until, again=taken.again)

    return PreparedAct(step)


async def ack(bench: Workbench, caller: Caller, asked: shapes.OneDelivery) -> PreparedAct:
    agent = _agent(bench, caller)
    await _must_reach(bench, caller, await bench.database.read(lambda tx: _of_delivery(tx, agent, asked.id)))
    return PreparedAct(lambda tx: _state(bench.answers.ack(tx, agent, asked.id)))


async def answer(bench: Workbench, caller: Caller, asked: shapes.AnswerMessage) -> PreparedAct:
    agent = _agent(bench, caller)
    await _must_reach(bench, caller, await bench.database.read(lambda tx: _of_delivery(tx, agent, asked.id)))
    end = AnswerEnd(asked.end) if asked.end else None
    return PreparedAct(
        lambda tx: _state(bench.answers.answer(tx, agent, asked.id, asked.text, asked.status, end, asked.why))
    )


def _agent(bench: Workbench, caller: Caller) -> str:
    """Whose messages the caller may take. Raises ToolProblem."""
    token = token_of(caller)
    agent = registry.find(bench.config, token.agent)
    if agent is None or agent.owner != token.owner:
        why = f"This token is for the agent {token.agent}, which is not {token.owner}'s any more. {HOW_TO_GET_ONE}"
        raise ToolProblem(ProblemKind.FORBIDDEN, why)
    return agent.name


async def _must_reach(bench: Workbench, caller: Caller, mr: MergeRequest | None) -> None:
    """Raises ToolProblem for a message about a project that the token, or its owner now, does not reach."""
    if mr is not None and not await caller.may_see(bench, mr):
        why = f"The message is about {mr.full_ref}, which this token or its owner does not reach."
        raise ToolProblem(ProblemKind.FORBIDDEN, f"{why} Make one with --project {mr.project_path}.")


def _of_turn(tx: Transaction, turn_id: TurnId) -> MergeRequest | None:
    turn = conversations.turn(tx, turn_id)
    conversation = conversations.get(tx, turn.conversation_id) if turn else None
    return merge_requests.get(tx, conversation.mr) if conversation and conversation.mr else None


def _of_delivery(tx: Transaction, agent: str, delivery_id: str) -> MergeRequest | None:
    """None also for another agent's, which is then said to be unknown."""
    delivery = deliveries.get(tx, delivery_id)
    return _of_turn(tx, delivery.turn_id) if delivery and delivery.agent == agent else None


def _state(taken: AnswerTaken) -> shapes.AnswerState | ToolProblem:
    if taken.refused is not None:
        return ToolProblem(_KINDS.get(taken.refused, ProblemKind.REFUSED), taken.message)
    return shapes.AnswerState(message=taken.message, state=taken.state, said=taken.said)
