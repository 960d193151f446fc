"""An image's file tree: its digest, its packages, and what must not be in it."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from ravebot.images import programs

BYTES_PER_INODE = 8192
"""The file system gets an inode for so many bytes: half as many as usual, for npm's modules are many small files."""
_BLOCK_BYTES = 4096
# Logs, caches, backups and what is a machine's own; the rest of what differs between builds is fixed by
# SOURCE_DATE_EPOCH.
_REMOVED = (
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/auth.conf",
    "etc/apt/auth.conf.d/*",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/*",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/ssh/ssh_host_*",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "root/.bash_history",
    "root/.cache",
    "root/.npm",
    "root/.wget-hsts",
    "run/*",
    "tmp/*",
    "tmp/.[!.]*",
    "var/cache/apt/archives/*.deb",
    "var/cache/apt/*.bin",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists/*",
    "var/lib/dbus/machine-id",
    "var/lib/dhcpcd/*",
    "var/lib/dpkg/*-old",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/random-seed",
    "var/tmp/*",
)
_EMPTY = ("etc/machine-id", "etc/resolv.conf")  # each machine writes its own


def tidy(root: Path, sources: str) -> None:
    """Remove what belongs to the build or to one machine, and write the image's package sources."""
    for pattern in _REMOVED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for path in (root / "var/log").rglob("*"):
        if not path.is_dir():
            path.unlink()
    for name in _EMPTY:
        write(root, name, "")
    write(root, "etc/apt/sources.list.d/debian.sources", sources)


def write(root: Path, name: str, text: str) -> None:
    """Write a file of the image; a symbolic link in its place, which could lead out of the tree, is replaced."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o644)


async def packages(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Every installed package with its version, by name, as the host's dpkg-query reads them."""
    shown = "-f=${db:Status-Status} ${Package} ${Version}\\n"
    query = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", shown]
    entries = [line.split(" ") for line in await programs.lines(query, environment)]
    return dict(sorted((entry[1], entry[2]) for entry in entries if entry[0] == "installed"))


def digest(root: Path) -> str:
    """SHA-256 of all paths with type, mode, owner and content; the same packages give the same.

    Times are left out: they tell when the image was built.
    """
    result = hashlib.sha256()
    for path in _walk(root):
        status = path.lstat()
        name = os.fsencode(path.relative_to(root))
        result.update(b"%s\0%o %d %d " % (name, status.st_mode, status.st_uid, status.st_gid))
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                result.update(hashlib.file_digest(file, "sha256").digest())
        elif stat.S_ISLNK(status.st_mode):
            result.update(os.fsencode(path.readlink()))
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            result.update(b"%d" % status.st_rdev)
        result.update(b"\n")
    return result.hexdigest()


def used_bytes(root: Path) -> int:
    """What the files take in a file system: whole blocks and an inode each, and no more files than it has inodes."""
    seen: set[int] = set()
    total = 0
    for path in _walk(root):
        status = path.lstat()
        if status.st_ino in seen:
            continue
        seen.add(status.st_ino)
        blocks_bytes = -(-status.st_size // _BLOCK_BYTES) * _BLOCK_BYTES
        total += max(blocks_bytes + 512, BYTES_PER_INODE)
    return total


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(folder, name)
