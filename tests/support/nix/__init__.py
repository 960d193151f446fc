"""Debian's Nix, for the files in nixos/: it parses them, and evaluates them where nixpkgs' own library is at hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NIXOS = Path(__file__).parents[3] / "nixos"
PROGRAM = shutil.which("nix-instantiate")
LIBRARY = os.environ.get("NIXPKGS_LIB")
"""The folder `lib` of nixpkgs; None: the files are only parsed."""


class NixError(Exception):
    """Nix refuses a file; the text is Nix's own."""


@dataclass(frozen=True)
class Nix:
    """Nix with a store of its own in a folder: it needs no daemon, and leaves nothing in /nix."""

    folder: Path

    def parse(self, file: Path) -> None:
        """Raises NixError if the file is no Nix expression or uses a name that nothing defines."""
        self._run("--parse", str(file))

    def value(self, expression: str) -> Any:
        """The value of an expression without functions. Raises NixError."""
        return json.loads(self._run("--eval", "--strict", "--json", "--expr", expression))

    def module(self, name: str, configuration: str) -> Any:
        """What a module of nixos/ sets for that configuration, option by option. Raises NixError."""
        using = self.folder / "configuration.nix"
        using.write_text(configuration)
        arguments = f"lib = {LIBRARY}; module = {NIXOS / name}; configuration = {using};"
        return self.value(f"import {FOLDER / 'evaluate.nix'} {{ {arguments} }}")

    def _run(self, *arguments: str) -> str:
        assert PROGRAM is not None
        places = {f"NIX_{name}_DIR": str(self.folder / name.lower()) for name in ("STORE", "STATE", "LOG", "CONF")}
        conf = self.folder / "conf"
        conf.mkdir(exist_ok=True)
        (conf / "nix.conf").write_text("build-users-group =\n")
        done = subprocess.run(
            [PROGRAM, *arguments], env={**os.environ, **places}, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise NixError(done.stderr)
        return done.stdout
