"""A project's pipeline as `ravebot project init` writes it, and its jobs run by gitlab-ci-local, which others made."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ravebot.operations.projects.starting import start
from tests.support import peers

_GIT = ("git", "-c", "user.name=alice", "-c", "user.email=alice@example.org", "-c", "init.defaultBranch=main")
OF_A_MERGE_REQUEST = {"CI_PIPELINE_SOURCE": "merge_request_event", "CI_MERGE_REQUEST_IID": "42"}


@dataclass(frozen=True)
class LocalPipeline:
    """A checkout; `files` are added to what ravebot writes. The runner can't make ID tokens, so that `token` is one."""

    folder: Path
    peers: Path

    @classmethod
    def begin(cls, folder: Path, url: str, files: Mapping[str, str] | None = None) -> LocalPipeline:
        folder.mkdir(exist_ok=True)
        start(folder, url)
        for name, text in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for command in (
            ("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "Begin"),
            ("remote", "add", "origin", "https://gitlab.example.org/group/app.git"),
        ):  # fmt: skip
            subprocess.run([*_GIT, *command], cwd=folder, check=True, capture_output=True)
        return cls(folder, peers.folder())

    def run(self, *arguments: str, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """gitlab-ci-local with its shell executor; job names as arguments run those jobs."""
        return subprocess.run(
            self.command(*arguments, variables=variables),
            cwd=self.folder, env=self._environment(variables), capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip

    def command(self, *arguments: str, variables: Mapping[str, str]) -> list[str]:
        program = self.peers / "node_modules/gitlab-ci-local/dist/index.js"
        given = (word for name, value in variables.items() for word in ("--variable", f"{name}={value}"))
        return [peers.node(self.peers), str(program), "--force-shell-executor", *given, *arguments]

    def expanded(self, variables: Mapping[str, str]) -> dict[str, Any]:
        """The pipeline with its includes, inputs and `extends`."""
        done = self.run("--preview", variables=variables)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = yaml.safe_load(done.stdout)
        return found

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        ignored = ",".join(name for name in variables if name.startswith("CI_"))
        return {**os.environ, "HOME": str(self.folder.parent), "GCL_IGNORE_PREDEFINED_VARS": ignored}
