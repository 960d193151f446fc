"""The room as text: what a client without HTML shows and a screen reader says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from tests.support.synapse import Message
from tests.support.synapse.user import Json, timeline


def as_text(events: Sequence[Json], names: Mapping[str, str], bot: str) -> str:
    """The plain body of every message, oldest first, with edits applied; and how many there are of each kind."""
    messages = timeline(events)
    sent = [event for event in events if event["type"] == "m.room.message" and event["sender"] == bot]
    shown = [message for message in messages if message.sender == bot]
    count = f"{len(sent)} events of {names[bot]}: {len(shown)} messages and {len(sent) - len(shown)} edits"
    return "\n\n".join([*(_read(message, names) for message in messages), f"== {count}\n"])


def _read(message: Message, names: Mapping[str, str]) -> str:
    facts = [names.get(message.sender, message.sender), message.kind]
    relation = (message.original or {}).get("m.relates_to", {})
    if message.thread_root:
        facts.append("in a thread")
    elif "m.in_reply_to" in relation:
        facts.append("a reply")
    if message.edits:
        facts.append(f"edited {message.edits} times")
    if people := message.mentions.get("user_ids"):
        facts.append("mentions " + ", ".join(names.get(one, one) for one in people))
    at = datetime.fromtimestamp(message.at_ms / 1000, UTC)
    return f"== {at:%H:%M:%S} {' · '.join(facts)}\n{message.body}"
