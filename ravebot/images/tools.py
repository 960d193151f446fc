"""The programs and files of the host that the builder needs, and the Debian package of each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ravebot.errors import RavebotError

GRUB = Path("/usr/lib/grub/i386-pc")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "apt-config": "apt",
    "dpkg": "dpkg",
    "dpkg-query": "dpkg",
    "tar": "tar",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "grub-mkimage": "grub-common",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "qemu-img": "qemu-utils",
}
FILES = {GRUB / "boot.img": "grub-pc-bin", KEYRING: "debian-archive-keyring"}


def path(environment: Mapping[str, str]) -> str:
    """PATH with the folders that some of the programs are in, which a shell without a login may lack."""
    return ":".join(dict.fromkeys([*environment.get("PATH", os.defpath).split(":"), "/usr/sbin", "/usr/bin", "/sbin"]))


def missing(environment: Mapping[str, str], files: Mapping[Path, str] = FILES) -> dict[str, str]:
    """What is not there, each with its package."""
    where = path(environment)
    found = {name: package for name, package in PROGRAMS.items() if not shutil.which(name, path=where)}
    return found | {str(file): package for file, package in files.items() if not file.exists()}


def check(environment: Mapping[str, str]) -> None:
    """Raise RavebotError that names everything that is missing, and the command that installs it."""
    if lacking := missing(environment):
        packages = " ".join(sorted(set(lacking.values())))
        raise RavebotError(
            f"building an image needs {', '.join(lacking)}: apt-get install --no-install-recommends {packages}"
        )
