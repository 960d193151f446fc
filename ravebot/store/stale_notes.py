"""Status notes on merge requests that this database does not know: those of a lost database or a removed instance.

Each time a database is lost or an instance is replaced by this one, the generation grows by one. A merge request stores
the generation up to which its notes were searched. Generation 0: nothing was ever lost.
"""

from __future__ import annotations

import json

from ravebot.sandboxes.model import MergeRequest, MergeRequestRef
from ravebot.store import merge_requests
from ravebot.store.database import STALE_NOTES, Transaction, dump_json, get_meta, set_meta

_PREDECESSORS = "predecessors"


def expect(tx: Transaction, predecessor: str = "") -> None:
    """Record that there may be notes of a lost database, or of the instance with the id `predecessor`."""
    if predecessor:
        set_meta(tx, _PREDECESSORS, dump_json(sorted({*predecessors(tx), predecessor})))
    set_meta(tx, STALE_NOTES, str(_generation(tx) + 1))


def predecessors(tx: Transaction) -> tuple[str, ...]:
    """The ids of the instances that this one replaced."""
    return tuple(str(one) for one in json.loads(get_meta(tx, _PREDECESSORS) or "[]"))


def to_search(tx: Transaction) -> tuple[MergeRequest, ...]:
    """The open merge requests whose notes are not searched yet. With predecessors, all of them, because a predecessor's
    note may stand beside ours; otherwise those without a known note or sandbox."""
    generation = _generation(tx)
    if not generation:
        return ()
    rows = tx.all(
        "SELECT project_id, iid FROM merge_requests AS mr WHERE note_sought < ? AND state NOT IN ('closed', 'merged')"
        " AND (? OR (note_id IS NULL AND NOT EXISTS (SELECT 1 FROM sandboxes AS s"
        " WHERE s.project_id = mr.project_id AND s.iid = mr.iid))) ORDER BY project_id, iid",
        (generation, bool(predecessors(tx))),
    )
    found = (merge_requests.get(tx, MergeRequestRef(row["project_id"], row["iid"])) for row in rows)
    return tuple(mr for mr in found if mr)


def searched(tx: Transaction, ref: MergeRequestRef) -> None:
    """Record that the notes of that merge request were searched."""
    tx.execute(
        "UPDATE merge_requests SET note_sought = ? WHERE project_id = ? AND iid = ?",
        (_generation(tx), ref.project_id, ref.iid),
    )


def _generation(tx: Transaction) -> int:
    return int(get_meta(tx, STALE_NOTES) or 0)
