"""Turns a raw room event into a message, or None if it is not one. Pure; no field is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from ravebot.agents.model import LONGEST_MESSAGE
from ravebot.matrix.answers import Json
from ravebot.matrix.commands import command_line

MOST_TEXT = LONGEST_MESSAGE + 600
"""Characters of a message that are kept: more than an agent takes, so that a longer one is known to be too long."""
_LONGEST_KEY = 20
_READ = "ravebot.read"  # in a slimmed event: its text is without its fallback, and whole or cut
_VARIATION_SELECTORS = dict.fromkeys((0xFE0E, 0xFE0F))
_MAX_ID_BYTES = 255
"""The length of a user, room or event id: https://spec.matrix.org/v1.12/appendices/#common-identifier-format"""


@dataclass(frozen=True)
class IncomingMessage:
    """A message of a person or agent. `at_ms` is in milliseconds since 1970, as the sender's server claims."""

    event_id: str
    room_id: str
    sender: str
    text: str
    thread_root: str | None
    direct: bool  # the sender and the bot are the only members of the room
    at_ms: int
    reply_to: str | None = None  # the event that it answers
    whole: bool = True  # of a very long gap, only the beginning of each message is kept


@dataclass(frozen=True)
class Reaction:
    """A reaction to the event `to`. `key`: what it is, without the variation selector that some clients add."""

    event_id: str
    room_id: str
    sender: str
    to: str
    key: str
    direct: bool
    at_ms: int


@dataclass(frozen=True)
class Removed:
    """An event of a room that somebody removed."""

    room_id: str
    event_id: str


Heard = IncomingMessage | Reaction | Removed
"""What is read from rooms."""


def read_removed(event: Json, room_id: str) -> Removed | None:
    """The event that was removed; its id is in the content since version 11 of rooms.

    https://spec.matrix.org/latest/client-server-api/#mroomredaction
    """
    content = event.get("content")
    redacts = event.get("redacts") or (content.get("redacts") if isinstance(content, dict) else None)
    if event.get("type") != "m.room.redaction" or not _is_id(redacts):
        return None
    return Removed(room_id, redacts)


def read_message(event: Json, room_id: str, our_user_id: str) -> IncomingMessage | None:
    """The message in an event; None for our own, notices (other bots), edits and malformed events."""
    content = event.get("content")
    event_id, sender, at_ms = event.get("event_id"), event.get("sender"), event.get("origin_server_ts")
    if event.get("type") != "m.room.message" or not isinstance(content, dict) or "state_key" in event:
        return None
    if not _is_id(event_id) or not _is_id(sender) or sender == our_user_id:
        return None
    text = content.get("body")
    if content.get("msgtype") != "m.text" or not isinstance(text, str):
        return None
    relation = content.get("m.relates_to")
    relation = relation if isinstance(relation, dict) else {}
    if relation.get("rel_type") == "m.replace" or "m.new_content" in content:
        return None
    root = relation.get("event_id") if relation.get("rel_type") == "m.thread" else None
    answered = relation.get("m.in_reply_to")
    # In a thread, this is often only there for clients without threads.
    # https://spec.matrix.org/v1.12/client-server-api/#fallback-for-unthreaded-clients
    meant = isinstance(answered, dict) and relation.get("is_falling_back") is not True
    reply_to = answered.get("event_id") if isinstance(answered, dict) and meant else None
    if "m.in_reply_to" in relation and _READ not in content:
        text = without_reply_fallback(text)
    return IncomingMessage(
        event_id=event_id,
        room_id=room_id,
        sender=sender,
        text=text[:MOST_TEXT],
        thread_root=root if _is_id(root) else None,
        direct=False,
        at_ms=_time(at_ms),
        reply_to=reply_to if _is_id(reply_to) else None,
        whole=content.get(_READ) != "cut",
    )


def read_reaction(event: Json, room_id: str, our_user_id: str) -> Reaction | None:
    """The reaction in an event; None for our own, and malformed events.

    https://spec.matrix.org/latest/client-server-api/#mreaction
    """
    content = event.get("content")
    event_id, sender = event.get("event_id"), event.get("sender")
    if event.get("type") != "m.reaction" or not isinstance(content, dict) or "state_key" in event:
        return None
    relation = content.get("m.relates_to")
    if not isinstance(relation, dict) or relation.get("rel_type") != "m.annotation":
        return None
    to, key = relation.get("event_id"), relation.get("key")
    if not _is_id(event_id) or not _is_id(sender) or sender == our_user_id or not _is_id(to):
        return None
    if not isinstance(key, str) or len(key) > _LONGEST_KEY:
        return None
    plain = key.translate(_VARIATION_SELECTORS)
    return Reaction(event_id, room_id, sender, to, plain, direct=False, at_ms=_time(event.get("origin_server_ts")))


def _time(at_ms: object) -> int:
    return at_ms if isinstance(at_ms, int) and not isinstance(at_ms, bool) and 0 <= at_ms < 2**53 else 0


def slimmed(event: Json, most_text: int = MOST_TEXT) -> Json:
    """The fields of an event that are read, at a bounded size: a gap may have thousands of events of 64 KiB.

    Of a text that is longer than `most_text`, what a command needs is kept, and it is marked.
    """
    content, unsigned = event.get("content"), event.get("unsigned")
    slim: Json = {
        key: event[key] for key in ("type", "event_id", "sender", "state_key", "origin_server_ts") if key in event
    }
    if event.get("type") == "m.room.redaction":
        redaction = read_removed(event, "")
        return slim | {"content": {"redacts": redaction.event_id if redaction else None}}
    if not isinstance(content, dict):
        return slim
    if event.get("type") == "m.room.member":
        before = unsigned.get("prev_content") if isinstance(unsigned, dict) else None
        member: Json = {"membership": _membership(content)}
        return slim | {"content": member, "unsigned": {"prev_content": {"membership": _membership(before)}}}
    text, relation = content.get("body"), content.get("m.relates_to")
    relation = relation if isinstance(relation, dict) else {}
    cut = False
    if content.get("msgtype") != "m.text":
        text = ""
    elif isinstance(text, str):
        text = without_reply_fallback(text) if "m.in_reply_to" in relation else text
        text = text[:MOST_TEXT]
        if cut := len(text) > most_text:
            text = command_line(text)
    kept: Json = {key: relation[key] for key in ("rel_type", "event_id") if _is_id(relation.get(key))}
    if event.get("type") == "m.reaction":
        key = relation.get("key")
        kept |= {"key": key} if isinstance(key, str) and len(key) <= _LONGEST_KEY else {}
        return slim | {"content": {"m.relates_to": kept}}
    answered = relation.get("m.in_reply_to")
    if isinstance(answered, dict) and _is_id(answered.get("event_id")):
        kept |= {"m.in_reply_to": {"event_id": answered["event_id"]}}
        kept |= {"is_falling_back": True} if relation.get("is_falling_back") is True else {}
    said: Json = {
        "msgtype": content.get("msgtype"),
        "body": text,
        "m.relates_to": kept,
        _READ: "cut" if cut else "whole",
    }
    return slim | {"content": said | ({"m.new_content": {}} if "m.new_content" in content else {})}


def text_of(event: Json) -> str:
    """The text of a slimmed event."""
    content = event.get("content")
    text = content.get("body") if isinstance(content, dict) else None
    return text if isinstance(text, str) else ""


def _is_id(value: object) -> TypeGuard[str]:
    """Whether it may be an id. A server checks the ids of the event itself, but not those in its content."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_ID_BYTES:
        return False
    try:
        return len(value.encode()) <= _MAX_ID_BYTES
    except UnicodeEncodeError:  # a lone surrogate, which can't be stored or sent
        return False


def without_reply_fallback(text: str) -> str:
    """A reply without the quoted lines that older clients put before it.

    https://spec.matrix.org/v1.12/client-server-api/#fallbacks-for-rich-replies (removed in 1.13).
    """
    lines = text.split("\n")
    quoted = 0
    while quoted < len(lines) and (lines[quoted].startswith("> ") or lines[quoted] == ">"):
        quoted += 1
    if quoted and quoted < len(lines) and not lines[quoted].strip():
        quoted += 1
    return "\n".join(lines[quoted:])


def our_join(events: Sequence[Json], our_user_id: str) -> int | None:
    """The index of our last join among the events; a change of our name or picture is not a join."""
    for index in range(len(events) - 1, -1, -1):
        event = events[index]
        if event.get("type") == "m.room.member" and event.get("state_key") == our_user_id:
            if _membership(event.get("content")) != "join":
                continue
            unsigned = event.get("unsigned")
            before = unsigned.get("prev_content") if isinstance(unsigned, dict) else None
            if _membership(before) != "join":
                return index
    return None


def since_we_joined(events: Sequence[Json], our_user_id: str) -> Sequence[Json]:
    """The events, oldest first, without those from before we joined."""
    index = our_join(events, our_user_id)
    return events if index is None else events[index + 1 :]


def _membership(content: object) -> object:
    return content.get("membership") if isinstance(content, dict) else None
