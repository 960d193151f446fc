"""Passes an agent's answer on to the agent that its first line addresses; never a command."""

from __future__ import annotations

import re

from ravebot.agents import registry
from ravebot.agents.desk import Addressed, Desk
from ravebot.agents.model import AGENT, Turn
from ravebot.config.model import Config
from ravebot.sandboxes.model import Actor
from ravebot.store import conversations
from ravebot.store.database import Transaction

_ADDRESS = re.compile(r"\s{0,20}@(?P<name>[a-z][a-z0-9-]{1,30}):?(?=\s|\Z)", re.ASCII)


def addressed(config: Config, answer: str, by: str) -> tuple[str, str] | None:
    """Which other agent an answer addresses explicitly, and what it says to it."""
    match = _ADDRESS.match(answer)
    name = match["name"] if match else ""
    text = answer[match.end() :].strip() if match else ""
    if not text or name == by or registry.find(config, name) is None:
        return None
    return name, text


def pass_on(tx: Transaction, desk: Desk, turn: Turn) -> None:
    """Give an answer to the agent that it addresses, in the same thread. Rights are looked up before it is given."""
    conversation = conversations.get(tx, turn.conversation_id)
    found = addressed(desk.config, turn.answer, conversation.agent) if conversation else None
    if conversation is None or found is None:
        return
    message = conversations.message(tx, turn.message_id)
    name, text = found
    desk.accept(
        tx,
        Addressed(
            agent=name,
            door=conversation.door,
            place=conversation.place,
            thread=conversation.thread,
            own_thread=False,
            mr=conversation.mr,
            key=f"turn {turn.id}",
            author=Actor(AGENT, conversation.agent),
            text=text,
            root=message.root,
            hops=message.hops + 1,
        ),
    )
