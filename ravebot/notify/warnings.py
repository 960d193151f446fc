"""Whether a warning that waited in the outbox is still true: it pings its owner, so it had better be."""

from __future__ import annotations

from ravebot.sandboxes.model import Sandbox, SandboxState
from ravebot.store import outbox
from ravebot.store.database import Transaction
from ravebot.store.outbox import Message


def is_due(tx: Transaction, message: Message, sandbox: Sandbox) -> bool:
    """Not when it ended, when an extension took back the threshold (in seconds) that the row names, or when a later
    warning waits behind it."""
    running = sandbox.state in (SandboxState.STARTING, SandboxState.READY)
    return running and message.body.get("threshold") in sandbox.warned and not outbox.superseded(tx, message)
