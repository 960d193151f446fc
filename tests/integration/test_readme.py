"""The pages promise nothing that is not there: what they name is looked for, and what they tell to write is tried."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from benchmarks.__main__ import BENCHMARKS
from ravebot.access.rules import Service
from ravebot.cli import app
from ravebot.config.file import load
from ravebot.config.model import AgentConfig
from ravebot.config.patterns import matches_project
from ravebot.operations.init.proxy import caddy
from ravebot.sandboxes.environments.model import STATUS_NAME
from ravebot.web.metrics import Metrics
from ravebot.web.server import WEBHOOK_PATH
from tests.support.agents import opencode
from tests.support.agents.model import MODEL
from tests.support.pages import DOCS, README, ROOT, everything
from tests.support.receivers import SIGNING_KEY

pytestmark = pytest.mark.integration

_HELPFUL = [f"tests/support/{name}/{file}.py" for name in ("demo", "pictures") for file in ("__init__", "__main__")]
_TEXT = everything()
_INSTALL = (DOCS / "install.md").read_text()
_AGENTS = (DOCS / "agents.md").read_text()


def _blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def _block(language: str, page: str = _INSTALL) -> str:
    (block,) = _blocks(language, page)
    return block


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
    """Text that stands as code: inline, and in indented blocks."""
    inline = re.findall(r"`(ravebot [^`]+)`", _TEXT)
    indented = re.findall(r"^    (?:\S*/)?(ravebot .*?)(?:  +#.*)?$", _TEXT, re.MULTILINE)
    return [*inline, *indented]


def _stored(given: dict[str, Any], tmp_path: Path) -> Path:
    """Write the configuration with secrets that are there."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(_with_secrets(given, tmp_path)))
    return path


def _with_secrets(value: Any, folder: Path) -> Any:
    """The same, where each key that names a secret's file names one of the test's."""
    if isinstance(value, list):
        return [_with_secrets(one, folder) for one in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _with_secrets(one, folder) for key, one in value.items()}
    for key in changed:
        if key.endswith("_file"):
            secret = folder / Path(changed[key]).name
            secret.write_text(SIGNING_KEY if key == "signing_key_file" else "secret of the test")
            secret.chmod(0o600)
            changed[key] = str(secret)
    return changed


def test_the_configuration_loads(tmp_path: Path) -> None:
    loaded = load(_stored(yaml.safe_load(_block("yaml")), tmp_path))

    assert loaded.warnings == ()
    assert caddy(loaded.config) in _INSTALL
    assert matches_project(loaded.config.gitlab.projects, "group/app")
    assert not loaded.config.provider.image.is_relative_to(loaded.config.state_dir), "QEMU could not get to it"
    assert not loaded.config.provider.storage_pool.is_relative_to(loaded.config.state_dir), "QEMU could not get to it"


def test_the_configuration_of_each_agent_goes_with_that_of_the_installation(tmp_path: Path) -> None:
    given = yaml.safe_load(_block("yaml"))
    shown: dict[str, AgentConfig] = {}
    for text in _blocks("yaml", _AGENTS):
        for section, values in yaml.safe_load(text).items():
            given[section] = {**given.get(section, {}), **values} if isinstance(values, dict) else values
        shown |= {agent.name: agent for agent in load(_stored(given, tmp_path)).config.agents}
    assert list(shown) == ["coder", "claude", "gemini", "reviewer"]
    acp = shown["coder"].acp
    assert acp
    assert acp.environment.items() <= {**opencode.ENVIRONMENT, "OPENCODE_CONFIG": "/etc/opencode.json"}.items()


def test_opencode_s_settings_and_version_on_the_page_are_those_that_were_tried(tmp_path: Path) -> None:
    script, file = _blocks("sh", _AGENTS)[0], tmp_path / "opencode.json"
    subprocess.run(["sh", "-c", script.replace("/etc/opencode.json", str(file))], check=True)
    through_ravebot = _block("json", _AGENTS)
    for text, name in ((file.read_text(), "local"), (through_ravebot, "ours")):
        shown = json.loads(text.replace(name, "local").replace("qwen3-coder", MODEL))
        shown["provider"]["local"] |= {"name": "", "models": {MODEL: {}}}
        tried = opencode.configuration(shown["provider"]["local"]["options"]["baseURL"])
        tried["provider"]["local"] |= {"name": "", "models": {MODEL: {}}}
        assert shown == tried
    assert set(re.findall(r"opencode-linux-x64@([\d.]+)", _TEXT)) == {opencode.version()}


def test_files_and_folders_that_are_named_are_there() -> None:
    named = set(re.findall(r"`((?:ravebot|tests|benchmarks|docs)/[a-z_/.]*)`", _TEXT)) - {STATUS_NAME}
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_metrics_and_paths_that_are_named_are_there() -> None:
    metrics = Metrics()
    metrics.stage_done("boot", True, 1.0)
    metrics.outbox_seen("matrix", 0, None)
    metrics.firewall_repaired(True)
    metrics.connected(Service.SSH, 1, 1)
    exposed = metrics.exposition().decode()
    names = re.findall(r"`(ravebot_\w+)`", _TEXT)
    assert names
    assert [name for name in names if name not in exposed] == []
    assert WEBHOOK_PATH in _TEXT


def test_readme_installs_what_the_page_on_installing_does() -> None:
    """The same commands in the same order; the page has words between them."""
    block = re.search(r"^    apt-get install .*?ravebot init --service$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert block
    start = _INSTALL.index("## Quick start")
    told = re.findall(r"^    .*$", _INSTALL[start:].partition("**4.")[0], re.MULTILINE)
    assert told == block[0].splitlines()


def test_the_sample_of_a_set_up_is_a_shell_script_that_names_only_variables_of_the_guest() -> None:
    sample = _block("sh")
    subprocess.run(["sh", "-n"], input=sample, text=True, check=True)
    shell = (ROOT / "ravebot/sandboxes/chain/stages.py").read_text()
    named = set(re.findall(r"RAVE_[A-Z_]+", sample))
    assert named
    assert [name for name in sorted(named) if f'"{name}"' not in shell] == []
