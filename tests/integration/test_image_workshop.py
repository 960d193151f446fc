"""The folder of images: ravebot takes only what is its own, and removes only what it made."""

from __future__ import annotations

from pathlib import Path

import pytest

from ravebot.images.pipelines.workshop import MARKER, ImageWorkshop, NotOurFolder

pytestmark = pytest.mark.integration

OURS = f"7-{'a' * 64}.qcow2"


@pytest.mark.parametrize("name", ["ravebot.db", "other-instance.qcow2", OURS, "work"])
def test_a_folder_that_holds_other_things_is_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    tmp_path.chmod(0o755)
    with pytest.raises(NotOurFolder, match="holds other things"):
        ImageWorkshop(tmp_path, "a").prepare(())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_the_folder_of_another_ravebot_is_not_touched(tmp_path: Path) -> None:
    ImageWorkshop(tmp_path, "a").prepare(())
    (tmp_path / OURS).write_text("precious")
    with pytest.raises(NotOurFolder, match="another ravebot, a"):
        ImageWorkshop(tmp_path, "b").prepare(())
    assert (tmp_path / OURS).exists()


def test_at_a_start_only_what_ravebot_itself_made_and_needs_no_more_goes(tmp_path: Path) -> None:
    shop = ImageWorkshop(tmp_path / "images", "a")
    assert shop.prepare(()) == frozenset()
    left, known = shop.name(7, "a" * 64), shop.name(7, "b" * 64)
    for path in (left, known, shop.folder / "notes.txt", shop.folder / "mine.qcow2"):
        path.write_text("x")
    (shop.folder / "work/half").mkdir()
    gone = [str(shop.name(7, "c" * 64)), str(tmp_path / "configured-before" / OURS)]
    assert shop.prepare([str(known), *gone]) == frozenset(gone)
    names = {str(path.relative_to(shop.folder)) for path in shop.folder.rglob("*")}
    assert names == {MARKER, "work", known.name, "notes.txt", "mine.qcow2"}


def test_a_folder_whose_marking_was_interrupted_is_marked(tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    ImageWorkshop(tmp_path, "a").prepare(())
    assert (tmp_path / MARKER).read_text() == "a\n"


def test_a_file_that_a_machine_runs_from_stays_though_it_is_not_known_any_more(tmp_path: Path) -> None:
    shop = ImageWorkshop(tmp_path, "a")
    shop.prepare(())
    booted, left = shop.name(7, "a" * 64), shop.name(7, "b" * 64)
    for path in (booted, left):
        path.write_text("x")
    shop.prepare((), [str(booted)])
    assert (booted.exists(), left.exists()) == (True, False)


def test_in_a_folder_without_our_mark_nothing_counts_as_gone(tmp_path: Path) -> None:
    shop = ImageWorkshop(tmp_path, "a")
    shop.prepare(())
    known = [str(shop.name(7, "a" * 64))]
    assert shop.gone(known) == frozenset(known)
    (tmp_path / MARKER).unlink()  # as when its disk is not mounted
    with pytest.raises(NotOurFolder, match="not marked as this ravebot's any more: mount its disk again"):
        shop.gone(known)


def test_a_folder_whose_marking_was_killed_is_marked(tmp_path: Path) -> None:
    (tmp_path / f".{MARKER}.{'0' * 16}.part").write_text("a")
    ImageWorkshop(tmp_path, "a").prepare(())
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARKER, "work"]
