"""What the database says of a conversation and its agent, and the steps that end a process, or a turn with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ravebot.agents.model import Approval, Conversation, ConversationId, Process, Turn, TurnState
from ravebot.agents.processes import end_process, why_gone
from ravebot.agents.progress import TurnProgress
from ravebot.backoff import Backoff
from ravebot.config.model import AgentConfig, Config
from ravebot.sandboxes.model import Machine, MergeRequest, Sandbox, SandboxState
from ravebot.store import agent_work, conversations, machines, merge_requests, sandboxes
from ravebot.store.database import Transaction

MOST_TRIES = 12
"""How often an agent that can't be reached is tried until its turn is given up; some ten minutes."""
TOLD_TRIES = 3
"""After how many the people who wait are told, once a turn."""
UNFIT_PAUSE = timedelta(minutes=1)
PAUSES = Backoff.growing(1.0, 60.0)


@dataclass(frozen=True)
class Situation:
    """Everything that the next step depends on. `process` is the conversation's, as far as it is not known to have
    ended; `lost`: why it can't run any more. `ready`: the sandbox in which an agent may be started."""

    now: datetime
    conversation: Conversation
    agent: AgentConfig | None
    turn: Turn | None = None
    text: str = ""
    process: Process | None = None
    lost: str = ""
    mr: MergeRequest | None = None
    ready: Sandbox | None = None
    machine: Machine | None = None
    paused: bool = False
    to_answer: tuple[Approval, ...] = ()

    @property
    def given(self) -> bool:
        """Whether the agent may have the turn's prompt."""
        return self.turn is not None and self.turn.process_id is not None

    @property
    def may_go_on(self) -> bool:
        """Whether there is something to do for the turn."""
        turn = self.turn
        if turn is None:
            return False
        return self.given or (turn.state is TurnState.QUEUED and (not self.paused or bool(turn.cancelled_by)))


def look(tx: Transaction, config: Config, conversation_id: ConversationId) -> Situation | None:
    """The situation of one conversation; reads nothing of others."""
    conversation = conversations.get(tx, conversation_id)
    if conversation is None:
        return None
    agent = next((one for one in config.agents if one.name == conversation.agent and one.acp), None)
    turn = agent_work.first_turn(tx, conversation_id)
    process = conversations.live_process(tx, conversation_id)
    current = sandboxes.current(tx, conversation.mr) if conversation.mr else None
    ready = current if current and current.state is SandboxState.READY and current.machine_id else None
    machine = machines.get(tx, process.machine_id if process else ready.machine_id if ready else None)
    return Situation(
        tx.now,
        conversation,
        agent,
        turn,
        conversations.message(tx, turn.message_id).text if turn else "",
        process,
        why_gone(process, sandboxes.get(tx, process.sandbox_id), machine) if process else "",
        merge_requests.get(tx, conversation.mr) if conversation.mr else None,
        ready,
        machine,
        bool(conversation.paused) or conversation.agent in conversations.paused_agents(tx),
        agent_work.to_answer(tx, turn.id) if turn else (),
    )


@dataclass(frozen=True)
class Settling:
    """Steps that end something; each runs inside the caller's transaction."""

    progress: TurnProgress

    def end_turn(self, tx: Transaction, turn: Turn, state: TurnState, why: str = "") -> None:
        """End a turn."""
        self.progress.ended(tx, turn.id, state, why)

    def end_process(self, tx: Transaction, process: Process, why: str) -> None:
        """A process has ended, or can't be reached ever again: what it may have had of a turn is uncertain."""
        end_process(tx, self.progress.telling, process, why)

    def give_up(self, tx: Transaction, turn: Turn, process: Process | None, why: str) -> None:
        """The turn can't be given to its agent: a person has to do what `why` says."""
        if process is not None:
            self.end_process(tx, process, why)
        stored = conversations.turn(tx, turn.id)
        if stored is not None and not stored.state.is_over:
            self.end_turn(tx, stored, TurnState.DEAD, why)

    def not_given(self, tx: Transaction, turn: Turn) -> None:
        """The guest says that it did not take the prompt, which was tried only once: the agent can't have it."""
        stored = conversations.turn(tx, turn.id)
        if stored is not None and stored.state is TurnState.QUEUED:
            conversations.save_turn(tx, replace(stored, process_id=None, given_at=None, deadline=None))

    def unfit(self, tx: Transaction, turn: Turn, process: Process, why: str) -> None:
        """No agent can be started in the guest as it is, which is said at once. A person has to mend that: it is tried
        once more, then the turn is given up."""
        self.end_process(tx, process, why)
        stored = conversations.turn(tx, turn.id)
        conversation = conversations.get(tx, turn.conversation_id)
        if stored is None or stored.state.is_over or conversation is None:
            return
        if stored.tries:
            self.give_up(tx, stored, None, f"The sandbox says: {why}. Mend that there, or rebuild it, and ask again.")
            return
        conversations.save_turn(tx, replace(stored, tries=1, next_try_at=tx.now + UNFIT_PAUSE))
        text = f"{conversation.agent} does not start. The sandbox says: {why}. Mend that there, or rebuild it:"
        self.progress.telling.remark(tx, conversation, f"{text} in a minute it is tried once more.")

    def postpone(self, tx: Transaction, turn: Turn, process: Process | None, why: str) -> None:
        """The agent could not be reached: the turn is tried again later; given up after many tries or, when the agent
        may have it, when its time is over."""
        stored = conversations.turn(tx, turn.id)
        if stored is None or stored.state.is_over:
            return
        if stored.process_id is not None:
            if stored.deadline is not None and stored.deadline <= tx.now and process is not None:
                until = "until its time was over"
                if stored.cancelled_by:
                    until = f"to have it stop, as {stored.cancelled_by} wants, and may go on in the sandbox"
                self.end_process(tx, process, f"it could not be reached {until}: {why}")
                return
        elif stored.tries + 1 >= MOST_TRIES:
            self.give_up(
                tx, stored, process, f"The agent could not be reached: {why}. Ask again, or rebuild the sandbox."
            )
            return
        tries = stored.tries + 1
        pause = timedelta(seconds=PAUSES.after(tries))
        conversations.save_turn(tx, replace(stored, tries=tries, next_try_at=tx.now + pause))
        conversation = conversations.get(tx, stored.conversation_id)
        if tries == TOLD_TRIES and conversation is not None and not stored.cancelled_by:
            text = f"{conversation.agent} can't be reached: {why}. It is tried again; you need not ask again."
            self.progress.telling.remark(tx, conversation, text)
