"""What an image is built from: suite, preset, further packages of Debian and npm, a script, a size."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ravebot.config.values import parse_size
from ravebot.images.layers import BASE, HERE, RAVE, WEB, Layer, NpmPackage

_SHOWN_ONLY = ("cli.py", "steps.py")  # these modules can't change what is in an image
SMALLEST_BYTES, LARGEST_BYTES = parse_size("256MiB"), parse_size("1024GiB")
# https://www.debian.org/doc/debian-policy/ch-controlfields.html#source
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
# https://docs.npmjs.com/cli/configuring-npm/package-json#name; a version, and no range or tag, which change.
_NPM = re.compile(r"((?:@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*)@(\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]+)?)")


class Suite(StrEnum):
    """The Debian releases that an image can be made of."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"


def suite_for(codename: str) -> Suite:
    """The suite of a host's own release; the newest if there is none."""
    return next((suite for suite in Suite if suite == codename), Suite.TRIXIE)


class Preset(StrEnum):
    """What is in the image besides the packages that are asked for."""

    MINIMAL = "minimal"
    WEB = "web"
    RAVE = "rave"


LAYERS = {
    Preset.MINIMAL: (BASE,),
    Preset.WEB: (BASE, WEB),
    Preset.RAVE: (BASE, WEB, RAVE),
}


@dataclass(frozen=True)
class Recipe:
    """An image that can be built; ValueError says what can't."""

    suite: Suite = Suite.BOOKWORM
    preset: Preset = Preset.MINIMAL
    packages: tuple[str, ...] = ()
    script: bytes | None = None
    size_bytes: int | None = None  # of the virtual disk; None: what the files need, and some room
    npm: tuple[NpmPackage, ...] = ()  # besides those of the layers

    def __post_init__(self) -> None:
        for name in self.packages:
            if not _PACKAGE.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a Debian package; separate names with commas")
        if self.script is not None and not self.script.startswith(b"#!"):
            raise ValueError("the script must begin with #! and its interpreter, like #!/bin/sh")
        shorts = [package.short for package in (*self.npm, *(one for layer in self.layers for one in layer.npm))]
        if twice := sorted({short for short in shorts if shorts.count(short) > 1}):
            raise ValueError(f"{twice[0]} is there twice: packages of npm need different names, without their scopes")
        if self.size_bytes is not None and not SMALLEST_BYTES <= self.size_bytes <= LARGEST_BYTES:
            raise ValueError("the size must be between 256MiB and 1024GiB")

    @property
    def layers(self) -> tuple[Layer, ...]:
        return LAYERS[self.preset]

    @property
    def work_bytes(self) -> int:
        """About what is needed in the temporary folder, without the further packages and the script."""
        return parse_size("2200MiB" if RAVE in self.layers else "1200MiB")

    @property
    def all_packages(self) -> tuple[str, ...]:
        names = [name for layer in self.layers for name in layer.packages]
        return tuple(dict.fromkeys([*names, *sorted(self.packages)]))

    def digest(self, package: Path = HERE) -> str:
        """SHA-256 of everything that decides about the image but the archive's state: recipe, guest files, builder.

        `package` is the folder with the builder's modules and guest/.
        """
        result = hashlib.sha256()
        npm = [f"{package.name}@{package.version}" for package in self.npm]
        plain = [self.suite, self.preset, self.all_packages, self.size_bytes, npm]
        result.update(json.dumps(plain).encode() + b"\0" + (self.script or b"") + b"\0")
        files = [file for file in package.glob("*.py") if file.name not in _SHOWN_ONLY]
        for layer in self.layers:
            files += [file for file in (package / "guest" / layer.name).rglob("*") if file.is_file()]
        for file in sorted(files):
            name, content = file.relative_to(package).as_posix(), file.read_bytes()
            result.update(f"{name} {len(content)}\0".encode() + content)
        return result.hexdigest()


def parse_packages(text: str) -> tuple[str, ...]:
    """Names from a list with commas. Raises ValueError for what is not a name."""
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    return Recipe(packages=names).packages


def parse_npm(text: str) -> tuple[NpmPackage, ...]:
    """Packages from a list of NAME@VERSION with commas. Raises ValueError for what is not that."""
    found = []
    for word in dict.fromkeys(word.strip() for word in text.split(",") if word.strip()):
        match = _NPM.fullmatch(word)
        if match is None:
            raise ValueError(f"{word!r} is no npm package with its version, like opencode-linux-x64@1.18.33")
        found.append(NpmPackage(match[1], match[2]))
    return tuple(found)
