"""What an agent does with a turn, step by step, as its transport reports it.

Each method runs inside the transaction that also stores how much of the agent's output was handled, and does nothing
to a turn that is over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from ravebot.agents.desk import Desk
from ravebot.agents.ending import end_turn, log_turn
from ravebot.agents.model import (
    AGENT,
    LONGEST_ANSWER,
    LONGEST_STATUS,
    Approval,
    ApprovalKind,
    ProcessId,
    Turn,
    TurnId,
    TurnState,
)
from ravebot.agents.questions import hash_of
from ravebot.agents.relay import pass_on
from ravebot.agents.telling import ConversationTelling
from ravebot.sandboxes.model import Actor
from ravebot.store import approvals, conversations, sandboxes
from ravebot.store.database import Transaction

ANSWER_WITHIN = timedelta(minutes=30)
"""How long a question to a person stays open; no answer in time is a no."""


@dataclass(frozen=True)
class TurnProgress:
    """Records a turn's progress, and queues what doors show of it."""

    telling: ConversationTelling

    def given(self, tx: Transaction, turn_id: TurnId, process_id: ProcessId, limit: timedelta) -> bool:
        """The prompt is about to be written to that process: from now on the agent may have it. False: it is over, or
        was given to another process."""
        turn = _running(tx, turn_id)
        if turn is None or turn.process_id not in (None, process_id):
            return False
        if turn.process_id is None:
            process = conversations.process(tx, process_id)
            sandbox = sandboxes.get(tx, process.sandbox_id) if process else None
            sha = (sandbox.running_sha if sandbox else None) or ""
            given = replace(turn, process_id=process_id, given_at=tx.now, deadline=tx.now + limit, sha=sha)
            conversations.save_turn(tx, given)
        return True

    def given_elsewhere(self, tx: Transaction, turn_id: TurnId) -> bool:
        """The message is about to be given to an agent that works elsewhere. False: it is over, or was given before."""
        turn = _running(tx, turn_id)
        if turn is None or turn.is_given:
            return False
        conversations.save_turn(tx, replace(turn, given_at=tx.now, tries=0, next_try_at=None))
        return True

    def accepted(self, tx: Transaction, turn_id: TurnId, state: TurnState, limit: timedelta) -> None:
        """An agent that works elsewhere has it: from now on its time runs."""
        turn = _running(tx, turn_id)
        if turn is None or turn.state is state:
            return
        if turn.deadline is None:
            turn = replace(turn, given_at=tx.now, deadline=tx.now + limit)
        self._save(tx, replace(turn, state=state))

    def delivered(self, tx: Transaction, turn_id: TurnId) -> None:
        """The agent's queue has the prompt."""
        turn = _running(tx, turn_id)
        if turn is not None and turn.state is TurnState.QUEUED:
            self._save(tx, replace(turn, state=TurnState.DELIVERED))
            log_turn(tx, "agent has a message", turn, process=turn.process_id)

    def words(self, tx: Transaction, turn_id: TurnId, text: str) -> None:
        """The agent said something more."""
        turn = _running(tx, turn_id)
        if turn is None:
            return
        whole = turn.answer + text
        cut = max(0, len(whole) - LONGEST_ANSWER)
        half = LONGEST_ANSWER // 2
        kept = whole[:half] + whole[half + cut :] if cut else whole
        self._save(tx, replace(turn, state=_working(turn), answer=kept, cut=turn.cut + cut))

    def status(self, tx: Transaction, turn_id: TurnId, title: str) -> None:
        """What the agent is doing now."""
        turn = _running(tx, turn_id)
        if turn is not None:
            self._save(tx, replace(turn, state=_working(turn), status=title[:LONGEST_STATUS]))

    def asks(self, tx: Transaction, turn_id: TurnId, title: str, payload: str) -> Approval | None:
        """The agent wants to do something that a person must allow; `payload` is the whole of it, as JSON."""
        turn = _running(tx, turn_id)
        conversation = conversations.get(tx, turn.conversation_id) if turn else None
        if turn is None or conversation is None:
            return None
        approval = approvals.add(
            tx,
            ApprovalKind.TOOL,
            title=title[:LONGEST_STATUS],
            payload=payload,
            payload_hash=hash_of(payload),
            asked_by=Actor(AGENT, conversation.agent),
            door=conversation.door,
            place=conversation.place,
            thread=conversation.thread,
            within=ANSWER_WITHIN,
            mr=conversation.mr,
            turn_id=turn.id,
            conversation_id=conversation.id,
        )
        self._save(tx, replace(turn, state=TurnState.WAITING))
        self.telling.question(tx, approval)
        return approval

    def goes_on(self, tx: Transaction, turn_id: TurnId) -> None:
        """The answer to its question was given to the agent."""
        turn = _running(tx, turn_id)
        if turn is not None and turn.state is TurnState.WAITING:
            self._save(tx, replace(turn, state=TurnState.WORKING))

    def ended(self, tx: Transaction, turn_id: TurnId, state: TurnState, why: str = "") -> None:
        """The turn is over: `state` is an end. An answer that addresses another agent is passed on to it."""
        turn = _running(tx, turn_id)
        if turn is None:
            return
        ended = end_turn(tx, self.telling, turn, state, why)
        if state is TurnState.DONE:
            pass_on(tx, Desk(self.telling.config, self.telling), ended)

    def _save(self, tx: Transaction, turn: Turn) -> None:
        conversations.save_turn(tx, turn)
        self.telling.answer(tx, turn)
        self.telling.receipt(tx, turn)


def _running(tx: Transaction, turn_id: TurnId) -> Turn | None:
    turn = conversations.turn(tx, turn_id)
    return None if turn is None or turn.state.is_over else turn


def _working(turn: Turn) -> TurnState:
    return turn.state if turn.state is TurnState.WAITING else TurnState.WORKING
