"""Finds and removes, by its id, what libvirt holds of an instance whose database and configuration are lost."""

from __future__ import annotations

from xml.etree.ElementTree import Element

import libvirt

from ravebot.errors import ProviderError
from ravebot.providers.base import Holdings
from ravebot.providers.libvirt.connection import Connection, Handle, found, undefine
from ravebot.providers.libvirt.definitions import PLACEHOLDER_MAC, POOL_PREFIX, owner
from ravebot.providers.libvirt.disks import folder_of
from ravebot.providers.libvirt.domains import Domains
from ravebot.providers.libvirt.network import parsed, subnet_of


class LibvirtRemains:
    """Finds machines and networks by the id in their metadata, the storage pool by its name."""

    def __init__(self, uri: str, instance_id: str) -> None:
        self._instance_id = instance_id
        self._domains = Domains(instance_id)
        self._connection = Connection(uri, name="libvirt-remains", threads=1)

    async def look(self) -> Holdings:
        return await self._connection.call(self._look)

    async def delete(self, name: str) -> None:
        await self._connection.call(lambda handle: self._domains.remove(handle, name))

    async def delete_volume(self, volume: str) -> None:
        await self._connection.call(lambda handle: self._delete_volume(handle, volume))

    async def remove(self) -> tuple[str, ...]:
        return await self._connection.call(self._remove)

    async def close(self) -> None:
        await self._connection.close()

    def _look(self, handle: Handle) -> Holdings:
        definitions = [root for _, root in self._networks(handle)]
        pool = self._pool(handle)
        return Holdings(
            machines=self._domains.observe(handle),
            volumes=() if pool is None else self._volumes(pool),
            addresses=tuple(
                f"{host.get('mac')} {host.get('ip')}"
                for root in definitions
                for host in root.iterfind("ip/dhcp/host")
                if host.get("mac", "").lower() != PLACEHOLDER_MAC
            ),
            networks=tuple(
                f"network {root.findtext('name')} ({_bridge_of(root)}, {subnet_of(root)})" for root in definitions
            ),
            pools=() if pool is None else (f"storage pool {pool.name()} in {folder_of(pool)}",),
            bridges=frozenset(filter(None, map(_bridge_of, definitions))),
        )

    def _networks(self, handle: Handle) -> list[tuple[Handle, Element]]:
        """Found by the whole id: a network's name holds only the start of it. Others' may be removed meanwhile."""
        there = ((one, found(one.XMLDesc, 0, libvirt.VIR_ERR_NO_NETWORK)) for one in handle.listAllNetworks())
        defined = [(network, parsed(text)) for network, text in there if text is not None]
        return [(network, root) for network, root in defined if owner(root) == self._instance_id]

    def _pool(self, handle: Handle) -> Handle | None:
        name = f"{POOL_PREFIX}{self._instance_id}"
        return found(handle.storagePoolLookupByName, name, libvirt.VIR_ERR_NO_STORAGE_POOL)

    def _volumes(self, pool: Handle) -> tuple[str, ...]:
        prefix = f"{POOL_PREFIX}{self._instance_id}-"
        if pool.isActive():
            return tuple(sorted(name for name in pool.listVolumes() if name.startswith(prefix)))
        return tuple(sorted(path.name for path in folder_of(pool).glob(f"{prefix}*")))

    def _delete_volume(self, handle: Handle, volume: str) -> None:
        pool = self._pool(handle)
        if pool is None or volume not in self._volumes(pool):
            return
        if not pool.isActive():
            pool.create(0)
        try:
            pool.storageVolLookupByName(volume).delete(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise

    def _remove(self, handle: Handle) -> tuple[str, ...]:
        held = self._look(handle)
        left = [*(machine.name for machine in held.machines), *held.volumes]
        if left:
            raise ProviderError(
                f"network and storage pool can't be removed: {left[0]} still uses them; run the command again"
            )
        things = [network for network, _ in self._networks(handle)]
        if (pool := self._pool(handle)) is not None:
            things.append(pool)
        for thing in things:
            undefine(thing)
        return (*held.networks, *held.pools)


def _bridge_of(root: Element) -> str:
    bridge = root.find("bridge")
    return "" if bridge is None else bridge.get("name", "")
