"""A change to one machine's row, in a transaction of its own."""

from __future__ import annotations

from collections.abc import Callable

from ravebot.sandboxes.model import Machine, MachineState, MergeRequest, Sandbox
from ravebot.store import machines, merge_requests, sandboxes
from ravebot.store.database import Database, Transaction


async def change(database: Database, machine: Machine, step: Callable[[Transaction, Machine], None]) -> None:
    """Run `step` with the machine as it is now; not at all when it is gone."""

    def write(tx: Transaction) -> None:
        fresh = machines.get(tx, machine.id)
        if fresh and fresh.state is not MachineState.GONE:
            step(tx, fresh)

    await database.write(write)


def sandbox_on(tx: Transaction, machine: Machine) -> Sandbox | None:
    """The sandbox that has this machine now; None when it has another by now, or none."""
    sandbox = sandboxes.get(tx, machine.sandbox_id) if machine.sandbox_id else None
    return sandbox if sandbox and sandbox.machine_id == machine.id else None


def sandbox_and_merge_request(tx: Transaction, machine: Machine) -> tuple[Sandbox, MergeRequest] | tuple[None, None]:
    sandbox = sandbox_on(tx, machine)
    mr = merge_requests.get(tx, sandbox.mr) if sandbox else None
    return (sandbox, mr) if sandbox and mr else (None, None)
