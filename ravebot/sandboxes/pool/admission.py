"""Admits queued sandboxes: a machine's row, an address and ports, all in one transaction."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import structlog

from ravebot.clock import Clock
from ravebot.config.model import Config
from ravebot.providers.base import HostUsage, Provider
from ravebot.sandboxes import settings
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.lifecycle import Allocation, Lifecycle
from ravebot.sandboxes.model import Machine, MachineId, MachineState, Sandbox
from ravebot.sandboxes.naming import names
from ravebot.sandboxes.observation import Wanted, wanted
from ravebot.sandboxes.pool import plan, trials
from ravebot.sandboxes.settings import SandboxSettings
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
        built_from = await asyncio.to_thread(trials.fingerprints, self.config, now)
        return await self.database.write(lambda tx: self._admit(tx, host, busy, built_from))

    def _admit(self, tx: Transaction, host: HostUsage, busy: frozenset[int], built_from: Mapping[str, str]) -> bool:
        state = wanted(tx)
        running = list(state.machines)
        most = self.config.pool.max_running
        admitted = False
        for sandbox in plan.admit(state.sandboxes, (), len(state.sandboxes), tx.now):
            if len(running) >= most:
                break
            asked = settings.of_sandbox(tx, self.config, sandbox)
            if asked.image_failed:
                continue  # it is about to end
            if asked.image_waits:
                self.lifecycle.wait(tx, sandbox, asked.image_waits)
                continue
            record = images.get(tx, asked.image_key)
            fresh = built_from.get(asked.image_key, "")
            if record.held and not trials.may_try(record, fresh, running, tx.now):
                self.lifecycle.wait(tx, sandbox, record.wait_reason)
                continue  # what waits for another image may go on
            why = self._shortage(host, running, asked)
            if not why:
                machine = self._place(tx, sandbox, busy, asked)
                if machine is not None:
                    trials.begun(tx, record, fresh)
                    running.append(machine)
                    admitted = True
                    continue
                self.lifecycle.wait(tx, sandbox, "every port or address is taken")
                break
            if too_large := self._too_large(host, running, asked):
                self.lifecycle.wait(tx, sandbox, too_large)
                continue
            large = self._is_large(asked)
            if large and plan.may_be_passed(sandbox, tx.now):
                self.lifecycle.wait(tx, sandbox, f"{why}; smaller ones may start before it for a while")
                continue
            self.lifecycle.wait(tx, sandbox, f"room is kept for it, since {why}" if large else why)
            break  # first in, first out: nobody else passes one that waits for the host
        return admitted

    def _shortage(self, host: HostUsage, running: list[Machine], asked: SandboxSettings) -> str:
        # Until it boots, the host's figures may lack its disk; until then it may count twice.
        fresh = [machine for machine in running if machine.booted_at is None]
        promised = host.disk_promised_bytes + sum(machine.disk_bytes for machine in fresh)
        left = replace(host, disk_promised_bytes=promised)
        return plan.shortage(left, running, asked.memory, asked.disk)

    def _too_large(self, host: HostUsage, running: list[Machine], asked: SandboxSettings) -> str:
        """Of one that is larger than usual: why it would hold up the others for ever."""
        return plan.too_large(host, running, asked.memory, asked.disk) if self._is_large(asked) else ""

    def _is_large(self, asked: SandboxSettings) -> bool:
        usual = self.config.sandbox
        return asked.memory > usual.memory or asked.disk > usual.disk

    def _place(self, tx: Transaction, sandbox: Sandbox, busy: frozenset[int], asked: SandboxSettings) -> Machine | None:
        ports = self.config.sandbox
        last_use = sandboxes.last_use_of_ports(tx)
        live = sandboxes.live(tx)
        taken = busy | {port for one in live for port in (one.ssh_port, one.web_port) if port}
        ssh_port = plan.pick_port(ports.ssh_ports.ports, taken, last_use)
        web_port = plan.pick_port(ports.web_ports.ports, taken, last_use)
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
            image=asked.image_key,
            address=address,
            mac=fresh.mac,
            tap=fresh.tap,
            created_at=tx.now,
            state_since=tx.now,
            memory_bytes=asked.memory,
            disk_bytes=asked.disk,
            vcpus=asked.vcpus,
        )
        self.lifecycle.happened(tx, sandbox, Happened.MACHINE_READY, allocation=Allocation(machine, ssh_port, web_port))
        return machine
