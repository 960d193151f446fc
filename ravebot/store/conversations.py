"""Conversations with agents, what was said in them, the agents' turns and processes, and what doors show of them."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from ravebot.agents.model import (
    AgentDoor,
    AgentMessage,
    Conversation,
    ConversationId,
    MessageId,
    Process,
    ProcessId,
    ShownTurn,
    Turn,
    TurnId,
    TurnState,
)
from ravebot.sandboxes.model import Actor, Machine, MergeRequestRef, SandboxId
from ravebot.store.database import Transaction, Value
from ravebot.store.rows import dump, load
from ravebot.store.signals import AGENTS

OPEN = "state NOT IN ('done', 'failed', 'cancelled', 'uncertain', 'dead')"
"""Of a turn: that it is not over. These words are those of the index `agent_turns_open`, so that SQLite uses it."""


def find(tx: Transaction, agent: str, door: AgentDoor, place: str, thread: str) -> Conversation | None:
    """The conversation with that agent in that thread."""
    where = "agent = ? AND door = ? AND place = ? AND thread = ?"
    return _conversation(tx.one(f"SELECT * FROM conversations WHERE {where}", (agent, door, place, thread)))  # noqa: S608 - a constant


def in_thread(tx: Transaction, door: AgentDoor, place: str, thread: str) -> tuple[Conversation, ...]:
    """Every conversation of a thread, the oldest first: several agents may be spoken to in one."""
    rows = tx.all(
        "SELECT * FROM conversations WHERE door = ? AND place = ? AND thread = ? ORDER BY id", (door, place, thread)
    )
    return tuple(filter(None, map(_conversation, rows)))


def of_event(tx: Transaction, place: str, event_id: str) -> Conversation | None:
    """The conversation in which that message is ours."""
    row = tx.one(
        "SELECT c.* FROM agent_events e JOIN conversations c ON c.id = e.conversation_id"
        " WHERE e.place = ? AND e.event_id = ?",
        (place, event_id),
    )
    return _conversation(row)


def of_merge_request(tx: Transaction, ref: MergeRequestRef) -> tuple[Conversation, ...]:
    """Every conversation that is bound to that merge request."""
    rows = tx.all("SELECT * FROM conversations WHERE project_id = ? AND iid = ? ORDER BY id", (ref.project_id, ref.iid))
    return tuple(filter(None, map(_conversation, rows)))


def get(tx: Transaction, conversation_id: ConversationId) -> Conversation | None:
    return _conversation(tx.one("SELECT * FROM conversations WHERE id = ?", (conversation_id,)))


def begin(
    tx: Transaction,
    agent: str,
    door: AgentDoor,
    place: str,
    thread: str,
    *,
    own_thread: bool,
    mr: MergeRequestRef | None,
) -> Conversation:
    """A new conversation."""
    row_id = tx.insert(
        "conversations",
        {
            "agent": agent, "door": door, "place": place, "thread": thread, "own_thread": int(own_thread),
            "project_id": mr.project_id if mr else None, "iid": mr.iid if mr else None, "created_at": tx.now_us,
        },
    )  # fmt: skip
    found = get(tx, ConversationId(row_id))
    assert found
    return found


def bind(tx: Transaction, conversation_id: ConversationId, mr: MergeRequestRef) -> None:
    """Bind a conversation that was not bound."""
    tx.execute(
        "UPDATE conversations SET project_id = ?, iid = ? WHERE id = ?", (mr.project_id, mr.iid, conversation_id)
    )


def pause(tx: Transaction, conversation_id: ConversationId, why: str) -> None:
    """Give nothing to the agent in this conversation from now on; with an empty `why`, go on."""
    tx.execute("UPDATE conversations SET paused = ? WHERE id = ?", (why, conversation_id))
    tx.wake(AGENTS)


def add_event(tx: Transaction, place: str, event_id: str, conversation_id: ConversationId) -> None:
    """Remember a message of ours in a conversation."""
    values: dict[str, Value] = {"place": place, "event_id": event_id, "conversation_id": conversation_id}
    tx.upsert("agent_events", ("place", "event_id"), values)


def place_of_event(tx: Transaction, event_id: str) -> str:
    """Where a message of ours in a conversation is; empty if it is none."""
    row = tx.one("SELECT place FROM agent_events WHERE event_id = ? LIMIT 1", (event_id,))
    return row["place"] if row else ""


def add_message(
    tx: Transaction, conversation_id: ConversationId, key: str, author: Actor, root: Actor, text: str, hops: int
) -> AgentMessage | None:
    """Store what was said; None when it was stored before."""
    added = tx.changed(
        "INSERT INTO agent_messages (conversation_id, key, author_kind, author, root_kind, root, text, said_at, hops)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (conversation_id, key) DO NOTHING",
        (conversation_id, key, author.kind, author.name, root.kind, root.name, text, tx.now_us, hops),
    )
    if not added:
        return None
    return _message(
        tx.one("SELECT * FROM agent_messages WHERE conversation_id = ? AND key = ?", (conversation_id, key))
    )


def message(tx: Transaction, message_id: MessageId) -> AgentMessage:
    """The message of a turn. Raises KeyError for none, which would be a bug."""
    found = _message(tx.one("SELECT * FROM agent_messages WHERE id = ?", (message_id,)))
    if found is None:
        raise KeyError(message_id)
    return found


def add_turn(tx: Transaction, said: AgentMessage, state: TurnState, why: str = "") -> Turn:
    """The next turn of a message: the first, or one more because a person has it sent again."""
    row = tx.one("SELECT COUNT(*) AS n FROM agent_turns WHERE message_id = ?", (said.id,))
    assert row
    fresh = Turn(TurnId(0), said.id, said.conversation_id, state, tx.now, attempt=row["n"] + 1, why=why)
    row_id = tx.insert("agent_turns", dump(fresh, without=("id",)))
    tx.wake(AGENTS)
    found = turn(tx, TurnId(row_id))
    assert found
    return found


def turn(tx: Transaction, turn_id: TurnId) -> Turn | None:
    return _turn(tx.one("SELECT * FROM agent_turns WHERE id = ?", (turn_id,)))


def save_turn(tx: Transaction, changed: Turn) -> None:
    """Write the whole row; `changed` must have been read in this same transaction."""
    tx.upsert("agent_turns", ("id",), dump(changed))
    tx.wake(AGENTS)


def open_turns(tx: Transaction, conversation_id: ConversationId) -> tuple[Turn, ...]:
    """The turns of a conversation that are not over, in their order."""
    rows = tx.all(
        f"SELECT * FROM agent_turns WHERE conversation_id = ? AND {OPEN} ORDER BY id",  # noqa: S608 - a constant
        (conversation_id,),
    )
    return tuple(filter(None, map(_turn, rows)))


def with_open_turns(tx: Transaction) -> tuple[ConversationId, ...]:
    """The conversations that have a turn which is not over, the one whose oldest turn waits longest first."""
    rows = tx.all(
        f"SELECT conversation_id FROM agent_turns WHERE {OPEN}"  # noqa: S608 - a constant
        " GROUP BY conversation_id ORDER BY MIN(id)"
    )
    return tuple(ConversationId(row["conversation_id"]) for row in rows)


def process(tx: Transaction, process_id: ProcessId) -> Process | None:
    row = tx.one("SELECT * FROM agent_processes WHERE id = ?", (process_id,))
    return load(Process, row) if row else None


def live_process(tx: Transaction, conversation_id: ConversationId) -> Process | None:
    """The conversation's process, as far as it is not known to have ended."""
    row = tx.one("SELECT * FROM agent_processes WHERE conversation_id = ? AND ended_at IS NULL", (conversation_id,))
    return load(Process, row) if row else None


def last_process(tx: Transaction, conversation_id: ConversationId, sandbox_id: SandboxId) -> Process | None:
    """The conversation's newest process in that sandbox that had a session, whether it ended or not."""
    row = tx.one(
        "SELECT * FROM agent_processes WHERE conversation_id = ? AND sandbox_id = ? AND session <> ''"
        " ORDER BY id DESC LIMIT 1",
        (conversation_id, sandbox_id),
    )
    return load(Process, row) if row else None


def begin_process(
    tx: Transaction, conversation_id: ConversationId, sandbox_id: SandboxId, machine: Machine, folder: str
) -> Process:
    """A new process, stored before its folder is made in the guest."""
    fresh = Process(ProcessId(0), conversation_id, sandbox_id, machine.id, machine.restarts, folder, started_at=tx.now)
    row_id = tx.insert("agent_processes", dump(fresh, without=("id",)) | {})
    found = process(tx, ProcessId(row_id))
    assert found
    return found


def save_process(tx: Transaction, changed: Process) -> None:
    """Write the whole row; `changed` must have been read in this same transaction."""
    tx.upsert("agent_processes", ("id",), dump(changed))


def shown(tx: Transaction, turn_id: TurnId) -> ShownTurn:
    """What doors show of a turn."""
    row = tx.one("SELECT * FROM shown_turns WHERE turn_id = ?", (turn_id,))
    return load(ShownTurn, row) if row else ShownTurn(turn_id)


def turns_of(tx: Transaction, message_id: MessageId) -> tuple[Turn, ...]:
    """Every turn of a message, the first one first."""
    rows = tx.all("SELECT * FROM agent_turns WHERE message_id = ? ORDER BY attempt", (message_id,))
    return tuple(filter(None, map(_turn, rows)))


def show_answer(tx: Transaction, turn_id: TurnId, event_id: str, digest: str = "", *, edited: bool = False) -> None:
    """Record the message that a turn's answer is in, and what it shows as far as that is known.

    Receipts have a lane of their own, so each of the two writes only what is its own: what the other knew when it
    began to send may be out of date.
    """
    now = shown(tx, turn_id)
    kept = replace(now, answer_event=event_id, shown=digest, edits=now.edits + edited, edited_at=tx.now)
    tx.upsert("shown_turns", ("turn_id",), dump(kept))


def show_receipt(tx: Transaction, turn_id: TurnId, receipt: str, event_id: str) -> None:
    """Record the receipt that the person's message shows for a turn; both empty for none."""
    kept = replace(shown(tx, turn_id), receipt=receipt, receipt_event=event_id)
    tx.upsert("shown_turns", ("turn_id",), dump(kept))


def paused_agents(tx: Transaction) -> dict[str, str]:
    """The agents that are paused, and who paused each."""
    return {row["agent"]: row["by"] for row in tx.all("SELECT agent, by FROM paused_agents")}


def pause_agent(tx: Transaction, agent: str, by: str) -> None:
    tx.upsert("paused_agents", ("agent",), {"agent": agent, "paused_at": tx.now_us, "by": by})


def resume_agent(tx: Transaction, agent: str) -> None:
    tx.execute("DELETE FROM paused_agents WHERE agent = ?", (agent,))
    tx.wake(AGENTS)


def _conversation(row: sqlite3.Row | None) -> Conversation | None:
    if row is None:
        return None
    bound = row["project_id"] is not None
    mr = MergeRequestRef(row["project_id"], row["iid"]) if bound else None
    return load(Conversation, row, mr=mr)


def _message(row: sqlite3.Row | None) -> AgentMessage | None:
    if row is None:
        return None
    author, root = Actor(row["author_kind"], row["author"]), Actor(row["root_kind"], row["root"])
    return load(AgentMessage, row, author=author, root=root)


def _turn(row: sqlite3.Row | None) -> Turn | None:
    return load(Turn, row) if row else None
