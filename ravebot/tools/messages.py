"""What the tools for messages do: say something to an agent, read its answer on, and look at what people are asked."""

from __future__ import annotations

import secrets

from ravebot.agents import registry
from ravebot.agents.desk import Addressed
from ravebot.agents.hearing import piece
from ravebot.agents.limits import person_of
from ravebot.agents.model import (
    AgentDoor,
    Approval,
    ApprovalId,
    ApprovalKind,
    ApprovalState,
    Conversation,
    ConversationId,
    Turn,
    TurnId,
    TurnState,
)
from ravebot.agents.reception import refuse
from ravebot.sandboxes.model import MergeRequest
from ravebot.store import approvals, conversations, merge_requests
from ravebot.store.api_tokens import ApiToken
from ravebot.store.database import Transaction
from ravebot.tools import shapes
from ravebot.tools.callers.contract import Caller, token_of
from ravebot.tools.problems import ProblemKind, ToolProblem
from ravebot.tools.steps import PreparedAct
from ravebot.tools.waiting import LookAgain
from ravebot.tools.workbench import Workbench

_OF_A_SANDBOX = (ApprovalKind.TOOL, ApprovalKind.EXTENSION)
"""What is asked for what runs in it; other questions hold what people said."""


async def send(bench: Workbench, caller: Caller, asked: shapes.SendMessage) -> PreparedAct:
    token = token_of(caller)
    reached = await caller.reach(bench, asked.ref, acts=True)
    decision, mr = reached.decision, reached.mr
    if decision.allowed:
        if registry.find(bench.config, asked.agent) is None:
            known = ", ".join(one.name for one in registry.serving(bench.config, mr.project_path))
            there = f"There are: {known}." if known else "None serves this project."
            raise ToolProblem(ProblemKind.NOT_FOUND, f"No agent of that name can be spoken to. {there}")
        decision = await bench.reception.may(asked.agent, token.actor, mr)
    place = str(token.id)

    def step(tx: Transaction) -> shapes.MessageSent | ToolProblem:
        if not decision.allowed:
            refuse(tx, token.actor, "message_send", mr.full_ref, decision)
            return ToolProblem(ProblemKind.FORBIDDEN, decision.refusal)
        thread = str(secrets.randbits(62))  # a restored backup can't repeat it
        if asked.conversation is not None:
            known = conversations.get(tx, ConversationId(asked.conversation))
            if known is None or (known.door, known.place, known.agent) != (AgentDoor.API, place, asked.agent):
                why = f"This token has no conversation {asked.conversation} with {asked.agent}: leave it out to begin."
                return ToolProblem(ProblemKind.NOT_FOUND, why)
            thread = known.thread
        said = Addressed(
            agent=asked.agent,
            door=AgentDoor.API,
            place=place,
            thread=thread,
            own_thread=True,
            mr=mr.ref,
            key=secrets.token_hex(16),
            author=token.actor,
            text=asked.text.strip(),
        )
        outcome = bench.reception.accept(tx, said, mr)
        turn = conversations.turn(tx, outcome.turn_id) if outcome.turn_id else None
        if not outcome.accepted or turn is None:
            return ToolProblem(ProblemKind.REFUSED, outcome.message)
        return shapes.MessageSent(turn=turn.id, conversation=turn.conversation_id, message=outcome.message)

    return PreparedAct(step, reached)


async def read(bench: Workbench, caller: Caller, asked: shapes.ReadMessage) -> shapes.MessageHeard:
    await _must_be_theirs(bench, caller, TurnId(asked.turn))
    again = LookAgain(asked.wait)
    while True:
        heard = await bench.database.read(lambda tx: _heard(tx, TurnId(asked.turn), asked.offset))
        if heard.text or heard.left_out or heard.over or heard.questions or not await again.wait():
            return heard


async def approval(bench: Workbench, caller: Caller, asked: shapes.OneApproval) -> shapes.QuestionInfo:
    def look(tx: Transaction) -> tuple[Approval | None, MergeRequest | None, bool]:
        found = approvals.get(tx, ApprovalId(asked.id))
        mr = merge_requests.get(tx, found.mr) if found and found.mr else None
        theirs = True
        if found and found.turn_id and caller.token:
            theirs = _is_theirs(bench, tx, caller.token, conversations.turn(tx, found.turn_id))
        return found, mr, theirs

    found, mr, theirs = await bench.database.read(look)
    if caller.token is None and found and found.kind not in _OF_A_SANDBOX:
        theirs = False
    if found is None or mr is None or not theirs or not await caller.may_see(bench, mr):
        raise ToolProblem(ProblemKind.NOT_FOUND, f"There is no approval {asked.id} that you may see.")
    return question(found, mr.full_ref)


async def _must_be_theirs(bench: Workbench, caller: Caller, turn_id: TurnId) -> None:
    """Raises ToolProblem for a turn that does not go back to the token's owner, or is of a project out of its reach."""
    token = token_of(caller)

    def look(tx: Transaction) -> MergeRequest | None:
        turn = conversations.turn(tx, turn_id)
        conversation = conversations.get(tx, turn.conversation_id) if turn else None
        if conversation is None or conversation.mr is None or not _is_theirs(bench, tx, token, turn):
            return None
        return merge_requests.get(tx, conversation.mr)

    mr = await bench.database.read(look)
    if mr is None or not await caller.may_see(bench, mr):
        raise ToolProblem(ProblemKind.NOT_FOUND, f"There is no message of yours with turn {turn_id}.")


def _is_theirs(bench: Workbench, tx: Transaction, token: ApiToken, turn: Turn | None) -> bool:
    return turn is not None and person_of(bench.config, conversations.message(tx, turn.message_id).root) == token.actor


def _heard(tx: Transaction, turn_id: TurnId, offset: int) -> shapes.MessageHeard:
    found = conversations.turn(tx, turn_id)
    assert found
    text, left_out, after = piece(found.answer, found.cut, offset)
    conversation = conversations.get(tx, found.conversation_id)
    asked = (one for one in approvals.of_turn(tx, found.id) if one.state is ApprovalState.OPEN)
    return shapes.MessageHeard(
        turn=found.id,
        state=found.state.value,
        over=found.state.is_over,
        ok=found.state is TurnState.DONE,
        why=found.why,
        status=found.status,
        text=text,
        left_out=left_out,
        offset=after,
        questions=tuple(question(one, _ref(tx, conversation)) for one in asked),
    )


def _ref(tx: Transaction, conversation: Conversation | None) -> str:
    mr = merge_requests.get(tx, conversation.mr) if conversation and conversation.mr else None
    return mr.full_ref if mr else ""


def question(one: Approval, ref: str) -> shapes.QuestionInfo:
    """A question to people, as tools show it."""
    return shapes.QuestionInfo(
        id=one.id,
        kind=one.kind.value,
        state=one.state.value,
        title=one.title,
        payload=one.payload,
        ref=ref,
        asked_by=one.asked_by.name,
        created_at=one.created_at,
        expires_at=one.expires_at,
        decided_by=one.decided_by.name if one.decided_by else "",
        outcome=one.outcome,
    )
