"""A folder becomes a disk that starts by itself: ext4 in an MBR partition, GRUB before it, all in a qcow2 file.

Without loop devices and mounts: `mke2fs -d` fills the file system from the folder, and GRUB's two parts are written to
where the BIOS and boot.img look for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ravebot.errors import RavebotError
from ravebot.images import programs, tree
from ravebot.images.tools import GRUB

_MIB = 1024**2
_START_BYTES = _MIB  # of the partition; before it, the MBR and GRUB
_SECTOR_BYTES, _BOOT_CODE_BYTES = 512, 440
_ROOM_BYTES = 512 * _MIB  # for what is written before the root grows, and for a disk that is no larger than the image
_STEP_BYTES = 64 * _MIB
_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "linux", "configfile")


def smallest_bytes(used_bytes: int) -> int:
    """The smallest disk that holds that many bytes of files with ext4's own tables and journal."""
    return _up(used_bytes + used_bytes // 16 + 80 * _MIB, _MIB)


def size(used_bytes: int, wanted_bytes: int | None) -> int:
    """The disk's size. Raises RavebotError if what is wanted is too small."""
    least = smallest_bytes(used_bytes)
    if wanted_bytes is None:
        return _up(least + _ROOM_BYTES, _STEP_BYTES)
    if wanted_bytes < least:
        raise RavebotError(
            f"the image does not fit into {wanted_bytes // _MIB}MiB: give --size {least // _MIB}MiB or more"
        )
    return _up(wanted_bytes, _MIB)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


async def make(root: Path, work: Path, size_bytes: int, environment: Mapping[str, str]) -> Path:
    """The folder as a raw disk in `work`."""
    disk, table, core = work / "disk", work / "table", work / "core.img"
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    table.write_text(f"label: dos\nstart={_START_BYTES // _SECTOR_BYTES}, type=83, bootable\n")
    await programs.run(["/bin/sh", "-c", 'exec sfdisk -q "$1" <"$2"', "sh", str(disk), str(table)], environment)
    # GRUB must read the file system and the guest's own e2fsprogs, which may be older than the host's, must grow it.
    options = f"offset={_START_BYTES},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    features = "^metadata_csum_seed,^orphan_file"
    inodes = ["-i", str(tree.BYTES_PER_INODE)]
    filled = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", *inodes, "-O", features, "-E", options]
    await programs.run([*filled, "-d", str(root), str(disk), f"{(size_bytes - _START_BYTES) // 1024}k"], environment)
    made = ["grub-mkimage", "-O", "i386-pc", "-d", str(GRUB), "-p", "(hd0,msdos1)/boot/grub", "-o", str(core)]
    await programs.run([*made, *_GRUB_MODULES], environment)
    code = core.read_bytes()
    if len(code) > _START_BYTES - _SECTOR_BYTES:
        raise RavebotError(f"GRUB's core image is too large to stand before the partition ({len(code)} bytes)")
    with disk.open("r+b") as file:
        file.write((GRUB / "boot.img").read_bytes()[:_BOOT_CODE_BYTES])
        file.seek(_SECTOR_BYTES)
        file.write(code)
    return disk


async def convert(disk: Path, image: Path, environment: Mapping[str, str]) -> None:
    """The raw disk as a compressed qcow2 file."""
    kind = ["-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"]
    await programs.run(["qemu-img", "convert", "-c", *kind, str(disk), str(image)], environment)
