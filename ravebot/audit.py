"""The event log as the shell shows it, whether the bot runs or not."""

from __future__ import annotations

from pathlib import Path

from ravebot.clock import SystemClock
from ravebot.errors import Refused, StoreError
from ravebot.sandboxes.model import Event, MergeRequestRef
from ravebot.store import events, machines, merge_requests
from ravebot.store.database import Database, Transaction, dump_json
from ravebot.web.operations import AuditLine, AuditReport


def database_path(state_dir: Path) -> Path:
    """Where an instance keeps its database."""
    return state_dir / "ravebot.db"


def report(tx: Transaction, ref: str | None, verify: bool, limit: int) -> AuditReport:
    """The last events of a merge request (`group/app!42`) or of all. Raises Refused for a reference we do not know."""
    found = events.newest(tx, limit) if ref is None else events.of_merge_request(tx, _find(tx, ref), limit)
    lines = tuple([_line(tx, event) for event in found])
    if not verify:
        return AuditReport(lines, events.head(tx))
    checked = events.verify(tx)
    return AuditReport(lines, events.head(tx), checked.rows, checked.broken_at)


async def read_offline(state_dir: Path, ref: str | None, verify: bool, limit: int) -> AuditReport:
    """The same while no bot runs. Raises StoreError where there is no database, or a bot holds it after all."""
    path = database_path(state_dir)
    if not path.is_file():
        raise StoreError(f"there is no database {path}: has ravebot ever run with this state_dir?")
    async with Database(path, SystemClock()) as database:
        return await database.read(lambda tx: report(tx, ref, verify, limit))


def _find(tx: Transaction, ref: str) -> MergeRequestRef:
    project, _, number = ref.rpartition("!")
    known = merge_requests.find(tx, project, int(number)) if project and number.isdecimal() else None
    if known is None:
        raise Refused(f"no merge request {ref} is known here; write one like group/app!42")
    return known.ref


def _line(tx: Transaction, event: Event) -> AuditLine:
    known = merge_requests.get(tx, event.mr) if event.mr else None
    machine = machines.get(tx, event.machine_id) if event.machine_id else None
    return AuditLine(
        id=event.id,
        at=event.at,
        kind=event.kind,
        actor=str(event.actor),
        ref=known.full_ref if known else "",
        machine=machine.name if machine else "",
        detail=dump_json(event.data),
    )
