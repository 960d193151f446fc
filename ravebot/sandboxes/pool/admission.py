"""Admits queued sandboxes: a machine's row, an address and ports, all in one transaction."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from ravebot.clock import Clock
from ravebot.config.model import Config
from ravebot.providers.base import HostUsage, Provider
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.lifecycle import Allocation, Lifecycle
from ravebot.sandboxes.model import Machine, MachineId, MachineState, Sandbox
from ravebot.sandboxes.naming import names
from ravebot.sandboxes.observation import Wanted, wanted
from ravebot.sandboxes.pool import plan, trials
from ravebot.store import images, machines, sandboxes
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()


@dataclass(frozen=True)
class Admission:
    """Admits sandboxes that have a place. `busy_ports` returns the host's ports that other programs use."""

    config: Config
    clock: Clock
    database: Database
    provider: Provider
    lifecycle: Lifecycle
    meter: Meter
    busy_ports: Callable[[], Awaitable[frozenset[int]]]

    async def run(self, state: Wanted) -> bool:
        """One pass over the queue; whether a sandbox was admitted."""
        now = self.clock.now()
        if not plan.admit(state.sandboxes, state.machines, self.config.pool.max_running, now):
            return False
        host = await self.provider.host()
        self.meter.capacity_seen(host.memory_available_bytes, host.disk_free_bytes, host.disk_promised_bytes)
        busy = await self.busy_ports()
        built_from = await asyncio.to_thread(trials.fingerprint, self.config, now)
        return await self.database.write(lambda tx: self._admit(tx, host, busy, built_from))

    def _admit(self, tx: Transaction, host: HostUsage, busy: frozenset[int], built_from: str) -> bool:
        state = wanted(tx)
        running = list(state.machines)
        admitted = False
        for sandbox in plan.admit(state.sandboxes, state.machines, self.config.pool.max_running, tx.now):
            record = images.get(tx, str(self.config.provider.image))
            waits = record.held and not trials.may_try(record, built_from, running, tx.now)
            why = record.wait_reason if waits else self._shortage(host, running)
            if not why:
                machine = self._place(tx, sandbox, busy)
                if machine is not None:
                    trials.begun(tx, record, built_from)
                    running.append(machine)
                    admitted = True
                    continue
                why = "every port or address is taken"
            self.lifecycle.wait(tx, sandbox, why)
            break  # first in, first out: no sandbox passes one that waits for the host
        return admitted

    def _shortage(self, host: HostUsage, running: list[Machine]) -> str:
        # Until it boots, the host's figures may lack its disk; until then it may count twice.
        fresh = [machine for machine in running if machine.booted_at is None]
        promised = host.disk_promised_bytes + sum(machine.disk_bytes for machine in fresh)
        left = replace(host, disk_promised_bytes=promised)
        return plan.shortage(left, running, self.config.sandbox.memory, self.config.sandbox.disk)

    def _place(self, tx: Transaction, sandbox: Sandbox, busy: frozenset[int]) -> Machine | None:
        settings = self.config.sandbox
        last_use = sandboxes.last_use_of_ports(tx)
        live = sandboxes.live(tx)
        taken = busy | {port for one in live for port in (one.ssh_port, one.web_port) if port}
        ssh_port = plan.pick_port(settings.ssh_ports.ports, taken, last_use)
        web_port = plan.pick_port(settings.web_ports.ports, taken, last_use)
        addresses = frozenset(machine.address for machine in machines.live(tx))
        subnet = self.config.provider.bridge.subnet
        address = plan.pick_address(ipaddress.IPv4Network(subnet), addresses, machines.last_address(tx))
        if ssh_port is None or web_port is None or address is None:
            return None
        fresh = names(self.config.instance, os.urandom(16))
        machine = Machine(
            id=MachineId(0),
            name=fresh.name,
            uuid=fresh.uuid,
            state=MachineState.BUILDING,
            image=str(self.config.provider.image),
            address=address,
            mac=fresh.mac,
            tap=fresh.tap,
            created_at=tx.now,
            state_since=tx.now,
            memory_bytes=settings.memory,
            disk_bytes=settings.disk,
        )
        self.lifecycle.happened(tx, sandbox, Happened.MACHINE_READY, allocation=Allocation(machine, ssh_port, web_port))
        return machine
