"""Where the stage of tests and of the demo keeps its files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.support.stage import new_folder


def test_a_stage_is_on_disk_where_tmp_may_be_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    folder = new_folder()
    try:
        assert folder.parent == Path("/var/tmp")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o711  # libvirt's QEMU gets into it
    finally:
        folder.rmdir()


def test_a_stage_goes_where_tmpdir_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert new_folder().parent == tmp_path
