"""Binds turns to their merge request's sandbox: what waits for one, what is given up, and what its end means.

Level-triggered: `promote` looks at the tables, and is run whenever a sandbox or an approval changed, and every few
seconds. It is a loop beside the pool, whose passes must not wait for agents, and beside the runner, which only reads
unless it drives a conversation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import structlog

from ravebot.agents import registry
from ravebot.agents.asking import Asking
from ravebot.agents.ending import end_turn
from ravebot.agents.model import Approval, ApprovalState, Conversation, MessageId, Turn, TurnId, TurnState
from ravebot.agents.processes import end_process, why_gone
from ravebot.agents.rights import by_configuration
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.wording import once_more
from ravebot.clock import age
from ravebot.config.model import AgentConfig, Config
from ravebot.errors import StoreError
from ravebot.sandboxes.model import Machine, MachineState, MergeRequest, MergeRequestRef, Sandbox, SandboxState
from ravebot.store import agent_queue, conversations, machines, merge_requests, restored, sandboxes
from ravebot.store.agent_queue import Waiters
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import AGENTS_WAIT

log = structlog.get_logger()

LONGEST_WAIT = timedelta(days=1)
LOOK_SECONDS = 5.0
_STORE_SECONDS = 1.0
_BETWEEN_LOOKS_SECONDS = 0.05
_BEFORE_RESTORE = (
    "ravebot was restored from a backup that was made before this was answered, so it can't be known whether it was"
    " done."
)


@dataclass(frozen=True)
class Surroundings:
    """What a turn that no agent was given depends on. `sandbox`: the merge request's that is queued, starting or ready;
    `machine`: its machine; `newest`: the newest one in any state; `asked`: whether to start one, asked last."""

    agent: AgentConfig | None
    mr: MergeRequest | None
    sandbox: Sandbox | None = None
    machine: Machine | None = None
    newest: Sandbox | None = None
    asked: Approval | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the agent can work now. A sandbox that is kept counts: an agent may find out why."""
        if self.agent is not None and self.agent.works_elsewhere:
            return True
        sandbox, machine = self.sandbox, self.machine
        if sandbox is None or sandbox.state is not SandboxState.READY or machine is None:
            return False
        well = not machine.unhealthy_told and machine.paused_since is None
        return machine.state is MachineState.LEASED and well

    @property
    def is_unwell(self) -> bool:
        """Whether it is ready, but its machine does not answer or is paused."""
        return self.sandbox is not None and self.sandbox.state is SandboxState.READY and not self.is_usable


@dataclass(frozen=True)
class TurnPlace:
    """The state that a turn which waits should have, and why it is given up."""

    state: TurnState
    why: str = ""


def place_of(turn: Turn, agent: str, around: Surroundings, now: datetime) -> TurnPlace:
    """Where a turn belongs that no agent was given, by the first rule that applies."""
    mr = around.mr
    if mr is None:
        return TurnPlace(TurnState.DEAD, "Its merge request is not known any more.")
    if mr.state in ("closed", "merged"):
        return TurnPlace(TurnState.DEAD, f"{mr.full_ref} is {mr.state}, so {agent} does not work on it any more.")
    configured = by_configuration(around.agent, agent, mr)
    if not configured.allowed:
        return TurnPlace(TurnState.DEAD, f"{configured.rule} {configured.advice}")
    if around.is_usable:
        return TurnPlace(TurnState.QUEUED)
    if age(turn.created_at, now) > LONGEST_WAIT:
        return TurnPlace(
            TurnState.DEAD, f"It waited a day for the sandbox of {mr.full_ref}: see why with `why`, ask again."
        )
    if around.sandbox is not None:
        keeps = turn.state is TurnState.QUEUED and around.sandbox.state is SandboxState.READY
        return TurnPlace(TurnState.QUEUED if keeps else TurnState.ACCEPTED)
    if why := _not_started(turn, around):
        return TurnPlace(TurnState.DEAD, why)
    return TurnPlace(TurnState.ACCEPTED)


def _not_started(turn: Turn, around: Surroundings) -> str:
    """Why no sandbox will come of the question that was open while the turn waited; empty: one may."""
    asked, newest = around.asked, around.newest
    if asked is None or asked.decided_at is None:
        return ""
    if asked.turn_id != turn.id and asked.decided_at <= turn.created_at:
        return ""
    match asked.state:
        case ApprovalState.DENIED:
            return f"{asked.decided_by} did not want a sandbox to be started. Ask again to be asked once more."
        case ApprovalState.EXPIRED:
            return "Nobody answered in time whether to start a sandbox. Start one, then ask again."
        case ApprovalState.GRANTED if asked.done_at is not None:
            started = newest is not None and newest.created_at >= asked.created_at
            return "" if started else f"No sandbox was started: {asked.outcome}"
        case _:
            return ""


Doing = Callable[[Transaction], object]


@dataclass(frozen=True)
class SandboxBinding:
    """Moves turns as their sandboxes change; each method runs inside the caller's transaction."""

    config: Config
    telling: ConversationTelling

    def around(self, tx: Transaction, conversation: Conversation) -> Surroundings:
        """What a message in that conversation depends on."""
        agent, ref = registry.find(self.config, conversation.agent), conversation.mr
        if ref is None:
            return Surroundings(agent, None)
        sandbox = sandboxes.current(tx, ref)
        return Surroundings(
            agent,
            merge_requests.get(tx, ref),
            sandbox,
            machines.get(tx, sandbox.machine_id) if sandbox else None,
            sandbox or sandboxes.latest(tx, ref),
            None if sandbox else agent_queue.start_asked(tx, conversation.id),
        )

    def promote(self, tx: Transaction) -> int:
        """Take every step that is due, and return how many there were; again, it does nothing."""
        steps = self.steps(tx)
        for step in steps:
            step(tx)
        return len(steps)

    def steps(self, tx: Transaction) -> tuple[Doing, ...]:
        """What is due; reads only."""
        return (*self._of_processes(tx), *self._of_elsewhere(tx), *self._of_turns(tx))

    def _of_processes(self, tx: Transaction) -> Iterator[Doing]:
        restored_at = restored.seen(tx)
        for process in agent_queue.live_processes(tx):
            sandbox = sandboxes.get(tx, process.sandbox_id)
            why = why_gone(process, sandbox, machines.get(tx, process.machine_id))
            if restored_at and process.started_at < restored_at:
                why = "ravebot was restored from a backup"
            if why:
                yield partial(end_process, telling=self.telling, process=process, why=why)
            elif sandbox and sandbox.running_sha:
                for turn in conversations.open_turns(tx, process.conversation_id):
                    if turn.process_id == process.id and turn.sha != sandbox.running_sha:
                        yield partial(self._code_replaced, turn=turn, sha=sandbox.running_sha)

    def _of_elsewhere(self, tx: Transaction) -> Iterator[Doing]:
        """What was given before a restore to agents that work elsewhere: how far that got since is not known."""
        restored_at = restored.seen(tx)
        for turn in agent_queue.given_elsewhere(tx) if restored_at else ():
            if restored_at and turn.given_at and turn.given_at < restored_at:
                yield partial(self._uncertain, turn=turn)

    def _uncertain(self, tx: Transaction, turn: Turn) -> None:
        conversation = conversations.get(tx, turn.conversation_id)
        assert conversation
        then = once_more(conversation.door, self.config.matrix.command_prefix, turn.id)
        end_turn(tx, self.telling, turn, TurnState.UNCERTAIN, f"{_BEFORE_RESTORE} {then}")

    def _of_turns(self, tx: Transaction) -> Iterator[Doing]:
        restored_at = restored.seen(tx)
        known: dict[tuple[str, MergeRequestRef | None], Surroundings] = {}
        for waiters in agent_queue.waiters(tx):
            conversation = conversations.get(tx, waiters.conversation_id)
            assert conversation
            key = conversation.agent, conversation.mr
            around = known.get(key) or known.setdefault(key, self.around(tx, conversation))
            if around.sandbox is None:  # then it also depends on what was asked in the conversation
                around = replace(around, asked=agent_queue.start_asked(tx, conversation.id))
            if (restored_at and waiters.since < restored_at) or not all_stay(
                waiters, conversation.agent, around, tx.now
            ):
                yield from self._of_waiters(tx, conversation, around, restored_at)

    def _of_waiters(
        self, tx: Transaction, conversation: Conversation, around: Surroundings, restored_at: datetime | None
    ) -> Iterator[Doing]:
        back, left = False, []
        for turn in conversations.open_turns(tx, conversation.id):
            if turn.is_given:
                continue
            place = place_of(turn, conversation.agent, around, tx.now)
            if restored_at and turn.created_at < restored_at:
                then = once_more(conversation.door, self.config.matrix.command_prefix, turn.id)
                place = TurnPlace(TurnState.UNCERTAIN, f"{_BEFORE_RESTORE} {then}")
            if place.state is TurnState.ACCEPTED:
                left.append(turn)
            if place.state is turn.state:
                continue
            if place.state.is_over:
                yield partial(end_turn, telling=self.telling, turn=turn, state=place.state, why=place.why)
            else:
                back = back or place.state is TurnState.ACCEPTED
                yield partial(_save, turn=replace(turn, state=place.state, tries=0, next_try_at=None))
        if back:
            yield partial(self._waits_again, conversation=conversation, around=around)
        if left and self._is_to_ask(tx, around):
            yield partial(self._ask, conversation=conversation, turn=left[0])

    def _is_to_ask(self, tx: Transaction, around: Surroundings) -> bool:
        """Whether nobody is asked any more to start a sandbox, as the turn for which that was asked was cancelled."""
        asked = around.asked
        if around.sandbox is not None or asked is None or asked.state is not ApprovalState.WITHDRAWN:
            return False
        turn = conversations.turn(tx, asked.turn_id) if asked.turn_id else None
        return turn is not None and turn.state.is_over and not turn.is_given

    def _ask(self, tx: Transaction, conversation: Conversation, turn: Turn) -> None:
        mr = merge_requests.get(tx, conversation.mr) if conversation.mr else None
        assert mr
        root = conversations.message(tx, turn.message_id).root
        Asking(self.config, self.telling).ask_start(tx, turn, conversation, mr, root)

    def _code_replaced(self, tx: Transaction, turn: Turn, sha: str) -> None:
        """The turn goes on; it is said once for each commit."""
        conversation = conversations.get(tx, turn.conversation_id)
        assert conversation
        conversations.save_turn(tx, replace(turn, sha=sha))
        if turn.sha:
            told = f"Commit {sha[:8]} was copied into the sandbox while {conversation.agent} works on {turn.sha[:8]}."
            self.telling.remark(tx, conversation, f"{told} It goes on, and may not know of the new code.")

    def _waits_again(self, tx: Transaction, conversation: Conversation, around: Surroundings) -> None:
        mr = around.mr
        assert mr
        why = f"The sandbox of {mr.full_ref} is being started again"
        if around.sandbox is None:
            why = f"The sandbox of {mr.full_ref} ended. Start one within a day"
        then = f"{conversation.agent} then gets what it was not given yet"
        self.telling.remark(tx, conversation, f"{why}: {then}.")


def all_stay(waiters: Waiters, agent: str, around: Surroundings, now: datetime) -> bool:
    """Whether the turns of a conversation that wait stay as they are, by what they have in common."""
    if (waiters.accepted and waiters.queued) or (around.asked is not None and around.asked.decided_at is not None):
        return False  # each is looked at
    state = TurnState.QUEUED if waiters.queued else TurnState.ACCEPTED
    oldest = Turn(TurnId(0), MessageId(0), waiters.conversation_id, state, waiters.since)
    return place_of(oldest, agent, around, now).state is state


def _save(tx: Transaction, turn: Turn) -> None:
    conversations.save_turn(tx, turn)


@dataclass(frozen=True)
class WaitingLoop:
    """Runs `promote` whenever something changed that turns wait for."""

    database: Database
    waiting: SandboxBinding

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self.first_look()
            await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)
            await self.database.signals.wait(AGENTS_WAIT, LOOK_SECONDS)

    async def first_look(self) -> None:
        """One round; tried until it works. Nothing is given to an agent before, as what a restored database knows of
        turns may be outdated."""
        while True:
            try:
                await self.look()
            except StoreError as error:
                log.warning("turns of agents wait for the database", error=str(error))
                await asyncio.sleep(_STORE_SECONDS)
            else:
                return

    async def look(self) -> int:
        """One round; writes only if something is due."""
        if not await self.database.read(self.waiting.steps):
            return 0
        return await self.database.write(self.waiting.promote)
