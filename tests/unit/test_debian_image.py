"""What makes the tests build their Debian image anew."""

from __future__ import annotations

from pathlib import Path

from ravebot.images.recipe import Recipe
from tests.support.debian_image import RECIPE, cached


def release(lists: Path, name: str, version: str, date: str, origin: str = "Debian") -> None:
    (lists / name).write_text(f"Origin: {origin}\nVersion: {version}\nDate: {date}\n")


def test_a_point_release_and_another_recipe_count_and_daily_updates_and_other_archives_do_not(tmp_path: Path) -> None:
    def now(recipe: Recipe = RECIPE) -> Path:
        return cached(tmp_path / "cache", recipe, tmp_path)

    none = now()
    release(tmp_path, "example.org_debian_dists_bookworm_InRelease", "12.1", "Monday")
    first = now()
    assert first != none
    release(tmp_path, "example.org_debian_dists_bookworm_InRelease", "12.1", "Tuesday")
    release(tmp_path, "example.org_debian_dists_bookworm-updates_InRelease", "12-updates", "Tuesday")
    release(tmp_path, "example.org_tools_dists_bookworm_InRelease", "99", "Tuesday", origin="Tools")
    assert now() == first
    assert now(Recipe(preset=RECIPE.preset, packages=("jq",))) != first
    release(tmp_path, "example.org_debian_dists_bookworm_InRelease", "12.2", "Wednesday")
    assert now() != first
