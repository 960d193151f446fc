"""What a look at an environment shows, and what follows: who stops or deletes it in GitLab ends its sandbox."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from ravebot.errors import NotFound
from ravebot.gitlab.environments import Environments
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.environments.model import EnvironmentRecord, EnvironmentState, without_environment
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import Actor
from ravebot.store import environments, restored, sandboxes
from ravebot.store.database import Transaction

GITLAB = Actor("gitlab", "somebody")
STOPPED, DELETED = "its environment was stopped in GitLab", "its environment was deleted in GitLab"


@dataclass(frozen=True)
class Sighting:
    """What GitLab said of an environment: `at`, right before it was asked, `sandbox` was the newest one."""

    state: EnvironmentState
    at: datetime
    sandbox: int


async def look(gitlab: Environments, known: EnvironmentRecord, at: datetime, sandbox: int) -> Sighting:
    """Ask for the environment itself. Raises NotFound if its project is not to be seen: that says nothing of it."""
    try:
        found = await gitlab.get(known.ref.project_id, known.environment_id or 0)
    except NotFound:
        await gitlab.find(known.ref.project_id, known.name)
        return Sighting(EnvironmentState.NONE, at, sandbox)
    return Sighting(EnvironmentState.of(found.state), at, sandbox)


def take_note(tx: Transaction, lifecycle: Lifecycle, looked_at: EnvironmentRecord, sighting: Sighting) -> None:
    """Keep what was seen of an environment that should be available. Who stopped or deleted it wants its sandbox ended,
    but only the one with which it was seen available: an earlier stop was of an earlier sandbox."""
    known = environments.get(tx, looked_at.ref)
    if known is None or (known.environment_id, known.state) != (looked_at.environment_id, EnvironmentState.AVAILABLE):
        return  # meanwhile we stopped it ourselves
    if sighting.state is EnvironmentState.AVAILABLE:
        environments.seen(tx, [known.ref], sighting.at, sighting.sandbox)
        return
    gone = sighting.state is EnvironmentState.NONE
    # One that only stops is stopped by us, too: then no job of a pipeline has to end for it.
    after = without_environment(known) if gone else replace(known, state=EnvironmentState.STOPPING)
    environments.save(tx, after)
    environments.touch(tx, known.ref)
    restored_at = restored.seen(tx)  # since the backup was made, we may have stopped it ourselves
    from_before = restored_at is not None and (known.seen_at is None or known.seen_at < restored_at)
    sandbox = sandboxes.current(tx, known.ref)
    if sandbox is not None and sandbox.id <= known.seen_with and not from_before:
        lifecycle.happened(tx, sandbox, Happened.END_ASKED, GITLAB, why=DELETED if gone else STOPPED)
