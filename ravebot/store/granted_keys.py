"""Whose SSH keys a machine was last made to let in, and lost ones whose sessions may be open still."""

from __future__ import annotations

from collections.abc import Mapping

from ravebot.sandboxes.model import MachineId
from ravebot.store.database import Transaction


def of_machine(tx: Transaction, machine_id: MachineId) -> dict[str, str]:
    """Each key with the name of its owner."""
    rows = tx.all("SELECT key, whose FROM granted_keys WHERE machine_id = ? ORDER BY key", (machine_id,))
    return {row["key"]: row["whose"] for row in rows}


def save(tx: Transaction, machine_id: MachineId, keys: Mapping[str, str]) -> None:
    """These are all."""
    forget(tx, machine_id)
    for key, whose in keys.items():
        tx.execute("INSERT INTO granted_keys (machine_id, key, whose) VALUES (?, ?, ?)", (machine_id, key, whose))


def forget(tx: Transaction, machine_id: MachineId) -> None:
    """The machine is gone."""
    tx.execute("DELETE FROM granted_keys WHERE machine_id = ?", (machine_id,))
