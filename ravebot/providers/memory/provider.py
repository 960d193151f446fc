"""`ravebot.providers.base.Provider` for one instance on a host in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from ravebot.errors import GuestError, GuestTimeout, MachineNotFound, ProviderError
from ravebot.providers.base import (
    Console,
    HostUsage,
    Listing,
    MachineSpec,
    ProviderEvent,
    RunResult,
    Usage,
)
from ravebot.providers.guest import check_authorized_keys, check_target, larger_than, read_source
from ravebot.providers.memory.host import (
    INSTANCE_ID,
    Disk,
    GuestFile,
    MemoryHost,
    MemoryLease,
    MemoryMachine,
    volume_of,
)
from ravebot.providers.memory.script import GuestCommand, Script
from ravebot.sandboxes.model import Observed

_RUNNING = Observed.AGENT_SILENT


class MemoryProvider(Script):
    """Machines of one instance. It never sees or touches those of other instances on the same host.

    `storage` names where its disks are; no two instances may use the same. The image of a machine is never read.
    """

    def __init__(self, host: MemoryHost | None = None, *, instance_id: str = INSTANCE_ID, storage: str = "") -> None:
        super().__init__()
        self._host = host or MemoryHost()
        self._instance_id = instance_id
        self._storage = storage or f"of {instance_id}"

    async def open(self) -> None:
        """Take the storage. Raises ProviderError while it is another instance's."""
        await self._called("open")
        self._prepare()

    async def close(self) -> None:
        """Nothing to close."""

    async def connected(self) -> bool:
        """True, unless `fails` names this call."""
        return "connected" not in self.fails

    async def create(self, spec: MachineSpec) -> None:
        """Make address, disk and definition, in this order: if a definition exists, so does the rest."""
        await self._called("create", spec.name)
        machine = self._find(spec.name)
        if machine is not None and machine.uuid != spec.uuid:
            raise ProviderError(f"a machine {spec.name} of ours exists with another UUID: it is left alone")
        self._prepare()
        self._give_address(spec)
        self._host.volumes.setdefault(volume_of(spec.name), Disk(self._instance_id, spec.disk_bytes))
        if machine is None:
            machine = self._host.put(spec.name, Observed.OFF, instance_id=self._instance_id, uuid=spec.uuid)
            machine.host_keys = self.baked_in_keys or machine.host_keys

    async def start(self, name: str) -> None:
        if await self._called("start", name) and self._get(name).state in (Observed.OFF, Observed.CRASHED):
            self._host.set(name, Observed.AGENT_SILENT)

    async def resume(self, name: str) -> None:
        if await self._called("resume", name) and self._get(name).state is Observed.PAUSED:
            self._host.set(name, Observed.AGENT_SILENT)

    async def shutdown(self, name: str) -> None:
        """Switch a running guest off, even if its agent is silent."""
        if await self._called("shutdown", name) and self._get(name).state is _RUNNING:
            self._host.set(name, Observed.OFF)

    async def destroy(self, name: str) -> None:
        await self._called("destroy", name)
        machine = self._find(name)
        if machine is not None and machine.state is not Observed.OFF:
            self._host.set(name, Observed.OFF)

    async def delete(self, name: str) -> None:
        await self._called("delete", name)
        self._find(name)
        self._host.undefine(name)
        for volume in self._host.holdings(self._instance_id).volumes:
            if name in volume:
                del self._host.volumes[volume]
        for mac, lease in self._leases().items():
            if lease.machine == name:
                del self._host.addresses[mac]

    async def delete_volume(self, volume: str) -> None:
        await self._called("delete_volume", volume)
        if volume in self._host.volumes:
            if self._host.volumes[volume].instance_id != self._instance_id:
                raise ProviderError(f"the disk {volume} does not belong to this instance: it is left alone")
            del self._host.volumes[volume]

    async def delete_address(self, mac: str) -> None:
        await self._called("delete_address", mac)
        if mac in self._leases():
            del self._host.addresses[mac]

    async def remove(self) -> tuple[str, ...]:
        await self._called("remove")
        return self._host.clear(self._instance_id)

    async def list(self) -> Listing:
        await self._called("list")
        held = self._host.holdings(self._instance_id)
        return Listing(held.machines, held.volumes, tuple(self._leases()))

    async def ping(self, name: str, timeout: timedelta) -> bool:
        """Whether the machine runs and its guest answers; never waits."""
        await self._called("ping", name)
        return self._get(name).state is _RUNNING and self._answers(name)

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunResult:
        """Run nothing, and return what `answers` says."""
        await self._called("run", name)
        self._guest(name)
        return self._end_of(GuestCommand(name, tuple(argv), timeout, environment or {}, stdin))

    async def copy_in(self, name: str, source: Path, target: str, *, mode: int = 0o600) -> bool:
        """Store the file's current content."""
        await self._called("copy_in", name)
        check_target(target)
        self._guest(name).files[target] = GuestFile(read_source(source), mode)
        return False

    async def copy_out(self, name: str, source: str, *, max_bytes: int) -> bytes:
        """The content of a file that was copied in."""
        await self._called("copy_out", name)
        check_target(source)
        file = self._guest(name).files.get(source)
        if file is None:
            raise GuestError(f"there is no file {source} in the guest of {name}")
        if len(file.content) > max_bytes:
            raise larger_than(source, max_bytes)
        return file.content

    async def authorize_keys(self, name: str, user: str, keys: Sequence[str]) -> None:
        """Make these the only authorized SSH keys of that user. Every user exists."""
        await self._called("authorize_keys", name)
        check_authorized_keys(keys)
        self._guest(name).authorized[user] = tuple(keys)

    async def host_keys(self, name: str) -> tuple[str, ...]:
        """The machine's keys; a restart does not change them."""
        await self._called("host_keys", name)
        return self._guest(name).host_keys

    async def console(self, name: str) -> Console:
        return Console(self.printed, f"{name}'s console in memory")

    async def usage(self, name: str) -> Usage:
        await self._called("usage", name)
        return Usage(0.0, 0, 0) if self._get(name).state is Observed.OFF else self.used

    async def host(self) -> HostUsage:
        """`host_usage`, plus the size by which our disks may still grow."""
        await self._called("host")
        sizes = (disk.size_bytes for disk in self._host.volumes.values() if disk.instance_id == self._instance_id)
        return replace(self.host_usage, disk_promised_bytes=self.host_usage.disk_promised_bytes + sum(sizes))

    async def events(self) -> AsyncIterator[ProviderEvent]:
        """Events of our machines, from this call on."""
        listener = self._instance_id, asyncio.Queue[ProviderEvent]()
        self._host.listeners.append(listener)
        try:
            yield ProviderEvent("", "connected")
            while True:
                yield await listener[1].get()
        finally:
            self._host.listeners.remove(listener)

    def _prepare(self) -> None:
        owner = self._host.storage.setdefault(self._storage, self._instance_id)
        if owner != self._instance_id:
            raise ProviderError(
                f"another ravebot, of instance id {owner}, has its storage {self._storage}: choose another, or remove"
                f" what that one left with `ravebot cleanup --instance-id {owner} --all`"
            )

    def _give_address(self, spec: MachineSpec) -> None:
        for mac, lease in self._leases().items():
            if lease.machine == spec.name:
                del self._host.addresses[mac]
            elif spec.mac == mac or spec.address == lease.address:
                raise ProviderError(
                    f"{spec.address} ({spec.mac}) can't be given to {spec.name}: {lease.machine} has it"
                )
        self._host.addresses[spec.mac] = MemoryLease(self._instance_id, spec.name, spec.address)

    def _leases(self) -> dict[str, MemoryLease]:
        return self._host.leases(self._instance_id)

    def _find(self, name: str) -> MemoryMachine | None:
        return self._host.find(name, self._instance_id)

    def _get(self, name: str) -> MemoryMachine:
        """Our machine. Raises MachineNotFound when there is none."""
        machine = self._find(name)
        if machine is None:
            raise MachineNotFound(f"there is no machine {name}")
        return machine

    def _guest(self, name: str) -> MemoryMachine:
        """Our machine, if its guest answers. Raises MachineNotFound, GuestError, GuestTimeout."""
        machine = self._get(name)
        if machine.state is not _RUNNING:
            raise GuestError(f"the guest of {name} does not run")
        if not self._answers(name):
            raise GuestTimeout(f"the guest of {name} did not answer in time")
        return machine
