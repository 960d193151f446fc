"""What one pass of the pool's loop sees: the database and the provider, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ravebot.access.rules import GUEST_SSH_PORT, Forward, Guest, Rules, Service
from ravebot.providers.base import Listing
from ravebot.sandboxes.model import Machine, MachineId, MachineState, Observed, Sandbox, SandboxId, SandboxState
from ravebot.store import machines, sandboxes
from ravebot.store.database import Transaction


@dataclass(frozen=True)
class Wanted:
    """What should exist, by the database; both in the order of their ids."""

    sandboxes: tuple[Sandbox, ...]
    machines: tuple[Machine, ...]

    @property
    def by_id(self) -> Mapping[SandboxId, Sandbox]:
        return {sandbox.id: sandbox for sandbox in self.sandboxes}


def wanted(tx: Transaction) -> Wanted:
    return Wanted(sandboxes.live(tx), machines.live(tx))


def observed(listing: Listing | None) -> Mapping[str, Observed]:
    """The state of every machine that was seen, by name; ask it with `state_of`."""
    return {machine.name: machine.state for machine in listing.machines} if listing else {}


def state_of(machine: Machine, seen: Mapping[str, Observed], listing: Listing | None) -> Observed:
    """After a failed listing every machine is unknown, and none is absent."""
    if listing is None:
        return Observed.UNKNOWN
    return seen.get(machine.name, Observed.ABSENT)


def rules(state: Wanted, web_port: int, without: frozenset[MachineId] = frozenset()) -> Rules:
    """What the firewall should hold: every machine that is not gone, and the ports of the open sandboxes."""
    guests = frozenset(
        Guest(machine.tap, machine.mac, machine.address) for machine in state.machines if machine.id not in without
    )
    leased = {
        machine.id: machine
        for machine in state.machines
        if machine.state is MachineState.LEASED and machine.id not in without
    }
    forwards: set[Forward] = set()
    for sandbox in state.sandboxes:
        machine = leased.get(sandbox.machine_id) if sandbox.machine_id else None
        if machine is None or not sandbox.ports_open or sandbox.state is SandboxState.STOPPING:
            continue
        assert sandbox.ssh_port
        assert sandbox.web_port
        forwards.add(Forward(Service.SSH, sandbox.ssh_port, machine.address, GUEST_SSH_PORT))
        if sandbox.web_open:
            forwards.add(Forward(Service.WEB, sandbox.web_port, machine.address, web_port))
    return Rules(guests, frozenset(forwards))
