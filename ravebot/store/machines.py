"""Machines, and sightings of what the provider has but no row describes."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from functools import lru_cache
from typing import Any

from ravebot.clock import from_us
from ravebot.sandboxes.model import Machine, MachineId, MergeRequestRef, SandboxId
from ravebot.store.database import Transaction
from ravebot.store.rows import dump, load


def insert(tx: Transaction, machine: Machine) -> Machine:
    """Store a machine before the provider creates anything; it gets its `id` here."""
    found = get(tx, MachineId(tx.insert("machines", dump(machine, without=("id",)))))
    assert found
    return found


def save(tx: Transaction, machine: Machine) -> None:
    """Write the whole row; `machine` must have been read in this same transaction."""
    tx.upsert("machines", ("id",), dump(machine))


def get(tx: Transaction, machine_id: MachineId | None) -> Machine | None:
    row = tx.one("SELECT * FROM machines WHERE id = ?", (machine_id,))
    return _machines([row])[0] if row else None


def live(tx: Transaction) -> tuple[Machine, ...]:
    """All machines that are not gone."""
    return _machines(tx.all("SELECT * FROM machines WHERE state <> 'gone' ORDER BY id"))


def of_sandbox(tx: Transaction, sandbox_id: SandboxId) -> tuple[Machine, ...]:
    """Every machine that the sandbox ever had, oldest first."""
    rows = tx.all("SELECT * FROM machines WHERE sandbox_id = ? ORDER BY id", (sandbox_id,))
    return _machines(rows)


def newest_of(tx: Transaction, mr: MergeRequestRef, most: int) -> tuple[Machine, ...]:
    """The machines that the merge request's sandboxes had last, newest first."""
    rows = tx.all(
        "SELECT m.* FROM machines m JOIN sandboxes s ON s.id = m.sandbox_id WHERE s.project_id = ? AND s.iid = ?"
        " ORDER BY m.id DESC LIMIT ?",
        (mr.project_id, mr.iid, most),
    )
    return _machines(rows)


def any_ever(tx: Transaction) -> bool:
    return tx.one("SELECT 1 FROM machines LIMIT 1") is not None


def last_address(tx: Transaction) -> str | None:
    """The address assigned last, so that the next machine gets another one."""
    row = tx.one("SELECT address FROM machines ORDER BY id DESC LIMIT 1")
    return str(row["address"]) if row else None


def with_host_key(tx: Transaction, key: str, other_than: MachineId) -> Machine | None:
    """Another live machine that reported the same host key: one reports a false key, or the image contains it."""
    for machine in live(tx):
        if machine.id != other_than and key in machine.host_keys:
            return machine
    return None


def sighted(tx: Transaction, kind: str, name: str) -> datetime | None:
    """Record that something of this instance without a row was seen; returns when that was first, None if it is now.

    If the clock was set back since, it counts as first seen now.
    """
    tx.execute(
        "UPDATE sightings SET first_seen = MIN(first_seen, ?) WHERE kind = ? AND name = ?", (tx.now_us, kind, name)
    )
    row = tx.one("SELECT first_seen FROM sightings WHERE kind = ? AND name = ?", (kind, name))
    if row:
        return from_us(row["first_seen"])
    tx.execute("INSERT INTO sightings (kind, name, first_seen) VALUES (?, ?, ?)", (kind, name, tx.now_us))
    return None


def sightings(tx: Transaction) -> frozenset[tuple[str, str]]:
    return frozenset((row["kind"], row["name"]) for row in tx.all("SELECT kind, name FROM sightings"))


def forget_sighting(tx: Transaction, kind: str, name: str) -> None:
    tx.execute("DELETE FROM sightings WHERE kind = ? AND name = ?", (kind, name))


def _machines(rows: list[sqlite3.Row]) -> tuple[Machine, ...]:
    names = tuple(rows[0].keys()) if rows else ()
    return tuple(_machine(names, tuple(row)) for row in rows)


@lru_cache(maxsize=4096)  # every pass reads all live rows, and most have not changed
def _machine(names: tuple[str, ...], values: tuple[Any, ...]) -> Machine:
    return load(Machine, dict(zip(names, values, strict=True)))
