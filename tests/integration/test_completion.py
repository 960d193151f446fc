"""Completion in real shells: the installed file makes the shell ask the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ravebot.operations.service import completion

pytestmark = pytest.mark.integration

_ASK = """
set -eu
source "$1"
complete -p ravebot
shift
COMP_WORDS=(ravebot "$@") COMP_CWORD=$#
$(complete -p ravebot | sed 's/.*-F \\([^ ]*\\).*/\\1/') ravebot
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(folder: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    script = folder / "ravebot-completion"
    script.write_text(completion.script("bash"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", _ASK, "bash", str(script), *words], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown, *offered = done.stdout.splitlines()
    assert shown.startswith("complete "), shown
    return offered


def test_bash_completes_commands_options_and_commands_of_commands(tmp_path: Path) -> None:
    assert completed(tmp_path, "cle") == ["cleanup"]
    assert completed(tmp_path, "cleanup", "--ol") == ["--older-than"]
    assert completed(tmp_path, "image", "bu") == ["build"]
    assert "tend-logs" not in completed(tmp_path, "")


def run(*command: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_fish_completes_commands_and_options(tmp_path: Path) -> None:
    script = tmp_path / "ravebot.fish"
    script.write_text(completion.script("fish"))
    ask = f"source {script}; complete -C $argv[1]"
    assert run("fish", "--no-config", "-c", ask, "ravebot cle").split("\t")[0].strip() == "cleanup"
    assert "--older-than" in run("fish", "--no-config", "-c", ask, "ravebot cleanup --ol")


def test_zsh_finds_the_completion_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "_ravebot").write_text(completion.script("zsh"))
    load = "fpath=($1 $fpath); autoload -U compinit; compinit -D -u; print -- $_comps[ravebot]; autoload +X _ravebot"
    assert run("zsh", "-f", "-c", load, "zsh", str(tmp_path)) == "_ravebot\n"
