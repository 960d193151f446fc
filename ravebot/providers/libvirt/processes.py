"""What the system tells of a machine's QEMU, which libvirt does not: how many file descriptors it has open."""

from __future__ import annotations

from pathlib import Path

RUN_FOLDER = Path("/run/libvirt/qemu")
"""Where the system's libvirt keeps the process id of each machine's QEMU, readable by everybody."""


def open_files(machine: str, folder: Path = RUN_FOLDER) -> int:
    """How many descriptors its QEMU has open; 0 if that can't be seen: an older kernel, or a libvirt of another user.

    Since Linux 6.2 the size of /proc/PID/fd is that number, for everybody; before, only QEMU's own user may count.
    """
    try:
        process = Path("/proc", str(int((folder / f"{machine}.pid").read_text())))
        if f"guest={machine},".encode() not in (process / "cmdline").read_bytes():
            return 0  # QEMU is gone, and another process has its number
        return (process / "fd").stat().st_size or len(list((process / "fd").iterdir()))
    except (OSError, ValueError):
        return 0
