"""The weekly news of the event log's newest hash: whoever keeps it can tell later whether the log was changed."""

from __future__ import annotations

from ravebot.matrix.content import Content, message, words
from ravebot.operations.weekly import Week
from ravebot.store import events
from ravebot.store.database import Transaction


def render_head(tx: Transaction, week: Week) -> Content | None:
    """The message about the log as it is now; None while there are no events."""
    count, head = events.newest_id(tx), events.head(tx)
    if not count:
        return None
    what = f"{count} events, the newest with" if count > 1 else "1 event, with"
    text = (
        f"For the record, after the week {week}: the event log has {what} the hash `{head}`.\n"
        "As long as nobody changes or removes one of them, that hash is in what `ravebot audit --export -` prints."
    )
    return message([words(text)])
