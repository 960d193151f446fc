"""`ravebot cleanup --instance-id`: removes what another instance left on this host when its state folder was lost.

Only its id is known. What carries that id in libvirt and nftables is removed. The bridges and folders are those named
there, not those of this installation's configuration.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from ravebot.access.nftables.nft import NetworkTools
from ravebot.access.nftables.remains import FirewallHoldings, FirewallRemains
from ravebot.config.model import Config
from ravebot.errors import RavebotError, Refused
from ravebot.operations import hostlock
from ravebot.operations.reports import CleanupReport, RemainingMachine, RemainsReport
from ravebot.parts import make_remains
from ravebot.providers import base
from ravebot.sandboxes.model import Observed
from ravebot.store.database import instance_id_path

_STATES = {Observed.AGENT_SILENT: "running", Observed.AGENT_ANSWERS: "running"}


async def look(config: Config, instance_id: str) -> RemainsReport:
    """Find what there is; changes nothing. Raises Refused, Unavailable."""
    _refuse_own_id(config, instance_id)
    provider, firewall = make_remains(config, instance_id), _firewall(config, instance_id)
    try:
        held, rules = await _look(provider, firewall)
    finally:
        await provider.close()
    return RemainsReport(
        instance_id=instance_id,
        bot=hostlock.holder(instance_id) or "",
        machines=tuple(
            RemainingMachine(machine.name, _STATES.get(machine.state, machine.state.value)) for machine in held.machines
        ),
        volumes=held.volumes,
        addresses=held.addresses,
        shared=(*held.networks, *held.pools, *rules.tables, *rules.rules),
    )


async def remove(config: Config, instance_id: str, progress: Callable[[str], None]) -> CleanupReport:
    """End and remove all of it. Raises Unavailable, and Refused, also while that instance's bot runs."""
    _refuse_own_id(config, instance_id)
    with hostlock.held(instance_id):
        provider, firewall = make_remains(config, instance_id), _firewall(config, instance_id)
        try:
            held, rules = await _look(provider, firewall)
            report = await _remove_guests(provider, held, progress)
            if report.failed:  # machines that still run need the firewall
                return replace(report, kept=(*held.networks, *held.pools, *rules.tables, *rules.rules))
            shared: list[str] = []
            try:
                shared += await provider.remove()
                shared += await firewall.remove(rules)
            except RavebotError as error:
                report = replace(report, failed=(str(error),))
            return replace(report, addresses=held.addresses if shared else (), shared=tuple(shared))
        finally:
            await provider.close()


async def _remove_guests(provider: base.Remains, held: base.Holdings, progress: Callable[[str], None]) -> CleanupReport:
    """End the machines, then, if all of them are gone, remove the disks."""
    failed: list[str] = []

    async def each(names: Iterable[str], delete: Callable[[str], Awaitable[None]]) -> tuple[str, ...]:
        done = []
        for name in names:
            progress(f"{name}: removing")
            try:
                await delete(name)
                done.append(name)
            except RavebotError as error:
                failed.append(f"{name}: {error}")
        return tuple(done)

    machines = await each((machine.name for machine in held.machines), provider.delete)
    volumes = () if failed else await each(held.volumes, provider.delete_volume)
    return CleanupReport(machines=machines, volumes=volumes, failed=tuple(failed))


async def _look(provider: base.Remains, firewall: FirewallRemains) -> tuple[base.Holdings, FirewallHoldings]:
    held = await provider.look()
    return held, await firewall.look(held.bridges)


def _firewall(config: Config, instance_id: str) -> FirewallRemains:
    return FirewallRemains(instance_id, NetworkTools(), config.sandbox)


def _refuse_own_id(config: Config, instance_id: str) -> None:
    path = instance_id_path(config.state_dir)
    if path.exists() and path.read_text("ascii", "replace").strip() == instance_id:
        raise Refused(
            f"{instance_id} is the id of this installation itself: run `ravebot cleanup --all --force` without"
            " --instance-id, which also records what ended"
        )
