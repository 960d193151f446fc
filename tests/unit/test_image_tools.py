"""What a build needs on the host is known with the package that has it."""

from __future__ import annotations

import os
from pathlib import Path

from ravebot.images import tools


def test_every_missing_file_is_found(tmp_path: Path) -> None:
    absent = tmp_path / "boot.img"
    assert tools.missing(os.environ, {absent: "grub-pc-bin"}) == {str(absent): "grub-pc-bin"}
