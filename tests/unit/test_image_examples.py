"""The examples of docs/gitlab.md that build an image in a job: what they say is what the builder and the job take."""

from __future__ import annotations

import re
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from ravebot.cli import app
from ravebot.images import tools
from tests.support.pages import DOCS

OF_THE_BASE = {"apt", "dpkg", "tar", "util-linux"}
"""Packages that the container image `debian:13` has."""


def example(of: str) -> str:
    """The shell script after the words `**Debian.**` or `**NixOS.**`."""
    _, _, rest = (DOCS / "gitlab.md").read_text().partition(f"**{of}.**")
    found = re.search(r"^```sh\n(.*?)^```$", rest, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=" ".join)
@pytest.mark.parametrize("of", ["Debian", "NixOS"])
def test_each_example_is_a_shell_script_that_writes_where_the_job_says(of: str, shell: tuple[str, ...]) -> None:
    script = example(of)
    assert script.startswith("#!/bin/sh\nset -eu\n")
    assert subprocess.run([*shell, "-n"], input=script, text=True, capture_output=True, check=False).stderr == ""
    assert script.splitlines()[-1].endswith(' "$1"')
    job = files("ravebot.operations.projects").joinpath("template/ravebot.yml").read_text()
    assert "./image/build image/sandbox.qcow2" in job


def test_the_debian_example_installs_all_that_the_builder_needs() -> None:
    (line,) = re.findall(r"^apt-get install (.*)$", example("Debian").replace("\\\n", ""), re.MULTILINE)
    needed = {*tools.PROGRAMS.values(), *tools.FILES.values()}
    assert needed - OF_THE_BASE - set(line.split()) == set()


def test_the_debian_example_calls_the_builder_as_it_can_be_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image/customize").touch()
    monkeypatch.chdir(tmp_path)
    line = example("Debian").splitlines()[-1]
    program, *words = line.split()
    assert program == "/opt/ravebot/bin/ravebot"
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    images = group.commands[words[0]]
    assert isinstance(images, TyperGroup)
    context = images.commands[words[1]].make_context(words[1], [word.strip('"') for word in words[2:]])
    assert (context.params["suite"], str(context.params["script"])) == ("trixie", "image/customize")
