"""Whether an agent's process can still run, and what its end means for the turn that it had."""

from __future__ import annotations

from dataclasses import replace

from ravebot.agents.ending import LONGEST_WHY, end_turn
from ravebot.agents.model import Process, TurnState
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.wording import once_more
from ravebot.sandboxes.model import Machine, MachineState, Sandbox, SandboxState
from ravebot.store import conversations
from ravebot.store.database import Transaction
from ravebot.store.signals import AGENTS


def why_gone(process: Process, sandbox: Sandbox | None, machine: Machine | None) -> str:
    """Why a process can't be running any more, as a clause; empty: it may."""
    if sandbox is None or sandbox.state in (SandboxState.STOPPING, SandboxState.ENDED):
        return "its sandbox ended"
    if machine is None or sandbox.machine_id != process.machine_id:
        return "its sandbox got a new machine"
    if machine.restarts != process.restarts:
        return "its machine was restarted"
    if machine.state is not MachineState.LEASED:
        return "its machine is taken down"
    return ""


def end_process(tx: Transaction, telling: ConversationTelling, process: Process, why: str) -> None:
    """A process has ended, or can't be reached ever again; what it had of a turn may have been done, in part or whole.

    `why` is a clause. Again, it does nothing.
    """
    stored = conversations.process(tx, process.id)
    if stored is None or stored.ended_at is not None:
        return
    conversations.save_process(tx, replace(stored, ended_at=tx.now, ended=why[:LONGEST_WHY]))
    conversation = conversations.get(tx, stored.conversation_id)
    assert conversation
    for turn in conversations.open_turns(tx, stored.conversation_id):
        if turn.process_id == stored.id:
            told = f"It can't be known how far {conversation.agent} got: {why}."
            then = once_more(conversation.door, telling.config.matrix.command_prefix, turn.id)
            end_turn(tx, telling, turn, TurnState.UNCERTAIN, f"{told} {then}")
    tx.wake(AGENTS)
