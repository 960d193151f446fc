"""Corrects stored moments after the clock was set back: one that lies in the future becomes now.

Durations that start there are kept; a pause that began there is over.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from ravebot.sandboxes.model import Machine, Sandbox
from ravebot.sandboxes.observation import Wanted, wanted
from ravebot.store import machines, sandboxes
from ravebot.store.database import Transaction


def any_ahead(state: Wanted, now: datetime) -> bool:
    """Whether a stored moment needs correction; called at every pass."""
    return any(machine.state_since > now for machine in state.machines) or any(
        sandbox.state_since > now
        or (sandbox.stage_started_at is not None and sandbox.stage_started_at > now)
        or (sandbox.ready_at is not None and sandbox.ready_at > now)
        for sandbox in state.sandboxes
    )


def bring_back(tx: Transaction) -> tuple[Sandbox, ...]:
    """Set stored moments that lie in the future to now; returns the sandboxes whose moments were changed."""
    state = wanted(tx)
    for machine in state.machines:
        if (fixed := machine_at(machine, tx.now)) != machine:
            machines.save(tx, fixed)
    changed = []
    for sandbox in state.sandboxes:
        if (moved := sandbox_at(sandbox, tx.now)) != sandbox:
            sandboxes.save(tx, moved)
            changed.append(moved)
    return tuple(changed)


def machine_at(machine: Machine, now: datetime) -> Machine:
    """The machine as it is at `now`."""
    return replace(machine, state_since=min(machine.state_since, now))


def sandbox_at(sandbox: Sandbox, now: datetime) -> Sandbox:
    """The sandbox as it is at `now`: with its whole time before it and warnings to come, if that began later."""
    started, since, expires = sandbox.stage_started_at, sandbox.time_since, sandbox.expires_at
    fixed = replace(
        sandbox,
        created_at=min(sandbox.created_at, now),
        state_since=min(sandbox.state_since, now),
        stage_started_at=min(started, now) if started else None,
        not_before=sandbox.not_before if sandbox.state_since <= now else None,
    )
    if since is None or expires is None or since <= now:
        return fixed
    left = expires - since
    warned = frozenset(threshold for threshold in sandbox.warned if left <= timedelta(seconds=threshold))
    return replace(fixed, ready_at=now if sandbox.ready_at else None, expires_at=now + left, warned=warned)
