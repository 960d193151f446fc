"""Status notes that this database does not know, of a state that was lost or of an instance that was cleaned away.

Each time a state is lost or another instance removed, the generation grows by one. A merge request stores the
generation up to which its notes were searched. Generation 0: nothing was ever lost.
"""

from __future__ import annotations

import json

from ravebot.sandboxes.model import MergeRequest, MergeRequestRef
from ravebot.store import merge_requests
from ravebot.store.database import STALE_NOTES, Transaction, dump_json, get_meta, set_meta

_PREDECESSORS = "predecessors"


def expect(tx: Transaction, predecessor: str = "") -> None:
    """There may be notes of an earlier state of ours, or of the instance of that id, whose machines are gone."""
    if predecessor:
        set_meta(tx, _PREDECESSORS, dump_json(sorted({*predecessors(tx), predecessor})))
    set_meta(tx, STALE_NOTES, str(_generation(tx) + 1))


def predecessors(tx: Transaction) -> tuple[str, ...]:
    """The ids of the instances whose place this one took."""
    return tuple(str(one) for one in json.loads(get_meta(tx, _PREDECESSORS) or "[]"))


def to_search(tx: Transaction) -> tuple[MergeRequest, ...]:
    """The open merge requests whose notes are still to be searched: those that have neither note nor sandbox that we
    know of, and all while there are predecessors, whose notes stand beside ours."""
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
