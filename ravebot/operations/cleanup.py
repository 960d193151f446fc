"""`ravebot cleanup`: ends sandboxes and removes leftovers, together with the running bot or without it."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from ravebot.clock import SystemClock
from ravebot.config.file import LoadedConfig
from ravebot.errors import MachineNotFound, RavebotError, Refused, StoreError
from ravebot.operations import hostlock
from ravebot.operations.offline import database_path
from ravebot.operations.reports import CleanupReport, Strangers
from ravebot.parts import Core, make_core, make_firewall, make_gitlab, make_provider
from ravebot.providers.base import Provider
from ravebot.sandboxes.decide import Do, Happened
from ravebot.sandboxes.model import Actor, Machine, MachineState, Observed, Sandbox, SandboxState
from ravebot.sandboxes.pool.sweep import ADDRESS, ADOPTED, MACHINE, VOLUME, strangers, why_untouched
from ravebot.store import machines, merge_requests, restored, sandboxes, stale_notes, swap
from ravebot.store.database import Database, Transaction, instance_id_path, set_meta
from ravebot.web.metrics import Metrics

Progress = Callable[[str], None]
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Wish:
    """What to clean up. `force`: guests are not asked to shut down first."""

    older_than: timedelta | None
    everything: bool
    force: bool
    adopt: bool
    actor: Actor

    @property
    def orphans_too(self) -> bool:
        return self.everything or self.adopt

    def matches(self, sandbox: Sandbox, age: timedelta) -> bool:
        if sandbox.state is SandboxState.ENDED:
            return False
        return self.everything or (self.older_than is not None and age >= self.older_than)


@dataclass(frozen=True)
class Cleaner:
    """Cleans up one instance. If the bot runs, its pool takes the machines down; otherwise this class does."""

    database: Database
    core: Core
    provider: Provider

    async def beside_bot(self, wish: Wish, patience: timedelta) -> CleanupReport:
        """Mark, let the pool work, and report when the machines are gone or `patience` is over.

        Raises Refused while a restored database does not know machines that the wish leaves alone.
        """
        if not wish.orphans_too:
            await self._refuse_undecided()
        ended, affected = await self.database.write(lambda tx: self._mark(tx, wish))
        failed: list[str] = []
        for machine in affected if wish.force else ():
            try:
                await self.provider.destroy(machine.name)
            except RavebotError as error:
                failed.append(f"{machine.name}: {error}")
        orphans = await self._orphans(wish)  # first, because the pool may wait for that decision
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience.total_seconds()
        left = {machine.id: machine.name for machine in affected}
        while left and loop.time() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            live = {machine.id for machine in await self.database.read(machines.live)}
            left = {machine_id: name for machine_id, name in left.items() if machine_id in live}
        gone = [machine.name for machine in affected if machine.id not in left]
        kept = tuple(f"{name} is still being taken down" for name in left.values())
        if wish.everything and kept:
            kept = (*kept, "network, storage pool and firewall, because machines are left: run it again later")
        report = replace(
            orphans,
            ended=ended,
            machines=(*gone, *orphans.machines),
            kept=kept,
            failed=(*failed, *orphans.failed),
        )
        return await self._remove_shared(report) if wish.everything and not kept else report

    async def _remove_shared(self, report: CleanupReport) -> CleanupReport:
        """Remove what machines share, if all machines are gone. A running bot makes it again for the next one."""
        shared: list[str] = []
        try:
            if not report.failed:
                shared += await self.core.guard.remove()
                shared += await self.provider.remove()
        except RavebotError as error:
            report = replace(report, failed=(str(error),))
        return replace(report, shared=tuple(shared))

    async def alone(self, wish: Wish, grace: timedelta, progress: Progress) -> CleanupReport:
        """Mark and take down, while the bot is down. Raises Refused as `beside_bot` does."""
        await self.provider.list()  # raises Unavailable before anything is marked
        if not wish.orphans_too:
            await self._refuse_undecided()
        ended, affected = await self.database.write(lambda tx: self._mark(tx, wish))
        for ref in ended:
            progress(f"{ref}: ending")
        gone: list[str] = []
        failed: list[str] = []
        stopping = [
            machine for machine in await self.database.read(machines.live) if machine.state is MachineState.STOPPING
        ]
        for machine in {one.id: one for one in (*affected, *stopping)}.values():
            progress(f"{machine.name}: taking down")
            try:
                await self._take_down(machine, timedelta(0) if wish.force else grace)
                gone.append(machine.name)
            except RavebotError as error:
                failed.append(f"{machine.name}: {error}")
        orphans = await self._orphans(wish)
        for name in (*orphans.machines, *orphans.volumes, *orphans.addresses):
            progress(f"{name}: removed, because it belonged to no sandbox")
        report = replace(orphans, ended=ended, machines=(*gone, *orphans.machines), failed=(*failed, *orphans.failed))
        return await self._remove_shared(report) if wish.everything else report

    async def _refuse_undecided(self) -> None:
        """Taking a machine down updates the firewall to what is known."""
        if await self.database.read(restored.is_unsettled):
            listing = await self.provider.list()
            if why := await self.database.read(lambda tx: why_untouched(tx, listing)):
                raise Refused(f"{why}; add --adopt to this command")

    def _mark(self, tx: Transaction, wish: Wish) -> tuple[tuple[str, ...], list[Machine]]:
        """End the sandboxes that match; returns their references, and the machines to take down."""
        ended: list[str] = []
        affected: list[Machine] = []
        for sandbox in sandboxes.live(tx):
            if not wish.matches(sandbox, tx.now - sandbox.created_at):
                continue
            mr = merge_requests.get(tx, sandbox.mr)
            assert mr
            machine = machines.get(tx, sandbox.machine_id)
            self.core.lifecycle.happened(tx, sandbox, Happened.END_ASKED, wish.actor, why="cleaned up")
            ended.append(mr.full_ref)
            if machine and machine.state is not MachineState.GONE:
                affected.append(machine)
        # Also machines whose sandbox has ended or moved to another machine.
        return tuple(ended), list(machines.live(tx)) if wish.everything else affected

    async def _take_down(self, machine: Machine, grace: timedelta) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace.total_seconds()
        actions = self.core.pool.actions
        await actions.health.sample(machine)  # nobody did since the bot went down
        if grace:
            with suppress(MachineNotFound):  # it was never made
                await self.provider.shutdown(machine.name)
        while loop.time() < deadline and await self._runs(machine):
            await asyncio.sleep(_POLL_SECONDS)
        await self.provider.destroy(machine.name)
        await actions.perform(Do.FORGET, machine)

    async def _runs(self, machine: Machine) -> bool:
        listing = await self.provider.list()
        return any(one.name == machine.name and one.state is not Observed.OFF for one in listing.machines)

    async def _orphans(self, wish: Wish) -> CleanupReport:
        """Remove what has our tag and no row. No second sighting is needed, because a person asked for it."""
        if not wish.orphans_too:
            return CleanupReport()
        found = await find_strangers(self.database, self.provider)
        failed: list[str] = []
        done: dict[str, list[str]] = {MACHINE: [], VOLUME: [], ADDRESS: []}
        for kind, names in ((MACHINE, found.machines), (VOLUME, found.volumes), (ADDRESS, found.addresses)):
            for name in names:
                try:
                    await self.core.pool.sweep.remove(kind, name)
                    done[kind].append(name)
                except RavebotError as error:
                    failed.append(f"{name}: {error}")
        if not failed:  # otherwise a person would have to repeat the request before the rest may be removed
            await self.database.write(_record_adoption)
        return CleanupReport(
            machines=tuple(done[MACHINE]),
            volumes=tuple(done[VOLUME]),
            addresses=tuple(done[ADDRESS]),
            failed=tuple(failed),
        )


def _record_adoption(tx: Transaction) -> None:
    """Record that an adoption is complete: from now on the sweep may remove unknown things, and status notes of a lost
    database are searched for."""
    set_meta(tx, ADOPTED, "yes")
    restored.settle(tx)
    if not machines.any_ever(tx):  # the last database may have been lost, with the ids of its notes
        stale_notes.expect(tx)


async def find_strangers(database: Database, provider: Provider) -> Strangers:
    """What has our tag and no row at this moment."""
    listing = await provider.list()
    found = sorted(await database.read(lambda tx: strangers(tx, listing)))

    def named(kind: str) -> tuple[str, ...]:
        return tuple(name for of, name in found if of == kind)

    return Strangers(named(MACHINE), named(VOLUME), named(ADDRESS))


async def strangers_offline(loaded: LoadedConfig) -> Strangers:
    """The same while the bot is down. Raises StoreError as `cleanup` does."""
    async with _database(loaded) as database:
        provider = make_provider(loaded.config, database.instance_id)
        try:
            return await find_strangers(database, provider)
        finally:
            await provider.close()


async def replace_instance_offline(loaded: LoadedConfig, instance_id: str) -> bool:
    """Record that this instance replaces that one, so that its status notes are corrected; False without a database."""
    if not (database_path(loaded.config.state_dir).exists() or swap.is_pending(loaded.config.state_dir)):
        return False
    async with _database(loaded) as database:
        await database.write(lambda tx: stale_notes.expect(tx, instance_id))
    return True


async def cleanup(
    loaded: LoadedConfig,
    older_than: timedelta | None,
    everything: bool,
    force: bool,
    adopt: bool,
    progress: Progress,
) -> CleanupReport:
    """Clean up while the bot is down. Raises StoreError or Refused if it runs, StoreError without an installation."""
    config, clock = loaded.config, SystemClock()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(_database(loaded))
        stack.enter_context(hostlock.held(database.instance_id))
        provider = make_provider(config, database.instance_id)
        stack.push_async_callback(provider.close)
        firewall = make_firewall(config, database.instance_id, clock)
        stack.push_async_callback(firewall.close)
        gitlab = make_gitlab(loaded, clock)
        stack.push_async_callback(gitlab.close)
        core = make_core(config, database, clock, provider, firewall, gitlab, Metrics())
        wish = Wish(older_than, everything, force, adopt, Actor("shell", getpass.getuser()))
        return await Cleaner(database, core, provider).alone(wish, config.pool.shutdown_grace, progress)


def _database(loaded: LoadedConfig) -> Database:
    """The installation's database. Raises StoreError without it and an instance-id: state_dir may be mistyped."""
    path, state_dir = database_path(loaded.config.state_dir), loaded.config.state_dir
    if not (path.exists() or instance_id_path(state_dir).exists() or swap.is_pending(state_dir)):
        raise StoreError(f"there is neither {path} nor an instance-id beside it: is state_dir right?")
    return Database(path, SystemClock())
