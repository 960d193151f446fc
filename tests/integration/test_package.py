"""The package as people install it: from a wheel, with every dependency's hash checked, upgraded and removed."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.package import ROOT, build

pytestmark = pytest.mark.integration

_FILES = """
from importlib import resources
from ravebot.operations.service import units
from ravebot.store.database import migrations
guest = resources.files("ravebot").joinpath("images", "guest", "base", "install.sh")
print(len(migrations()), "ravebot.service" in units.names(), guest.is_file())
"""


class Environment:
    """A fresh virtual environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)

    def pip(self, *arguments: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python"), *arguments]
        done = subprocess.run([*pip, "-q", "--disable-pip-version-check"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]], cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("dist"))


def test_the_same_commit_makes_the_same_bytes(built: tuple[Path, Path], tmp_path: Path) -> None:
    for first, second in zip(built, build(tmp_path), strict=True):
        assert (first.name, first.read_bytes()) == (second.name, second.read_bytes())


def test_both_packages_have_all_that_the_program_reads_and_nothing_of_the_tests(built: tuple[Path, Path]) -> None:
    wheel, sdist = built
    package = ROOT / "ravebot"
    tracked = subprocess.run(["git", "ls-files", "-z", "ravebot"], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {name for name in tracked.stdout.split("\0") if name and (ROOT / name).is_file()}
    assert any(name.endswith(".timer") for name in wanted)
    assert package.is_dir()
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    assert wanted - in_wheel == set()
    assert {name.split("/")[0] for name in in_wheel} == {"ravebot", wheel.name.rpartition("-py3")[0] + ".dist-info"}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert wanted | {"pyproject.toml", "requirements.txt", "LICENSE", "docs/install.md"} <= in_sdist


def test_the_wheel_is_installed_with_hashes_upgraded_and_removed(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, _ = built
    older, _ = build(tmp_path / "older", "0.0.9")
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "--no-compile", "--require-hashes", "-r", str(wheel.parent / "requirements.txt"))
    environment.pip("install", "--no-compile", "--no-deps", str(older))
    assert environment.run("ravebot", "--version") == "ravebot 0.0.9\n"
    environment.pip("install", "--no-compile", "--no-deps", "--upgrade", str(wheel))
    assert environment.run("ravebot", "--version") == f"ravebot {wheel.name.split('-')[1]}\n"
    migrations = len(list((ROOT / "ravebot/store/migrations").glob("*.sql")))
    assert environment.run("python", "-c", _FILES) == f"{migrations} True True\n"
    environment.pip("check")
    environment.pip("uninstall", "--yes", "ravebot")
    left = [path for path in (tmp_path / "venv").rglob("*ravebot*") if "__pycache__" not in path.parts]
    assert left == []
