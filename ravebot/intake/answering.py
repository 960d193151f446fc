"""Answers to comments: an emoji on the comment, and a reply where there is something to say."""

from __future__ import annotations

from datetime import timedelta

from ravebot.commands.execute import in_full
from ravebot.commands.verbs import Door
from ravebot.gitlab.commands import WORD
from ravebot.gitlab.events import CommentPosted
from ravebot.sandboxes.intents import Outcome
from ravebot.store import outbox
from ravebot.store.database import Transaction
from ravebot.store.targets import Kind, NoteLane

ANSWER_STRANGERS_EVERY = timedelta(hours=1)
"""How often somebody without a role in the project is answered on one merge request: an answer costs two requests of
the bot's rate limit, and anybody may comment in a public project."""
ANSWER_FAILURES_EVERY = timedelta(minutes=1)
"""The same where a request failed, and it may not be known who has a role."""
ACCEPTED, REFUSED = "white_check_mark", "no_entry_sign"


def acknowledge(
    tx: Transaction,
    event: CommentPosted,
    outcome: Outcome,
    *,
    at_most_every: timedelta | None,
    reply: dict[str, object] | None = None,
) -> str:
    """Acknowledge a comment by an emoji. Reply only with `reply` or to an error: the status note shows the rest.

    With `at_most_every`, a person is answered only so often on one merge request. `reply` may name the `discussion`
    that it goes to; without one it is a comment by itself.
    """
    lane = NoteLane(event.ref)
    merge_key = None
    if at_most_every is not None:
        merge_key = f"answer:{lane.text}:{event.author.id}"
        if outbox.acknowledged_lately(tx, merge_key, at_most_every):
            return f"{outcome.message}; not answered, as this person was answered lately"
    emoji = ACCEPTED if outcome.accepted else REFUSED
    outbox.add(tx, lane, Kind.EMOJI, body={"note_id": event.note_id, "emoji": emoji}, merge_key=merge_key)
    if reply is None and not outcome.accepted:
        reply = {"text": in_full(outcome, Door.COMMENT, WORD, "")}
    if reply is not None:
        outbox.add(tx, lane, Kind.REPLY, body={**reply, "username": event.author.username})
    return outcome.message
