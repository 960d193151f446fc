"""Reads the files of a built image back from its disk, without a mount."""

from __future__ import annotations

import subprocess
from pathlib import Path

PARTITION_BYTES = 1024**2  # where the only partition starts


def read_back(image: Path, folder: Path) -> Path:
    """Check the file system of `image`, and copy it into `folder`: where its root is there. Owners need root."""
    raw, root = folder / "raw", folder / "root"
    root.mkdir()
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    partition = f"{raw}?offset={PARTITION_BYTES}"
    subprocess.run(["e2fsck", "-fn", partition], check=True, capture_output=True)
    subprocess.run(["debugfs", "-R", f"rdump / {root}", partition], check=True, capture_output=True)
    raw.unlink()
    return root
