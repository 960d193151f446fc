"""Removes what has our instance's tag but no row: at the second sighting, so that nothing half built is removed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import structlog

from ravebot.clock import Clock
from ravebot.errors import RavebotError
from ravebot.providers.base import Listing, Provider
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.model import RAVEBOT, EventKind
from ravebot.store import events, machines, restored
from ravebot.store.database import Database, Transaction, get_meta

log = structlog.get_logger()

ADOPTED = "adopted"
"""Key of the setting that `cleanup --adopt` stores: machines that an empty database does not know may be swept."""

_DECIDE = "run `ravebot cleanup --adopt`, which ends and removes them"
_MOST_NAMED = 3

MACHINE, VOLUME, ADDRESS = "machine", "volume", "address"  # the kinds of sightings


@dataclass(frozen=True)
class Sweep:
    """Checks every listing, and acts after `every` at the earliest."""

    clock: Clock
    database: Database
    provider: Provider
    meter: Meter
    every: timedelta

    async def run(self, listing: Listing) -> None:
        """Record the first sighting of what has no row; remove what was sighted long enough ago."""
        found = await self.database.read(lambda tx: strangers(tx, listing))
        known = await self.database.read(machines.sightings)
        if found or known:
            due = await self.database.write(lambda tx: self._sight(tx, found))
            for kind, name in due:
                try:
                    await self.remove(kind, name)
                except RavebotError as error:  # the others need not wait for it
                    log.warning("orphan could not be removed", kind=kind, name=name, error=str(error))

    def _sight(self, tx: Transaction, found: frozenset[tuple[str, str]]) -> list[tuple[str, str]]:
        for kind, name in machines.sightings(tx) - found:
            machines.forget_sighting(tx, kind, name)
        due = []
        for kind, name in sorted(found):
            first = machines.sighted(tx, kind, name)
            # Half, because a sweep that comes slightly early would otherwise delay it for a whole period.
            if first is not None and tx.now - first >= self.every / 2:
                due.append((kind, name))
        return due

    async def remove(self, kind: str, name: str) -> None:
        """Remove one orphan; the next sweep retries a failure."""
        if kind == MACHINE:
            await self.provider.delete(name)
        elif kind == VOLUME:
            await self.provider.delete_volume(name)
        else:
            await self.provider.delete_address(name)

        def removed(tx: Transaction) -> None:
            machines.forget_sighting(tx, kind, name)
            events.append(tx, EventKind.ORPHAN_REMOVED, RAVEBOT, data={"kind": kind, "name": name})

        await self.database.write(removed)
        self.meter.orphan_removed(kind)
        log.warning("orphan removed", kind=kind, name=name)


def strangers(tx: Transaction, listing: Listing) -> frozenset[tuple[str, str]]:
    """Kind and name of everything in a listing that has no row."""
    live = machines.live(tx)
    names = {machine.name for machine in live}
    found = {(MACHINE, machine.name) for machine in listing.machines if machine.name not in names}
    listed = names | {machine.name for machine in listing.machines}
    found |= {(VOLUME, volume) for volume in listing.volumes if not any(name in volume for name in listed)}
    found |= {(ADDRESS, mac) for mac in listing.addresses} - {(ADDRESS, machine.mac) for machine in live}
    return frozenset(found)


def why_untouched(tx: Transaction, listing: Listing | None) -> str:
    """Why nothing of this instance may be touched until a person decides; empty when the pool may work.

    An empty database, or one that was restored from a backup, does not know what the instance has on the host. An
    unknown machine may also use any address and port, so nothing new is started beside it.
    """
    if restored.is_unsettled(tx):
        if listing is None:
            return f"{_of_backup(tx)}, and what runs can't be listed: nothing is touched or started until it can"
        found = sorted(name for _, name in strangers(tx, listing))
        if not found:
            return ""
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        named = ", ".join(found[:_MOST_NAMED]) + more
        return f"{_of_backup(tx)} and does not know {named}: nothing is touched or started until you {_DECIDE}"
    if listing is None or not (listing.machines or listing.volumes) or machines.any_ever(tx):
        return ""
    if get_meta(tx, ADOPTED) is not None:
        return ""
    return f"machines of this instance exist that its database does not know: {_DECIDE}, or restore the backup"


def _of_backup(tx: Transaction) -> str:
    made_at = restored.made_at(tx)
    return f"the database was restored from a backup of {made_at:%Y-%m-%d %H:%M} UTC"
