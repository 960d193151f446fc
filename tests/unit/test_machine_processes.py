"""The descriptors of a machine's process are counted, and those of no other process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from ravebot.providers.libvirt.processes import open_files

FILES = 40
PROGRAM = f"import sys; held = [open('/dev/null') for _ in range({FILES})]; print(flush=True); sys.stdin.read()"


@pytest.fixture
def process() -> Iterator[int]:
    """The id of a process with FILES open files and a few more, that calls itself as QEMU does."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "-name", "guest=rave-1,debug-threads=on"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout
        running.stdout.readline()
        yield running.pid
        running.kill()


def test_the_machine_s_process_is_found_by_libvirts_file(process: int, tmp_path: Path) -> None:
    (tmp_path / "rave-1.pid").write_text(f"{process}\n")
    assert FILES < open_files("rave-1", tmp_path) < FILES + 20


def test_a_process_that_has_its_number_now_is_not_counted(process: int, tmp_path: Path) -> None:
    (tmp_path / "rave-2.pid").write_text(f"{process}\n")
    assert open_files("rave-2", tmp_path) == 0


@pytest.mark.parametrize("text", [None, "", "x", "-1", "999999999", "../1"])
def test_what_cannot_be_seen_is_not_known(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "rave-1.pid").write_text(text)
    assert open_files("rave-1", tmp_path) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_sees_the_number_too_since_linux_6_2(process: int, tmp_path: Path) -> None:
    (tmp_path / "rave-1.pid").write_text(str(process))
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    with get_context("fork").Pool(1, os.setuid, (65534,)) as nobody:
        seen = nobody.apply(open_files, ("rave-1", tmp_path))
    since_6_2 = tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 2)
    assert (seen > FILES) is since_6_2
