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
from ravebot.store import events, machines
from ravebot.store.database import Database, Transaction, get_meta

log = structlog.get_logger()

ADOPTED = "adopted"
"""Key of the setting that `cleanup --adopt` stores: machines that an empty database does not know may be swept."""

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
        self.meter.orphan_removed()
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


def must_not_touch(tx: Transaction, listing: Listing) -> bool:
    """Whether the database is empty but its instance has machines: then a person must decide."""
    if not (listing.machines or listing.volumes) or machines.any_ever(tx):
        return False
    return get_meta(tx, ADOPTED) is None
