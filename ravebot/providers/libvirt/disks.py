"""The disks of our machines: qcow2 overlays in a storage pool that belongs to this instance alone."""

from __future__ import annotations

import os
import stat
import struct
import threading
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import libvirt

from ravebot.errors import ImageError, ProviderError, Unavailable
from ravebot.providers.libvirt.connection import Handle, found, undefine
from ravebot.providers.libvirt.definitions import POOL_PREFIX, overlay_xml, pool_xml, raw_xml
from ravebot.sandboxes import naming

_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER = struct.Struct(">4sIQIIQ")  # magic, version, backing offset, backing size, cluster bits, size
_EXTERNAL_DATA_FILE = 1 << 2  # incompatible feature bit, at byte 72 of version 3
_SUFFIX = ".qcow2"
_SECTOR_BYTES = 512


def image_size(image: Path) -> int:
    """The virtual size in bytes of a qcow2 image. Raises ImageError unless it may be a base.

    An image that refers to another file is refused, since the guest could read that file of the host.
    The header's format: https://github.com/qemu/qemu/blob/master/docs/interop/qcow2.txt
    """
    try:
        # Non-blocking, because opening a named pipe could wait for ever.
        with os.fdopen(os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            header = file.read(104) if regular else b""
    except OSError as error:
        raise ImageError(
            f"the image {image} can't be read ({error.strerror}): put one there or change provider.image"
        ) from error
    if len(header) < 72 or header[:4] != _QCOW2_MAGIC:
        raise ImageError(
            f"the image {image} is not a qcow2 image: convert it with `qemu-img convert -O qcow2`,"
            " or change provider.image"
        )
    _, version, backing_offset, _, _, size = _QCOW2_HEADER.unpack_from(header)
    features = int.from_bytes(header[72:80], "big") if version >= 3 else 0
    if backing_offset or features & _EXTERNAL_DATA_FILE:
        raise ImageError(f"the image {image} refers to another file: merge them with `qemu-img convert -O qcow2`")
    return int(size)


def check_base(image: Path, size_bytes: int) -> None:
    """Raise ImageError unless that image can be the base of a disk of that size."""
    base_bytes = image_size(image)
    if base_bytes > size_bytes:
        raise ImageError(
            f"the image {image} is {base_bytes} bytes large, a sandbox's disk only {size_bytes}:"
            " make sandbox.disk at least as large"
        )


class Disks:
    """The storage pool `rave-<instance id>` and the volumes in it. Every method is called in a worker thread."""

    def __init__(self, instance_id: str, folder: Path) -> None:
        self.pool = f"{POOL_PREFIX}{instance_id}"
        self.folder = folder
        self._prefix = f"rave-{instance_id}-"
        self._making = threading.RLock()  # so that only one of several worker threads makes a missing pool

    def volume_of(self, machine: str) -> str:
        """The name of a machine's disk."""
        return f"{self._prefix}{machine}{_SUFFIX}"

    def ensure(self, handle: Handle) -> Handle:
        """The storage pool, which is made and started if necessary."""
        with self._making:
            return self._ensure(handle)

    def _ensure(self, handle: Handle) -> Handle:
        pool = self._pool(handle) or self._define(handle)
        _start(pool)
        return pool

    def _existing(self, handle: Handle) -> Handle | None:
        """The pool, started, if it is defined; never defines it."""
        with self._making:
            pool = self._pool(handle)
            if pool is not None:
                _start(pool)
            return pool

    def _pool(self, handle: Handle) -> Handle | None:
        return found(handle.storagePoolLookupByName, self.pool, libvirt.VIR_ERR_NO_STORAGE_POOL)

    def remove(self, handle: Handle) -> tuple[str, ...]:
        """Remove the pool, but not its folder. Raises ProviderError while a disk of ours is in it."""
        with self._making:
            if names := self.names(handle):
                raise ProviderError(
                    f"the storage pool {self.pool} can't be removed: {names[0]} is still in it; run the command again"
                )
            pool = self._pool(handle)
            if pool is None:
                return ()
            undefine(pool)
            return (f"storage pool {self.pool}",)

    def refresh(self, handle: Handle) -> None:
        """Make libvirt read the folder again, whose content it caches."""
        with suppress(libvirt.libvirtError):  # refused while a volume is being made; the next refresh is soon enough
            self.ensure(handle).refresh()

    def _define(self, handle: Handle) -> Handle:
        try:
            return handle.storagePoolDefineXML(pool_xml(self.pool, self.folder))
        except libvirt.libvirtError as error:
            advice = "give provider.storage_pool a folder of its own"
            if other := self._other_instance(handle):
                does = f"has its storage pool in the folder {self.folder}"
                raise ProviderError(naming.another_instance(other, does, advice)) from error
            raise ProviderError(
                f"the folder {self.folder} can't be this instance's storage pool ({error}): {advice}"
            ) from error

    def _other_instance(self, handle: Handle) -> str | None:
        """The id of the instance whose storage pool is in our folder."""
        for pool in handle.listAllStoragePools():
            with suppress(libvirt.libvirtError):  # gone meanwhile
                start, prefix, instance_id = pool.name().partition(POOL_PREFIX)
                if prefix and not start and naming.is_instance_id(instance_id) and folder_of(pool) == self.folder:
                    return str(instance_id)
        return None

    def names(self, handle: Handle) -> tuple[str, ...]:
        """The names of all our volumes."""
        pool = self._existing(handle)
        return () if pool is None else tuple(name for name in pool.listVolumes() if name.startswith(self._prefix))

    def create_overlay(self, handle: Handle, machine: str, *, image: Path, size_bytes: int) -> str:
        """Make a machine's disk, replacing an incomplete one, and return its path."""
        with self._making:  # otherwise `remove` might find the pool empty in between
            pool = self.ensure(handle)
            self.delete(handle, self.volume_of(machine))
            xml = overlay_xml(self.volume_of(machine), capacity_bytes=size_bytes, base=image)
            return str(pool.createXML(xml, 0).path())

    def upload(self, handle: Handle, machine: str, mark: str, source: Path) -> tuple[str, str]:
        """Make a volume with the content of a file, beside the machine's disk; returns its name and path.

        The last sector is filled up with zeros. Raises Unavailable if the file can't be read.
        """
        name = f"{self._prefix}{machine}.{mark}.raw"
        try:
            with source.open("rb") as file:
                sectors = -(-os.fstat(file.fileno()).st_size // _SECTOR_BYTES)
                volume = self.ensure(handle).createXML(raw_xml(name, capacity_bytes=sectors * _SECTOR_BYTES), 0)
                try:
                    stream = handle.newStream()
                    volume.upload(stream, 0, 0)
                    stream.sendAll(lambda _stream, count, _: file.read(count), None)
                    stream.finish()
                except BaseException:  # whatever the reason: an incomplete file is of no use
                    self.delete(handle, name)
                    raise
        except OSError as error:
            raise Unavailable(f"the file {source} can't be read ({error.strerror}) to copy it into a guest") from error
        return name, str(volume.path())

    def delete_all_of(self, handle: Handle, machine: str) -> None:
        """Remove a machine's disk and its other volumes."""
        self.ensure(handle)  # even if somebody removed the pool, the disk is still in its folder
        for name in self.names(handle):
            if name.startswith(f"{self._prefix}{machine}."):
                self.delete(handle, name)

    def path(self, handle: Handle, machine: str) -> str | None:
        """The path of a machine's disk, if it has one."""
        volume = self._lookup(handle, self.volume_of(machine))
        return None if volume is None else str(volume.path())

    def delete(self, handle: Handle, volume: str) -> None:
        """Remove a volume of ours, if it exists. Raises ProviderError for a name that is not ours."""
        if not volume.startswith(self._prefix):
            raise ProviderError(f"the volume {volume} does not belong to this instance: it is left alone")
        there = self._lookup(handle, volume)
        if there is not None:
            try:
                there.delete(0)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                    raise

    def allocated_bytes(self, handle: Handle, machine: str) -> int:
        """The space that a machine's disk actually takes."""
        volume = self._lookup(handle, self.volume_of(machine))
        return 0 if volume is None else int(volume.info()[2])

    def promised_bytes(self, handle: Handle) -> int:
        """By how much our volumes may still grow.

        A disk that a guest keeps after a copy has no volume, and can't grow: until the guest is off, its space is
        missing from what the host has free.
        """
        promised = 0
        pool = self._existing(handle)
        for volume in () if pool is None else pool.listAllVolumes():
            if volume.name().startswith(self._prefix):
                with suppress(libvirt.libvirtError):  # deleted meanwhile
                    _, capacity, allocation = volume.info()
                    promised += max(0, capacity - allocation)
        return promised

    def _lookup(self, handle: Handle, volume: str) -> Handle | None:
        pool = self._existing(handle)
        return None if pool is None else found(pool.storageVolLookupByName, volume, libvirt.VIR_ERR_NO_STORAGE_VOL)


def folder_of(pool: Handle) -> Path:
    """The folder of a storage pool."""
    return Path(ElementTree.fromstring(pool.XMLDesc()).findtext("target/path") or "/")  # noqa: S314 - libvirt made it


def _start(pool: Handle) -> None:
    if not pool.isActive():
        pool.build(0)
        pool.create(0)
