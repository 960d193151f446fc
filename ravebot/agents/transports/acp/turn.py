"""One turn: its prompt is given, what the agent says is committed batch by batch, and its end is told.

Each batch and the offset behind it are committed in one transaction, so that a crash neither loses nor repeats any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from ravebot.agents.model import Approval, ApprovalState, Process, Turn, TurnState
from ravebot.agents.progress import TurnProgress
from ravebot.agents.questions import hash_of, shown
from ravebot.agents.transports.acp import protocol
from ravebot.agents.transports.acp.lines import AgentBreaksLimits
from ravebot.agents.transports.acp.protocol import (
    AgentAnswered,
    AgentAsks,
    AgentRequests,
    AgentStatus,
    AgentWords,
    Chosen,
    Heard,
)
from ravebot.agents.transports.acp.session import AgentSession, ProgramEnded
from ravebot.agents.transports.acp.situation import Settling, Situation
from ravebot.agents.transports.acp.stdio import Given
from ravebot.agents.wording import LONGEST_LISTED, in_words, listed
from ravebot.config.model import AgentConfig
from ravebot.store import agent_work, approvals, conversations
from ravebot.store.database import Database, Transaction

_GRACE_SECONDS = 5.0
"""How long an agent may take to end a turn that is cancelled; then it is killed."""
_KILL_SECONDS = 15.0
_LOOK_SECONDS = 10.0
_MOST_QUESTIONS = 5
"""Of a turn that are open at a time: each notifies people."""
_BATCH_SECONDS = 0.05
"""The shortest time between two commits of a stream of words."""
_ENDS: dict[object, tuple[TurnState, str]] = {
    "end_turn": (TurnState.DONE, ""),
    "cancelled": (TurnState.CANCELLED, ""),
    "refusal": (TurnState.FAILED, "The agent refused to go on."),
    "max_tokens": (TurnState.FAILED, "The agent's model reached its limit of tokens: ask for less at once."),
    "max_turn_requests": (TurnState.FAILED, "The agent reached its limit of steps in a turn: ask it to go on."),
}
"""https://agentclientprotocol.com/protocol/prompt-turn#stop-reasons"""


@dataclass
class RunningTurn:
    """Drives one turn with a connected agent. `look` reads the situation again when `news` says so."""

    database: Database
    progress: TurnProgress
    settling: Settling
    agent: AgentConfig
    session: AgentSession
    process: Process
    turn: Turn
    text: str
    look: Callable[[], Awaitable[Situation | None]]
    news: Callable[[], bool]
    _asked_to_end: float | None = None
    _late: bool = False
    _committed: float = 0.0

    async def run(self) -> None:
        """Go on until the turn is over. Raises ProgramEnded, Unavailable, AgentBreaksLimits."""
        self.session.next_turn()
        first = self.turn.process_id is None
        limit = self.agent.limits.turn
        if not await self.database.write(
            lambda tx: self.progress.given(tx, self.turn.id, self.process.id, limit), urgent=True
        ):
            return
        if self.turn.state is TurnState.QUEUED:
            await self._give_prompt(first)
        loop = asyncio.get_running_loop()
        look_at = loop.time()
        while True:
            if self.news() or loop.time() >= look_at:
                situation = await self.look()
                if situation is None or situation.turn is None or situation.turn.id != self.turn.id:
                    return
                if situation.lost:
                    return
                await self._act_on(situation)
                look_at = loop.time() + _until_look(situation)
            if self._asked_to_end is not None and loop.time() > self._asked_to_end + _GRACE_SECONDS:
                await self._kill()
                return
            heard = await self.session.heard()
            if heard:
                if await self._take(heard):
                    return
                await asyncio.sleep(max(0.0, self._committed + _BATCH_SECONDS - loop.time()))
                continue
            await self.session.more(1.0 if self._asked_to_end is not None else max(0.05, look_at - loop.time()))

    async def _give_prompt(self, first: bool) -> None:
        line = protocol.prompt(self.turn.id, self.process.session, self.text)
        given = await self.session.attached.give(f"turn-{self.turn.id}", line)
        if given is Given.OK:
            await self.database.write(lambda tx: self.progress.delivered(tx, self.turn.id), urgent=True)
            return
        if first:
            await self.database.write(lambda tx: self.settling.not_given(tx, self.turn))
        raise await self.session.refusal(given)

    async def _act_on(self, situation: Situation) -> None:
        """Give the agent what people decided, and have it end when it must."""
        turn = situation.turn
        assert turn
        if self._asked_to_end is None:
            self._late = not turn.cancelled_by and turn.deadline is not None and turn.deadline <= situation.now
            if self._late or turn.cancelled_by:
                await self._cancel()
                return
        for approval in situation.to_answer:
            await self._answer(approval)

    async def _answer(self, approval: Approval) -> None:
        """Give the agent a person's answer, then record that it has it."""
        asked = protocol.asked(approval.payload)
        unchanged = hash_of(approval.payload) == approval.payload_hash
        allow = approval.state is ApprovalState.GRANTED and unchanged
        if asked is not None:
            chosen, option = protocol.choose(asked.options, allow=allow)
            if approval.state is ApprovalState.WITHDRAWN:
                chosen, option = Chosen.CANCELLED, ""
            await self.session.give(f"approval-{approval.id}", protocol.answer(asked.rpc_id, chosen, option))

        def answered(tx: Transaction) -> None:
            stored = approvals.get(tx, approval.id)
            if stored is not None and stored.done_at is None:
                approvals.done(tx, stored, stored.outcome or "the agent was told")
            if not agent_work.is_asked(tx, self.turn.id):
                self.progress.goes_on(tx, self.turn.id)

        await self.database.write(answered)

    async def _cancel(self) -> None:
        """Ask the agent to end the turn; its open questions are answered, as the protocol wants."""

        def withdraw(tx: Transaction) -> tuple[Approval, ...]:
            for approval in agent_work.withdraw(tx, self.turn.id):
                self.progress.telling.question(tx, approval)
            return agent_work.to_answer(tx, self.turn.id)

        open_ones = await self.database.write(withdraw)
        self._asked_to_end = asyncio.get_running_loop().time()
        given = await self.session.attached.give(f"cancel-{self.turn.id}", protocol.cancel(self.process.session))
        if given is Given.FULL:  # it can't be told, and is killed at once
            self._asked_to_end -= _GRACE_SECONDS
            return
        if given is not Given.OK:
            raise await self.session.refusal(given)
        for approval in open_ones:
            await self._answer(approval)

    async def _kill(self) -> None:
        """The agent did not end the turn: end its program."""
        why = str(ProgramEnded(await self.session.kill(_KILL_SECONDS)))
        state, words = self._cancelled()

        def killed(tx: Transaction) -> None:
            self.settling.end_turn(tx, self.turn, state, words or "The agent did not stop by itself and was killed.")
            self.settling.end_process(tx, self.process, f"killed; {why}")

        await self.database.write(killed)

    def _cancelled(self) -> tuple[TurnState, str]:
        if not self._late:
            return TurnState.CANCELLED, ""
        return TurnState.FAILED, f"It took longer than {in_words(self.agent.limits.turn)}, the limit of a turn."

    async def _take(self, heard: list[tuple[int, Heard]]) -> bool:
        """Answer what needs no person, then commit what was heard; True when the turn is over."""
        refused: dict[int, str] = {}
        left = _MOST_QUESTIONS
        if any(isinstance(one, AgentAsks) for _, one in heard):
            left -= await self.database.read(lambda tx: agent_work.count_asked(tx, self.turn.id))
        for offset, one in heard:
            if isinstance(one, AgentRequests):
                await self.session.refuse(offset, one)
            elif isinstance(one, AgentAsks):
                if why := await self._settle(offset, one, left):
                    refused[offset] = why
                elif one.kind in self.agent.approve:
                    left -= 1
        over = await self.database.write(lambda tx: self._commit(tx, heard, refused))
        self._committed = asyncio.get_running_loop().time()
        return over

    async def _settle(self, offset: int, asked: AgentAsks, left: int) -> str:
        """Answer a permission request at once unless a person is to be asked; returns why there was a no. `left`: how
        many more may be asked now."""
        chosen, option = protocol.choose(asked.options, allow=True)
        why = ""
        if self._asked_to_end is not None:
            chosen, option = Chosen.CANCELLED, ""
        elif len(asked.payload) > protocol.LARGEST_QUESTION or len(listed(shown(asked.payload))) > LONGEST_LISTED:
            why = f"refused, as its {len(asked.payload)} characters can't be shown whole"
        elif chosen is Chosen.CANCELLED:
            why = "refused, as the agent offers no answer for only this once"
        elif asked.kind in self.agent.approve and left <= 0:
            why = f"refused, as {_MOST_QUESTIONS} questions of the agent's are open already"
        elif asked.kind in self.agent.approve:
            return ""
        if why:
            chosen, option = protocol.choose(asked.options, allow=False)
        await self.session.answer(offset, asked.rpc_id, chosen, option)
        return why

    def _commit(self, tx: Transaction, heard: Iterable[tuple[int, Heard]], refused: dict[int, str]) -> bool:
        turn, progress = self.turn, self.progress
        for offset, one in _joined(heard):
            match one:
                case AgentWords(session, text) if session == self.process.session:
                    progress.words(tx, turn.id, self._apart(tx, text))
                case AgentStatus(session, title) if session == self.process.session:
                    progress.status(tx, turn.id, title)
                case AgentAsks(kind=kind, title=title, payload=payload):
                    if offset in refused:
                        progress.status(tx, turn.id, f"{title}: {refused[offset]}")
                    elif kind in self.agent.approve and self._asked_to_end is None:
                        progress.asks(tx, turn.id, title, payload)
                    else:
                        progress.status(tx, turn.id, title)
                case AgentAnswered(rpc_id=rpc_id) if rpc_id == protocol.prompt_id(turn.id):
                    self.settling.end_turn(tx, turn, *self._end(one))
        stored = conversations.process(tx, self.process.id)
        if stored is not None:
            conversations.save_process(tx, replace(stored, offset=self.session.reader.offset))
        current = conversations.turn(tx, turn.id)
        return current is None or current.state.is_over

    def _apart(self, tx: Transaction, text: str) -> str:
        """A paragraph of its own for what the agent says after it did something."""
        turn = conversations.turn(tx, self.turn.id)
        if turn is None or not turn.status:
            return text
        conversations.save_turn(tx, replace(turn, status=""))
        return f"\n\n{text.lstrip()}" if turn.answer and not turn.answer.endswith("\n") else text

    def _end(self, answered: AgentAnswered) -> tuple[TurnState, str]:
        if answered.error_code is not None:
            if self._asked_to_end is not None:
                return self._cancelled()
            return TurnState.FAILED, f"The agent reports an error: {answered.error or answered.error_code}"
        reason = answered.result.get("stopReason")
        if reason == "cancelled" and self._asked_to_end is not None:
            return self._cancelled()
        known = _ENDS.get(reason) if isinstance(reason, str) else None
        return known or (TurnState.FAILED, f"The agent ended for a reason that is not known here: {str(reason)[:60]}")

    async def break_off(self, error: AgentBreaksLimits) -> None:
        """The agent sent too much: end its program, and the turn with it."""
        await self.session.kill(_KILL_SECONDS)

        def broken(tx: Transaction) -> None:
            self.settling.end_turn(tx, self.turn, TurnState.FAILED, f"The agent was ended: {error}.")
            self.settling.end_process(tx, self.process, str(error))

        await self.database.write(broken)


def _until_look(situation: Situation) -> float:
    """Seconds until the turn is looked at without a wake-up: at its deadline, or in a while."""
    turn = situation.turn
    left = (turn.deadline - situation.now).total_seconds() if turn and turn.deadline else _LOOK_SECONDS
    return min(_LOOK_SECONDS, max(0.05, left))


def _joined(heard: Iterable[tuple[int, Heard]]) -> Iterable[tuple[int, Heard]]:
    """The same with neighbouring words as one."""
    last: tuple[int, Heard] | None = None
    for offset, one in heard:
        if last and isinstance(one, AgentWords) and isinstance(last[1], AgentWords) and one.session == last[1].session:
            last = offset, AgentWords(one.session, last[1].text + one.text)
            continue
        if last:
            yield last
        last = offset, one
    if last:
        yield last
