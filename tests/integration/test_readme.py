"""The pages promise nothing that is not there: what they name is looked for, and what they tell to write is tried."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from benchmarks.__main__ import BENCHMARKS
from ravebot.access.rules import Service
from ravebot.cli import app
from ravebot.config.file import load
from ravebot.config.model import matches_project
from ravebot.web.metrics import Metrics
from ravebot.web.server import WEBHOOK_PATH
from tests.support.pages import DOCS, README, ROOT, everything

pytestmark = pytest.mark.integration

_HELPFUL = [f"tests/support/{name}/{file}.py" for name in ("demo", "pictures") for file in ("__init__", "__main__")]
_TEXT = everything()
_INSTALL = (DOCS / "install.md").read_text()


def _block(language: str) -> str:
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", _TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def _shell() -> TyperGroup:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def test_every_dev_command_that_is_named_is_there() -> None:
    usage = subprocess.run([ROOT / "dev", "--help"], capture_output=True, text=True, check=True).stdout
    named = set(re.findall(r"\./dev (\w+)", _TEXT))
    assert named == set(re.findall(r"^  (\w+) {2,}", usage, re.MULTILINE))


@pytest.mark.parametrize("command", ["setup", "lint", "test", "bench", "demo", "pictures", "package"])
def test_asking_dev_for_help_sets_nothing_up(tmp_path: Path, command: str) -> None:
    for name in ("dev", "tests/__init__.py", "tests/support/__init__.py", *_HELPFUL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    before = set(tmp_path.rglob("*"))
    done = subprocess.run([tmp_path / "dev", command, "--help"], capture_output=True, text=True, timeout=20, check=True)
    assert "usage: ./dev" in done.stdout.lower()
    option = "--docs" if command == "pictures" else "--keep"
    assert (option in done.stdout, done.stderr) == (True, "")
    assert set(tmp_path.rglob("*")) == before


def test_the_benchmarks_that_dev_names_are_there() -> None:
    usage = subprocess.run([ROOT / "dev", "--help"], capture_output=True, text=True, check=True).stdout
    listed = re.search(r"^  bench .*arguments: ([a-z, ]+), --json$", usage, re.MULTILINE)
    assert listed
    assert listed[1].split(", ") == list(BENCHMARKS)


def test_every_ravebot_command_that_is_named_is_there_with_its_options() -> None:
    commands = _shell().commands
    named = re.findall(r"\bravebot (check-config|[a-z]+)((?: --[a-z-]+)*)", "\n".join(_commands()))
    assert named
    for name, options in named:
        assert name in commands, f"ravebot {name}"
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(options.split()) <= known, f"ravebot {name}{options}"


def _commands() -> list[str]:
    """Text that stands as code: inline and in indented blocks."""
    inline = re.findall(r"`(ravebot [^`]+)`", _TEXT)
    indented = re.findall(r"^    (ravebot .*?)(?:  +#.*)?$", _TEXT, re.MULTILINE)
    return [*inline, *indented]


def test_the_configuration_loads(tmp_path: Path) -> None:
    given = yaml.safe_load(_block("yaml"))
    for section, key in ((given["matrix"], "password_file"), (given["gitlab"], "token_file"),
                         (given["gitlab"]["webhook"], "secret_token_file")):  # fmt: skip
        secret = tmp_path / Path(section[key]).name
        secret.write_text("secret of the test")
        secret.chmod(0o600)
        section[key] = str(secret)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(given))

    loaded = load(path)

    assert loaded.warnings == ()
    assert matches_project(loaded.config.gitlab.projects, "group/app")
    assert not loaded.config.provider.image.is_relative_to(loaded.config.state_dir), "QEMU could not get to it"
    assert not loaded.config.provider.storage_pool.is_relative_to(loaded.config.state_dir), "QEMU could not get to it"


def test_files_and_folders_that_are_named_are_there() -> None:
    named = set(re.findall(r"`((?:ravebot|tests|benchmarks|docs)/[a-z_/.]*)`", _TEXT))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_metrics_and_paths_that_are_named_are_there() -> None:
    metrics = Metrics()
    metrics.stage_done("boot", True, 1.0)
    metrics.outbox_seen("matrix", 0, None)
    metrics.firewall_repaired(True)
    metrics.connections_dropped(Service.SSH, 1)
    exposed = metrics.exposition().decode()
    names = re.findall(r"`(ravebot_\w+)`", _TEXT)
    assert names
    assert [name for name in names if name not in exposed] == []
    assert WEBHOOK_PATH in _TEXT


def test_readme_installs_what_the_page_on_installing_does() -> None:
    block = re.search(r"^    apt-get install .*?^    ln -s .*?$", _INSTALL, re.MULTILINE | re.DOTALL)
    assert block
    assert block[0] in README.read_text()
