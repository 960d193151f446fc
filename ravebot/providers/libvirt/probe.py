"""Finds out whether KVM works by booting a small program: that its device can be opened proves nothing."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

KVM_DEVICE = Path("/dev/kvm")
_TIMEOUT_SECONDS = 2.0
_EXIT_STATUS = 33  # isa-debug-exit ends QEMU with (value << 1) | 1, and the boot sector writes 0x10

# mov ecx, 0x2000000; loop: dec ecx; jnz loop; mov al, 0x10; out 0xf4, al; hlt
# The loop takes hardware about ten milliseconds. A KVM that works only by stepping instructions exceeds the
# time limit; a kernel would hang with it.
_CODE = bytes.fromhex("66b900000002 6649 75fc b010 e6f4 f4")


@dataclass(frozen=True)
class Probe:
    """The result; `reason` is a text for people."""

    works: bool
    reason: str


def boot_sector() -> bytes:
    """512 bytes that a BIOS boots and that end QEMU after the loop."""
    return _CODE.ljust(510, b"\0") + b"\x55\xaa"


async def probe_kvm(emulator: str, device: Path = KVM_DEVICE) -> Probe:
    """Boot a tiny program with KVM and check that it finishes in time."""
    try:
        with device.open("r+b", buffering=0):
            pass
    except OSError as error:
        return Probe(False, f"{device} can't be opened: {error.strerror}")
    with tempfile.TemporaryDirectory(prefix="ravebot-kvm-") as folder:
        disk = Path(folder) / "boot.img"
        disk.write_bytes(boot_sector())
        return await boot(emulator, "kvm", disk)


async def boot(emulator: str, accelerator: str, disk: Path) -> Probe:
    """Boot that boot sector with QEMU."""
    arguments = (
        *("-accel", accelerator, "-machine", "pc", "-m", "16", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
        *("-drive", f"if=floppy,format=raw,readonly=on,file.driver=file,file.filename={disk}"),
    )
    try:
        process = await asyncio.create_subprocess_exec(
            emulator,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        return Probe(False, f"{emulator} can't be started: {error.strerror}")
    try:
        status = await asyncio.wait_for(process.wait(), _TIMEOUT_SECONDS)
    except TimeoutError:
        return Probe(False, f"a test guest with {accelerator} did not finish within {_TIMEOUT_SECONDS:.0f} s")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != _EXIT_STATUS:
        return Probe(False, f"a test guest with {accelerator} ended QEMU with status {status}")
    return Probe(True, f"a test guest with {accelerator} finished")
