"""The throwaway instance on which an image is tried: network, firewall, disks and folder of its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import structlog

from ravebot.access.rules import Firewall, Guest, Rules
from ravebot.clock import SystemClock
from ravebot.config.model import AccessConfig, BridgeConfig, Config
from ravebot.errors import RavebotError, Refused, Unavailable
from ravebot.images.workspace import temporary_folder
from ravebot.operations import hostlock, remains
from ravebot.parts import make_firewall, make_provider
from ravebot.providers.base import MachineSpec, Provider
from ravebot.sandboxes import naming
from ravebot.sandboxes.view import in_bytes

log = structlog.get_logger()

_NAME = "image-check"
_FOLDER = f"ravebot-{_NAME}-"
_PREFIX = "chk"  # of the instance ids of trials
_GROWTH_BYTES = 1024**3
_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))  # RFC 1918
_ADDRESSES = 8
_TRIES = 5000
_REMOVALS, _PAUSE_SECONDS = 5, 2.0
_WIDE_PREFIX = 12  # a route that covers so much leads to networks that are mostly not there


@dataclass(frozen=True)
class Booted:
    """A machine of the trial, and when it was switched on (in the event loop's seconds)."""

    name: str
    address: str
    started_at: float


class Trial:
    """`async with Trial(config, image_bytes) as trial:`; afterwards nothing of it is left.

    It holds a lock while it lives. What one that was killed left behind is removed by the next.
    Raises Refused without enough memory for a machine, Unavailable, and ProviderError.
    """

    def __init__(self, config: Config, image_bytes: int) -> None:
        self.config = config
        self.image_bytes = image_bytes
        self.disk_bytes = max(config.sandbox.disk, image_bytes * 3 // 2 + _GROWTH_BYTES)
        self.conflicts: list[str] = []  # other rules of this host that drop what the machines need, each with its fix
        self._instance_id = f"{_PREFIX}{secrets.token_hex(3)[:5]}"
        self._stack = AsyncExitStack()
        self._machines: list[MachineSpec] = []
        self.provider: Provider
        self._firewall: Firewall
        self._subnet: IPv4Network

    async def __aenter__(self) -> Self:
        wanted, available = self.config.sandbox.memory, psutil.virtual_memory().available
        if available < wanted:
            raise Refused(
                f"a machine takes {in_bytes(wanted)} of memory (sandbox.memory), and only {in_bytes(available)} are"
                " available: stop a sandbox first, or lower sandbox.memory in the configuration that -c names"
            )
        await _remove_dead(self.config)
        try:
            await self._set_up()
        except BaseException:  # also when it is interrupted: what is there already must not stay
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _set_up(self) -> None:
        """What is entered last is left first: machines, firewall, shared parts of libvirt, folder, lock."""
        stack, provider = self._stack, self.config.provider
        stack.enter_context(hostlock.held(self._instance_id))
        folder = await asyncio.to_thread(_new_folder, self._instance_id)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        used = await asyncio.to_thread(used_networks)
        self._subnet = free_subnet([provider.bridge.subnet, *used])
        bridge = BridgeConfig(name=f"rv{self._instance_id}", subnet=self._subnet)
        own = self.config.model_copy(
            update={
                "instance": _NAME,
                "state_dir": folder,
                "access": AccessConfig(),
                "provider": provider.model_copy(update={"bridge": bridge, "storage_pool": folder / "disks"}),
            }
        )
        self.provider = make_provider(own, self._instance_id)
        stack.push_async_callback(self.provider.close)
        stack.push_async_callback(_log_failure, self.provider.remove)
        await self.provider.open()
        self._firewall = make_firewall(own, self._instance_id, SystemClock())
        stack.push_async_callback(self._firewall.close)
        stack.push_async_callback(_log_failure, self._firewall.remove)
        await self._firewall.open()
        self.conflicts = await self._firewall.find_conflicts()

    async def console(self) -> str:
        """The end of what the newest machine printed on its console."""
        return (await self.provider.console(self._machines[-1].name)).tail if self._machines else ""

    async def boot(self) -> Booted:
        """Start a new machine from the image. Raises ProviderError if that is impossible."""
        provider, sandbox = self.config.provider, self.config.sandbox
        names = naming.names(_NAME, secrets.token_bytes(16))
        spec = MachineSpec(
            name=names.name,
            uuid=names.uuid,
            mac=names.mac,
            address=str(self._subnet[2 + len(self._machines)]),
            tap=names.tap,
            memory_bytes=sandbox.memory,
            vcpus=sandbox.vcpus,
            disk_bytes=self.disk_bytes,
            image=provider.image,
            kernel=provider.kernel,
            initrd=provider.initrd,
            cmdline=provider.cmdline,
        )
        self._machines.append(spec)
        self._stack.push_async_callback(_log_failure, self.provider.delete, spec.name)
        await self.provider.create(spec)
        guests = frozenset(Guest(one.tap, one.mac, one.address) for one in self._machines)
        await self._firewall.ensure(Rules(guests))
        started_at = asyncio.get_running_loop().time()
        await self.provider.start(spec.name)
        return Booted(spec.name, spec.address, started_at)


async def _log_failure(remove: Callable[..., Awaitable[object]], *arguments: str) -> None:
    """What can't be removed is left to the next trial: the error must not hide why this one ended."""
    try:
        await remove(*arguments)
    except Unavailable:
        return  # that is why it ended
    except RavebotError as error:
        log.error("could not be removed; the next `ravebot image check` tries it again", error=str(error))  # noqa: TRY400 - people need no traceback


def free_subnet(used: Sequence[IPv4Network]) -> IPv4Network:
    """A private network of 8 addresses that overlaps none of these. Raises Refused if none is found."""
    for _ in range(_TRIES):
        space = secrets.choice(_PRIVATE)
        start = secrets.randbelow(space.num_addresses // _ADDRESSES) * _ADDRESSES
        subnet = IPv4Network((int(space.network_address) + start, 32 - _ADDRESSES.bit_length() + 1))
        if not any(subnet.overlaps(one) for one in used):
            return subnet
    raise Refused("this host's networks and routes leave no private network free for the check")


def used_networks() -> list[IPv4Network]:
    """Those of this host's interfaces and routes."""
    addresses = [one for listed in psutil.net_if_addrs().values() for one in listed if one.family is socket.AF_INET]
    found = [IPv4Network(f"{one.address}/{one.netmask or '255.255.255.255'}", strict=False) for one in addresses]
    # Hexadecimal in the host's byte order: https://man7.org/linux/man-pages/man5/proc_net_route.5.html
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        destination, mask = (int(fields[n], 16).to_bytes(4, sys.byteorder) for n in (1, 7))
        route = IPv4Network((destination, str(IPv4Address(mask))))
        found += [route] if route.prefixlen > _WIDE_PREFIX else []
    return found


def _new_folder(instance_id: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{instance_id}-", dir=temporary_folder()))
    folder.chmod(0o711)  # QEMU's user must reach the disks
    return folder


def _own_folders() -> list[Path]:
    found = temporary_folder().glob(f"{_FOLDER}{_PREFIX}*")
    return [folder for folder in found if folder.lstat().st_uid == os.geteuid()]


async def _remove_dead(config: Config) -> None:
    """Remove what trials left that were killed: whose folder is there, and whose lock nobody holds."""
    for folder in await asyncio.to_thread(_own_folders):
        instance_id = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if not naming.is_instance_id(instance_id) or hostlock.holder(instance_id):
            continue
        try:
            gone = await _removed(config, instance_id)
        except Refused:  # another check removes it right now
            continue
        if gone:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _removed(config: Config, instance_id: str) -> bool:
    """Remove a dead trial's parts; libvirt may still be at work on its last request, so that one try can fail."""
    for _ in range(_REMOVALS):
        if not (await remains.remove(config, instance_id, lambda _text: None)).failed:
            return True
        await asyncio.sleep(_PAUSE_SECONDS)
    return False
