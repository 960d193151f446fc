"""Looks into a qcow2 file before any program of others does: what refers elsewhere, is cut off, or unpacks without end.

The format: https://github.com/qemu/qemu/blob/master/docs/interop/qcow2.txt
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from ravebot.errors import RavebotError
from ravebot.sandboxes.view import in_bytes

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">QQQ")  # incompatible, compatible, autoclear; from version 3
_CORRUPT, _DATA_FILE, _EXTENDED_L2 = 1 << 1, 1 << 2, 1 << 4
_KNOWN_FEATURES = 0b11111
_SMALLEST_CLUSTER, _LARGEST_CLUSTER = 12, 21  # bits
_MOST_SNAPSHOTS = 64
_MOST_REFCOUNT_BYTES = 8 * 1024**2  # QEMU's own limit
_OFFSET = (1 << 56) - (1 << 9)
_COMPRESSED, _ZEROS = 1 << 62, 1
_ALLOCATED = (1 << 32) - 1  # which parts of a cluster are there, where entries are extended
_SECTOR = 512
_HOW_TO_MAKE = "make it with `qemu-img convert -O qcow2`"


class PipelineImageRefused(RavebotError):
    """The file can't be an image; `str` says why, and how the job gets it right."""


@dataclass(frozen=True)
class _Tables:
    """Where the tables are; `offset` and `entries` of the first one, sizes in bytes."""

    size: int
    cluster_bits: int
    offset: int
    entries: int
    entry_bytes: int


def look_into(descriptor: int, most_bytes: int, guard: Callable[[], None] = lambda: None) -> int:
    """The virtual size of an open qcow2 file, at most `most_bytes`. Raises PipelineImageRefused, and what `guard`
    does."""
    file_bytes = os.fstat(descriptor).st_size
    tables = _header(os.pread(descriptor, 104, 0), file_bytes, most_bytes)
    _every_cluster(descriptor, tables, file_bytes, guard)
    return tables.size


def _header(head: bytes, file_bytes: int, most_bytes: int) -> _Tables:
    if len(head) < 72 or head[:4] != MAGIC:
        raise PipelineImageRefused(f"it is no qcow2 file: {_HOW_TO_MAKE}")
    fields = _HEADER.unpack_from(head)
    _, version, backing, _, cluster_bits, size, encryption, l1_size, l1_offset, refcounts, refcount_clusters = fields[
        :11
    ]
    if version not in (2, 3) or (version == 3 and len(head) < 104):
        raise PipelineImageRefused(f"its qcow2 version, {version}, is not known: {_HOW_TO_MAKE}")
    features = _FEATURES.unpack_from(head, 72)[0] if version == 3 else 0
    if backing:
        raise PipelineImageRefused(f"it has a backing file, which is not part of it: {_HOW_TO_MAKE}, which merges both")
    if features & _DATA_FILE:
        raise PipelineImageRefused(f"it has an external data file, which is not part of it: {_HOW_TO_MAKE}")
    if encryption:
        raise PipelineImageRefused("it is encrypted, and nobody gives the key: leave encryption off")
    if features & _CORRUPT:
        raise PipelineImageRefused(f"it is marked as corrupt: {_HOW_TO_MAKE} anew")
    if features & ~_KNOWN_FEATURES:
        raise PipelineImageRefused(f"it uses features of qcow2 that are not known: {_HOW_TO_MAKE}")
    if not 0 < size <= most_bytes:
        raise PipelineImageRefused(
            f"its disk has {in_bytes(size)}, and may have {in_bytes(most_bytes)}: make it smaller, or have an operator "
            "raise limits.disk"
        )
    if not _SMALLEST_CLUSTER <= cluster_bits <= _LARGEST_CLUSTER:
        raise PipelineImageRefused(f"its clusters are smaller than 4 KiB or larger than 2 MiB: {_HOW_TO_MAKE}")
    entry_bytes = 16 if features & _EXTENDED_L2 else 8
    covered = (1 << cluster_bits) * ((1 << cluster_bits) // entry_bytes)  # by one entry of the first table
    needed = -(-size // covered)
    if not needed <= l1_size <= needed + 1024:
        raise PipelineImageRefused(f"its tables do not fit its size: {_HOW_TO_MAKE}")
    tables_end = max(l1_offset + 8 * l1_size, refcounts + (refcount_clusters << cluster_bits))
    if refcount_clusters << cluster_bits > _MOST_REFCOUNT_BYTES or fields[11] > _MOST_SNAPSHOTS:
        raise PipelineImageRefused(f"it has more tables or snapshots than an image needs: {_HOW_TO_MAKE}")
    if tables_end > file_bytes:
        raise _cut_off()
    return _Tables(size, cluster_bits, l1_offset, needed, entry_bytes)


def _every_cluster(descriptor: int, tables: _Tables, file_bytes: int, guard: Callable[[], None]) -> None:
    """Each cluster lies inside the file, and no two parts of the disk share one: so the file's size bounds the work."""
    places = _Places(tables.cluster_bits, file_bytes)
    cluster, words = 1 << tables.cluster_bits, tables.entry_bytes // 8
    begins = 0  # in the disk, of what an entry is for
    for first in _numbers(descriptor, tables.offset, tables.entries):
        guard()
        table = first & _OFFSET
        if not table:
            begins += cluster * (cluster // tables.entry_bytes)
            continue
        places.take(table, cluster)
        entries = _numbers(descriptor, table, cluster // 8)
        if len(entries) < cluster // 8:
            raise _cut_off()
        packed: set[int] = set()
        for at in range(0, len(entries), words):
            if entry := entries[at]:
                if entry & _COMPRESSED:
                    places.take_packed(entry, packed)
                elif place := entry & _OFFSET:
                    # of the last cluster only the disk's part is written, and nothing of one that reads as zeros
                    filled = cluster if words == 1 else (entries[at + 1] & _ALLOCATED).bit_length() * cluster // 32
                    reads_as_zeros = words == 1 and entry & _ZEROS
                    places.take(place, 0 if reads_as_zeros else min(filled, tables.size - begins))
            begins += cluster


class _Places:
    """Which places of the file are taken."""

    def __init__(self, cluster_bits: int, file_bytes: int) -> None:
        self._bits, self._file_bytes = cluster_bits, file_bytes
        self._taken = bytearray((file_bytes >> cluster_bits) + 1)
        self._packed = bytearray(file_bytes // _SECTOR + 1)  # how many compressed clusters begin in each sector
        self._offset_bits = 62 - (cluster_bits - 8)  # of a compressed cluster: its offset is below, its length above
        # The shortest that zstd makes of a cluster: its frame, and each run of 128 KiB.
        self._most_in_sector = _SECTOR // (8 + 4 * ((1 << cluster_bits) >> 17)) + 1

    def take(self, offset: int, filled: int) -> None:
        """One whole cluster, of which the file has so many bytes at least."""
        if offset % (1 << self._bits) or offset >= self._file_bytes or offset + filled > self._file_bytes:
            raise _cut_off()
        if self._taken[offset >> self._bits]:
            raise _shared()
        self._taken[offset >> self._bits] = 1

    def take_packed(self, entry: int, others: set[int]) -> None:
        """A compressed cluster; `others`: the offsets of those in the same table."""
        offset = entry & ((1 << self._offset_bits) - 1)
        more = (entry & (_COMPRESSED - 1)) >> self._offset_bits  # sectors after that in which it begins
        sector = offset // _SECTOR
        if (sector + more) * _SECTOR >= self._file_bytes or offset >= self._file_bytes:
            raise _cut_off()
        if offset in others or self._packed[sector] == self._most_in_sector:
            raise _shared()
        others.add(offset)
        self._packed[sector] += 1


def _numbers(descriptor: int, offset: int, count: int) -> array[int]:
    """So many big-endian numbers of 64 bits; fewer at the file's end."""
    found = array("Q")
    raw = os.pread(descriptor, count * 8, offset)
    found.frombytes(raw[: len(raw) // 8 * 8])
    if sys.byteorder == "little":
        found.byteswap()
    return found


def _cut_off() -> PipelineImageRefused:
    return PipelineImageRefused(
        "it is cut off or damaged, as parts of its disk lie behind the file's end: look whether the job's disk was full"
    )


def _shared() -> PipelineImageRefused:
    return PipelineImageRefused(f"parts of its disk share one place in the file: {_HOW_TO_MAKE}")
