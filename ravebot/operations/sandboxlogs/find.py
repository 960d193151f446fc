"""Which machines a merge request's sandboxes had lately, and what set-up and tests printed, by the database."""

from __future__ import annotations

from pathlib import Path

from ravebot.clock import SystemClock
from ravebot.commands import refs
from ravebot.errors import Refused
from ravebot.operations.offline import opened
from ravebot.operations.reports import LogsReport
from ravebot.store import machines, merge_requests, sandboxes
from ravebot.store.database import Transaction

_MOST_MACHINES = 5


def find(tx: Transaction, ref: str) -> LogsReport:
    """Of its newest sandbox and those before it. Raises Refused for an unknown merge request."""
    try:
        named = refs.read_full(ref)
    except ValueError as error:
        raise Refused(str(error)) from error
    known = merge_requests.find(tx, named.project_path, named.iid)
    if known is None:
        raise Refused(refs.unknown(named))
    sandbox = sandboxes.latest(tx, known.ref)
    return LogsReport(
        ref=known.full_ref,
        state=sandbox.status if sandbox else "",
        machines=tuple(machine.name for machine in machines.newest_of(tx, known.ref, _MOST_MACHINES)),
        runs=sandboxes.printed(tx, known.ref),
    )


async def find_offline(state_dir: Path, ref: str) -> LogsReport:
    """`find`, while no bot runs. Raises StoreError if there is no database, or if a bot uses it after all."""
    async with opened(state_dir, SystemClock()) as database:
        return await database.read(lambda tx: find(tx, ref))
