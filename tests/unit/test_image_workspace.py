"""Where an image is built: folders that go away, and what a killed build left."""

from __future__ import annotations

from pathlib import Path

import pytest

from ravebot.errors import ImageNotWritable
from ravebot.images import build, workspace


async def test_folders_of_killed_builds_are_removed_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    dead = tmp_path / "work-12345678"
    (dead / "root").mkdir(parents=True)
    other = tmp_path / "work-1"
    other.mkdir()
    async with workspace.new_folder(tmp_path, "work-") as running:
        workspace.remove_dead(tmp_path, "work-")
        assert sorted(tmp_path.iterdir()) == sorted([running, other])
    assert list(tmp_path.iterdir()) == [other]


def test_settings_of_apt_are_kept_in_whatever_case_they_are_written() -> None:
    kept = ['Acquire::HTTP::Proxy "http://proxy.example:3128";', 'acquire::https::CAInfo "/ca.pem";']
    assert build.kept_settings([*kept, 'APT::Architecture "amd64";']).splitlines() == kept


def finished(folder: Path, text: str) -> Path:
    """What a build has made, beside the name that it will have."""
    folder.mkdir()
    (folder / "sandbox.qcow2").write_text(text)
    (folder / "sandbox.qcow2.manifest.json").write_text(text)
    return folder


def test_of_two_builds_of_one_image_only_the_first_counts_unless_it_may_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "sandbox.qcow2"
    build.publish(finished(tmp_path / "first", "first"), out, force=False)
    with pytest.raises(ImageNotWritable, match="--force"):
        build.publish(finished(tmp_path / "second", "second"), out, force=False)
    manifest = tmp_path / "sandbox.qcow2.manifest.json"
    assert (out.read_text(), manifest.read_text()) == ("first", "first")
    build.publish(finished(tmp_path / "third", "third"), out, force=True)
    assert (out.read_text(), manifest.read_text()) == ("third", "third")
