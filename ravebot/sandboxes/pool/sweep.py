"""Removes what carries our instance's tag and has no row: at its second sighting, so that nothing half made is hit."""

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
"""The remembered word of `cleanup --adopt`: machines that an empty database met may be swept."""

MACHINE, VOLUME, ADDRESS = "machine", "volume", "address"  # the kinds of sightings


@dataclass(frozen=True)
class Sweep:
    """Looks at every listing, acts after `every` at the earliest."""

    clock: Clock
    database: Database
    provider: Provider
    meter: Meter
    every: timedelta

    async def run(self, listing: Listing) -> None:
        """Remember the first sighting of what has no row; remove what was sighted long enough ago."""
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
            # Half: a sweep that comes a moment early would else put it off for another whole period.
            if first is not None and tx.now - first >= self.every / 2:
                due.append((kind, name))
        return due

    async def remove(self, kind: str, name: str) -> None:
        """Remove one; the sweep tries again when that fails."""
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
    """What of a listing has no row: kind and name."""
    live = machines.live(tx)
    names = {machine.name for machine in live}
    found = {(MACHINE, machine.name) for machine in listing.machines if machine.name not in names}
    listed = names | {machine.name for machine in listing.machines}
    found |= {(VOLUME, volume) for volume in listing.volumes if not any(name in volume for name in listed)}
    found |= {(ADDRESS, mac) for mac in listing.addresses} - {(ADDRESS, machine.mac) for machine in live}
    return frozenset(found)


def must_not_touch(tx: Transaction, listing: Listing) -> bool:
    """Whether an empty database meets machines of its own instance: then a person decides."""
    if not (listing.machines or listing.volumes) or machines.any_ever(tx):
        return False
    return get_meta(tx, ADOPTED) is None
