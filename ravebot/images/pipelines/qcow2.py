"""Looks into a qcow2 file before any program of others does: what refers elsewhere, is cut off, or unpacks without end.

The format: https://github.com/qemu/qemu/blob/master/docs/interop/qcow2.txt
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
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
_COMPRESSED = 1 << 62
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


def look_into(descriptor: int, most_bytes: int) -> int:
    """The virtual size of an open qcow2 file, at most `most_bytes`. Raises PipelineImageRefused."""
    file_bytes = os.fstat(descriptor).st_size
    tables = _header(os.pread(descriptor, 104, 0), file_bytes, most_bytes)
    _every_cluster(descriptor, tables, file_bytes)
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


def _every_cluster(descriptor: int, tables: _Tables, file_bytes: int) -> None:
    """Each cluster lies inside the file, and no two parts of the disk share one: so the file's size bounds the work."""
    cluster = 1 << tables.cluster_bits
    seen = bytearray(-(-file_bytes // cluster) + 1)

    def take(offset: int) -> None:
        if offset % cluster or offset >= file_bytes:
            raise _cut_off()
        if seen[offset >> tables.cluster_bits]:
            raise PipelineImageRefused(f"parts of its disk share one place in the file: {_HOW_TO_MAKE}")
        seen[offset >> tables.cluster_bits] = 1

    sector_bits = 62 - (tables.cluster_bits - 8)  # of a compressed cluster: its offset is below, its length above
    for first in _numbers(descriptor, tables.offset, tables.entries):
        table = first & _OFFSET
        if not table:
            continue
        take(table)
        entries = _numbers(descriptor, table, cluster // 8)
        if len(entries) < cluster // 8:
            raise _cut_off()
        for entry in filter(None, entries[:: tables.entry_bytes // 8]):
            if entry & _COMPRESSED:
                if entry & ((1 << sector_bits) - 1) >= file_bytes:
                    raise _cut_off()
            elif place := entry & _OFFSET:
                take(place)


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
