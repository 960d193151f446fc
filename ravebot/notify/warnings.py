"""Whether a warning that waited in the outbox is still true; it notifies the owner, so a false one is not sent."""

from __future__ import annotations

from ravebot.sandboxes.model import Sandbox, SandboxState
from ravebot.store import outbox
from ravebot.store.database import Transaction
from ravebot.store.outbox import Message
from ravebot.store.targets import Kind


def is_due(tx: Transaction, message: Message, sandbox: Sandbox) -> bool:
    """False if the sandbox ended, if an extension withdrew the threshold (in seconds) that the row names, or if a later
    warning waits behind it."""
    running = sandbox.state in (SandboxState.STARTING, SandboxState.READY)
    given = message.body.get("threshold") in sandbox.warned
    return running and given and not (message.kind is Kind.WARNING and outbox.superseded(tx, message))
