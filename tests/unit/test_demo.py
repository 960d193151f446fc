"""Where the demo and the tests keep what they run, and what the demo says when something does not happen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.demo.screen import Screen
from tests.support.demo.watch import DemoError, Said, Watch
from tests.support.stage import Bot, new_folder


def saw(state: str, stage: Any = None) -> Watch:
    """What has seen one card."""
    watch = Watch(stage, Screen(), since="")
    watch.messages["$1"] = Said("ravebot", f"group/app!1\n{state}\nOwner alice", (), (), False, False)
    return watch


def test_a_stage_is_on_disk_where_tmp_may_be_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    folder = new_folder()
    try:
        assert folder.parent == Path("/var/tmp")
        assert folder.stat().st_mode & 0o777 == 0o711  # libvirt's QEMU gets into it
    finally:
        folder.rmdir()


def test_a_stage_goes_where_tmpdir_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert new_folder().parent == tmp_path


@pytest.mark.parametrize(
    ("state", "over"),
    [
        ("Waits since 13:39 UTC: a machine did not come up, and it is tried again at 13:40 UTC", False),
        ("Starting: set-up, step 5 of 6, since 13:39 UTC", False),
        ("Set-up failed at 13:40 UTC, after 1.2 s", True),
        ("Kept until 14:40 UTC; set-up failed at 13:40 UTC, after 1.2 s", True),
        ("Ended at 13:40 UTC: stopped by alice", True),
    ],
)
def test_the_demo_waits_for_a_machine_that_is_tried_again_and_not_for_one_that_is_over(state: str, over: bool) -> None:
    assert saw(state).card_is_over() is over


async def test_the_demo_says_why_the_machine_it_waits_for_does_not_come(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        stage: Any = SimpleNamespace(bot=Bot(tmp_path / "config.yaml", tmp_path / "log", process=process))
        waits = (
            "Waits since 13:25 UTC; as of 13:25 UTC: the host is short of disk: 2.2 GiB not promised yet, 4.0 needed"
        )
        with pytest.raises(DemoError, match=r"a card that says ready\. The card says: Waits .* short of disk"):
            await saw(waits, stage).until("a card that says ready", lambda: False, 0)
        process.terminate()
