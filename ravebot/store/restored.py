"""What a database remembers of having been restored from a backup: it does not know what happened since.

Two things follow. What the instance has on the host and the database does not know is left alone until a person decides
(`unsettled`). And commands from before the restore are not carried out, since many were carried out before (`since`).
"""

from __future__ import annotations

import json
from datetime import datetime

from ravebot.clock import from_us, to_us
from ravebot.sandboxes.model import Actor, EventKind
from ravebot.store import api_tokens, events, stale_notes
from ravebot.store.database import Transaction, dump_json, get_meta, set_meta

_RESTORED = "restored"
_UNSETTLED = "restored_unsettled"
TOO_OLD = "not carried out: it was said before the state was restored from a backup"
"""The outcome of such a command."""


def mark(tx: Transaction, made_at: datetime, head: str, actor: Actor) -> None:
    """Record that this database is a backup of `made_at`, restored now. Works with every version of the database."""
    set_meta(tx, _RESTORED, dump_json({"at": tx.now_us, "made_at": to_us(made_at)}))
    set_meta(tx, _UNSETTLED, "yes")
    tx.execute("DELETE FROM sightings")  # from before the backup: the next sighting is a first one
    stale_notes.expect(tx)  # notes that were posted since the backup was made
    api_tokens.end_all(tx)  # which of them were revoked since is not known
    data: dict[str, object] = {"backup_of": f"{made_at:%Y-%m-%dT%H:%M:%SZ}", "head": head}
    events.append(tx, EventKind.STATE_RESTORED, actor, data=data)


def since(tx: Transaction) -> datetime | None:
    """When the database was last restored; None if it never was. Needs a transaction that may write.

    A moment in the future means that the clock was set back: it counts as now from then on, or no command would be
    carried out until it comes.
    """
    found = get_meta(tx, _RESTORED)
    if not found:
        return None
    known = json.loads(found)
    if int(known["at"]) > tx.now_us:
        known["at"] = tx.now_us
        set_meta(tx, _RESTORED, dump_json(known))
    return from_us(int(known["at"]))


def seen(tx: Transaction) -> datetime | None:
    """The same for a transaction that only reads: None also while that moment lies in the future."""
    found = get_meta(tx, _RESTORED)
    at = int(json.loads(found)["at"]) if found else None
    return from_us(at) if at is not None and at <= tx.now_us else None


def made_at(tx: Transaction) -> datetime | None:
    """When the backup was made from which the database was last restored."""
    found = get_meta(tx, _RESTORED)
    return from_us(int(json.loads(found)["made_at"])) if found else None


def is_unsettled(tx: Transaction) -> bool:
    """Whether nobody has decided yet about what the restored database does not know."""
    return get_meta(tx, _UNSETTLED) is not None


def settle(tx: Transaction) -> None:
    """Record that nothing unknown is there, or that a person decided to remove it."""
    tx.execute("DELETE FROM meta WHERE key = ?", (_UNSETTLED,))
