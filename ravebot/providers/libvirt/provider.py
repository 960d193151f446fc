"""Implements the provider contract for one libvirt host; the parts of the work are the modules beside this one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import libvirt
import psutil

from ravebot.config.model import LibvirtConfig
from ravebot.errors import ImageError, ProviderError, Unavailable
from ravebot.providers.base import (
    Console,
    HostUsage,
    Listing,
    MachineSpec,
    ProviderEvent,
    RunResult,
    Usage,
)
from ravebot.providers.libvirt.connection import Connection, Handle
from ravebot.providers.libvirt.definitions import domain_xml
from ravebot.providers.libvirt.disks import Disks, check_base
from ravebot.providers.libvirt.domains import Domains
from ravebot.providers.libvirt.events import Events
from ravebot.providers.libvirt.guest import GuestAgents
from ravebot.providers.libvirt.network import Lease, Network
from ravebot.providers.libvirt.parcels import Parcels
from ravebot.providers.libvirt.probe import probe_kvm
from ravebot.providers.libvirt.processes import open_files
from ravebot.store.owner import give

T = TypeVar("T")
_CONTROL_THREADS = 8
_AGENT_CONNECTIONS = 4
_AGENT_THREADS = 4  # per connection; libvirtd serves at most 5 requests of one connection at once
_CONNECTED_SECONDS = 5.0
_LIST_SECONDS = 20.0  # a pass of the pool waits for it
_CONSOLE_BYTES = 4096
_RETRY_SECONDS = 1.0


class LibvirtProvider:
    """Machines on one libvirt host, all tagged with this instance's id; others' are never listed or touched.

    `instance` is the installation's name, `instance_id` its random id, `egress` is internet or none.
    Consoles are logged to `state_dir`/console, and these logs outlive their machines.
    """

    def __init__(self, config: LibvirtConfig, *, instance: str, instance_id: str, egress: str, state_dir: Path) -> None:
        self._config = config
        self._instance = instance
        self._instance_id = instance_id
        self._consoles = state_dir / "console"
        self._domains = Domains(instance_id)
        self._disks = Disks(instance_id, config.storage_pool)
        self._network = (
            Network(instance_id, config.bridge, dns=egress != "none") if config.network == "bridge" else None
        )
        self._events = Events(self._domains.is_known)
        self._control = Connection(
            config.uri,
            name="libvirt-control",
            threads=_CONTROL_THREADS,
            on_open=self._events.register,
            on_lost=self._events.lost,
        )
        # libvirt's test driver has separate state for each connection, and no agents.
        agents = (
            [self._control]
            if config.uri.startswith("test:")
            else [
                Connection(config.uri, name=f"libvirt-agent-{number}", threads=_AGENT_THREADS)
                for number in range(_AGENT_CONNECTIONS)
            ]
        )
        self._connections = tuple(dict.fromkeys((self._control, *agents)))
        self._agents = GuestAgents(agents, self._domains)
        self._parcels = Parcels(self._control, self._domains, self._disks, self._agents)
        self._accelerated: bool | None = None

    async def open(self) -> None:
        """Connect, and make or repair the storage pool and the network; the first time, probe for KVM.

        A network with another configuration stays while it has machines, so that they can be ended; until then `create`
        and `start` refuse.
        """
        self._consoles.mkdir(mode=0o700, parents=True, exist_ok=True)
        give(self._consoles)
        await self._call(self._prepare)
        if self._accelerated is None:
            self._accelerated = await self._can_accelerate()

    def _prepare(self, handle: Handle) -> None:
        self._disks.ensure(handle)
        self._disks.refresh(handle)
        if self._network is not None:
            self._network.prepare(handle)

    async def _can_accelerate(self) -> bool:
        emulator = await self._call(_emulator)
        if emulator is not None and self._config.accelerator == "auto":
            return (await probe_kvm(emulator)).works
        return self._config.accelerator == "kvm"

    async def close(self) -> None:
        """Close all connections; machines keep running."""
        await asyncio.gather(*(connection.close() for connection in self._connections))

    async def connected(self) -> bool:
        """Whether libvirt answers now."""
        try:
            async with asyncio.timeout(_CONNECTED_SECONDS):
                await self._call(lambda handle: handle.getLibVersion())
        except (TimeoutError, Unavailable, ProviderError):
            return False
        return True

    async def create(self, spec: MachineSpec) -> None:
        """Make address, disk and definition, in this order: if a definition exists, so does the rest."""
        if self._accelerated is None:
            await self.open()
        for path, key in ((spec.kernel, "kernel"), (spec.initrd, "initrd")):
            if path is not None and not await asyncio.to_thread(path.is_file):
                raise ImageError(f"{path} is missing: put one there or change provider.{key}")
        await self._call(lambda handle: self._create(handle, spec))

    def _create(self, handle: Handle, spec: MachineSpec) -> None:
        domain = self._domains.find(handle, spec.name)
        if domain is not None and domain.UUIDString() != spec.uuid:
            raise ProviderError(f"a machine {spec.name} of ours exists with another UUID: it is left alone")
        disk = self._disks.path(handle, spec.name) if domain is not None else None
        if disk is None:
            check_base(spec.image, spec.disk_bytes)
        if self._network is not None:
            self._network.add_lease(handle, Lease(spec.name, spec.mac, spec.address))
        if disk is None:
            disk = self._disks.create_overlay(handle, spec.name, image=spec.image, size_bytes=spec.disk_bytes)
        if domain is None:
            accelerated = "kvm" if self._accelerated else "qemu"
            console = self._consoles / f"{spec.name}.log"
            _make_readable(console)
            xml = domain_xml(
                spec,
                instance=self._instance,
                instance_id=self._instance_id,
                kind="test" if handle.getType() == "TEST" else accelerated,
                disk=disk,
                network=None if self._network is None else self._network.name,
                console=console,
            )
            self._domains.define(handle, xml)

    async def start(self, name: str) -> None:
        """Start it if it is off, and the network before that."""

        def work(handle: Handle) -> None:
            if self._network is not None:
                self._network.ensure(handle)
            self._domains.start(handle, name)

        await self._call(work)

    async def resume(self, name: str) -> None:
        await self._call(lambda handle: self._domains.resume(handle, name))

    async def shutdown(self, name: str) -> None:
        """Request a shutdown by agent and by power button, and wait for neither."""
        if await self._call(lambda handle: self._domains.press_power_button(handle, name)):
            self._agents.begin_shutdown(name)

    async def destroy(self, name: str) -> None:
        await self._call(lambda handle: self._domains.destroy(handle, name))

    async def delete(self, name: str) -> None:
        """Remove definition, disk and fixed lease. The console's log is kept for some days."""

        def work(handle: Handle) -> None:
            self._domains.remove(handle, name)
            self._disks.delete_all_of(handle, name)
            if self._network is not None:
                self._network.remove_lease(handle, name=name)

        await self._call(work)

    async def delete_volume(self, volume: str) -> None:
        await self._call(lambda handle: self._disks.delete(handle, volume))

    async def delete_address(self, mac: str) -> None:
        network = self._network
        if network is not None:
            await self._call(lambda handle: network.remove_lease(handle, mac=mac))

    async def remove(self) -> tuple[str, ...]:
        """Remove the network, and the storage pool without its folder. `open` makes both again."""

        def work(handle: Handle) -> tuple[str, ...]:
            network = () if self._network is None else self._network.remove(handle)
            return (*network, *self._disks.remove(handle))

        return await self._call(work)

    async def list(self) -> Listing:
        """Everything of ours, in a handful of calls, however many machines there are."""
        return await self._control.call(self._list, limit_seconds=_LIST_SECONDS)

    def _list(self, handle: Handle) -> Listing:
        leases = self._network.leases(handle) if self._network is not None else ()
        return Listing(
            machines=self._domains.observe(handle),
            volumes=self._disks.names(handle),
            addresses=tuple(lease.mac for lease in leases),
        )

    async def ping(self, name: str, timeout: timedelta) -> bool:
        return await self._agents.ping(name, timeout)

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunResult:
        return await self._agents.run(name, argv, timeout=timeout, environment=environment, stdin=stdin)

    async def copy_in(self, name: str, source: Path, target: str, *, mode: int = 0o600) -> bool:
        """Write a host file to an absolute path in the guest; a large one by way of a disk."""
        if await self._parcels.carry(name, source, target, mode=mode):
            return True
        await self._agents.copy_in(name, source, target, mode=mode)
        return False

    async def copy_out(self, name: str, source: str, *, max_bytes: int) -> bytes:
        return await self._agents.copy_out(name, source, max_bytes)

    async def authorize_keys(self, name: str, user: str, keys: Sequence[str]) -> None:
        await self._agents.authorize_keys(name, user, keys)

    async def host_keys(self, name: str) -> tuple[str, ...]:
        return await self._agents.host_keys(name)

    async def console(self, name: str) -> Console:
        path = self._consoles / f"{name}.log"
        return Console(await asyncio.to_thread(_end_of, path), str(path))

    async def usage(self, name: str) -> Usage:
        """What it used since it was started. Memory is the current use: the caller keeps the largest."""

        def work(handle: Handle) -> Usage:
            domain = self._domains.get(handle, name)
            disk_bytes = self._disks.allocated_bytes(handle, name)
            try:
                received, sent = _traffic(domain)
                cpu_seconds, memory = domain.info()[4] / 1e9, domain.memoryStats().get("rss", 0) * 1024
                return Usage(cpu_seconds, memory, disk_bytes, received, sent, open_files(name))
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_SUPPORT):
                    raise
                return Usage(0.0, 0, disk_bytes)

        return await self._call(work)

    async def host(self) -> HostUsage:
        """The host's available memory, and the free disk space where the disks are."""

        def work(handle: Handle) -> HostUsage:
            promised = self._disks.promised_bytes(handle)
            folder = self._disks.folder
            space = psutil.disk_usage(str(next(path for path in (folder, *folder.parents) if path.is_dir())))
            return HostUsage(psutil.virtual_memory().available, space.free, promised)

        return await self._call(work)

    async def events(self) -> AsyncIterator[ProviderEvent]:
        """Events of our machines. While libvirt is away, a reconnect is tried every second."""
        subscription = self._events.subscribe()
        try:
            while True:
                try:
                    await self._call(lambda _handle: None)
                except (Unavailable, ProviderError):
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                for event in await subscription.take():
                    yield event
        finally:
            self._events.unsubscribe(subscription)

    async def _call(self, work: Callable[[Handle], T]) -> T:
        return await self._control.call(work)


def _make_readable(log: Path) -> None:
    """Make the log before libvirt's log daemon makes it for root alone; it appends to what is there."""
    os.close(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _traffic(domain: libvirt.virDomain) -> tuple[int, int]:
    """What the guest received and sent since it was started, in bytes; libvirt counts taps from the guest's side."""
    received = sent = 0
    stats = domain.connect().domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_INTERFACE)
    for _, counted in stats:  # empty if it is gone meanwhile
        for card in range(counted.get("net.count", 0)):
            received += counted.get(f"net.{card}.rx.bytes", 0)
            sent += counted.get(f"net.{card}.tx.bytes", 0)
    return received, sent


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _CONSOLE_BYTES))
            return file.read().decode(errors="replace")
    except OSError:  # there is none; or libvirt's log daemon has begun a new one, for root alone
        return ""


def _emulator(handle: Handle) -> str | None:
    """The path of QEMU's emulator; None for libvirt's test driver."""
    if handle.getType() != "QEMU":
        return None
    capabilities = ElementTree.fromstring(handle.getDomainCapabilities(None, "x86_64", None, "qemu"))  # noqa: S314
    return capabilities.findtext("path") or "qemu-system-x86_64"
