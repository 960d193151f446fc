"""The files in nixos/, as far as it goes without nixpkgs: parsed, and their names compared with the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ravebot.config.complaints import every_key
from ravebot.config.model import Config
from tests.support.nix import FOLDER, NIXOS, PROGRAM, Nix, NixError
from tests.support.pages import code, rows

FILES = sorted(NIXOS.glob("*.nix"))
IF_THERE = (["agents"], ["models"], ["provider", "pipeline_images"])
"""Sections that are not there unless they are given."""

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no nix-instantiate: install nix-bin")


@pytest.fixture
def nix(tmp_path: Path) -> Nix:
    return Nix(tmp_path)


def test_every_file_is_a_nix_expression(nix: Nix) -> None:
    assert FILES
    for file in (*FILES, *FOLDER.rglob("*.nix")):
        nix.parse(file)


def test_what_is_no_nix_expression_is_found(nix: Nix, tmp_path: Path) -> None:
    for wrong in ("{ a = 1 }", "{ b = undefined; }"):
        file = tmp_path / "wrong.nix"
        file.write_text(wrong)
        with pytest.raises(NixError):
            nix.parse(file)


def test_every_key_of_the_configuration_is_an_option_with_its_default(nix: Nix) -> None:
    """Needs no nixpkgs: the options are read without their types."""
    leaves = nix.value(f"import {FOLDER / 'settings.nix'}")
    options = {tuple(leaf["path"]) for leaf in leaves}
    keys = set(every_key()) - {("matrix", "store_passphrase_file")}  # ravebot can't use it yet
    assert options == {key for key in keys if not any(other[: len(key)] == key != other for other in keys)}

    minimal: dict[str, Any] = yaml.safe_load("""
        matrix: {homeserver: "https://matrix.example.org", user_id: "@ravebot:example.org"}
        gitlab: {url: "https://gitlab.example.org", token_file: /secret, projects: ["group/*"], webhook: {}}
        sandbox: {host: sandboxes.example.net}
        provider: {image: /images/sandbox.qcow2}
    """)
    plain = Config.model_validate(minimal)
    for leaf in leaves:
        *parents, name = leaf["path"]
        if leaf["default"] is not None and not any(parents[: len(one)] == one for one in IF_THERE):
            section = minimal
            for parent in parents:
                section = section.setdefault(parent, {})
            section[name] = leaf["default"]
    assert Config.model_validate(minimal) == plain


def test_the_program_finds_whatever_it_runs_besides_qemu(nix: Nix) -> None:
    """In a shell, too: not only in the unit."""
    packages = {
        "conntrack": "conntrack-tools", "ip": "iproute2", "nft": "nftables", "sysctl": "procps", "tc": "iproute2",
        "unshare": "util-linux",
    }  # fmt: skip
    parts = [path for path in (NIXOS.parent / "ravebot").rglob("*.py") if "images" not in path.parts]
    assert {name for part in parts for name in re.findall(r'\.run\("([a-z]+)"', part.read_text())} == set(packages)
    wrapped = nix.value(f"""
        (import {NIXOS / "package.nix"} (
          builtins.mapAttrs (name: _: name) (builtins.functionArgs (import {NIXOS / "package.nix"})) // {{
            lib = {{
              importTOML = _: {{ project = {{ name = "ravebot"; version = "1"; }}; }};
              makeBinPath = builtins.concatStringsSep ":";
            }};
            python3Packages.buildPythonApplication = arguments: arguments;
          }}
        )).makeWrapperArgs
    """)
    assert wrapped[:3] == ["--prefix", "PATH", ":"]
    assert set(wrapped[3].split(":")) == set(packages.values())


def test_the_flake_uses_the_release_whose_options_are_recorded(nix: Nix) -> None:
    release = nix.value(f"(import {NIXOS / 'options.nix'} {{ }}).release")
    assert nix.value(f"(import {NIXOS / 'flake.nix'}).inputs.nixpkgs.url") == f"github:NixOS/nixpkgs/nixos-{release}"


def test_the_outputs_that_the_page_names_are_those_of_the_flake(nix: Nix) -> None:
    outputs = nix.value(f"""
        let
          nixpkgs = {{ lib = {{ }}; legacyPackages.x86_64-linux = {{ }}; }};
          outputs = (import {NIXOS / "flake.nix"}).outputs {{ inherit nixpkgs; self = outputs; }};
        in
        builtins.mapAttrs (_: builtins.attrNames) {{
          inherit (outputs) nixosModules;
          "packages.x86_64-linux" = outputs.packages.x86_64-linux;
          "checks.x86_64-linux" = outputs.checks.x86_64-linux;
        }}
    """)
    there = {f"{kind}.{name}" for kind, names in outputs.items() for name in names}
    assert {code(name) for name, _ in rows("nixos.md", "output")} == there - {
        "packages.x86_64-linux.default", "checks.x86_64-linux.ravebot",
    }  # fmt: skip
