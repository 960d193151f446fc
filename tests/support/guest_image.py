"""Builds a tiny Linux guest that meets the guest contract, from packages every Debian host has.

A cloud kernel and an uncompressed initramfs (busybox, dropbear, qemu-ga) boot in seconds even without KVM. The disk is
one ext4 without a partition table, mounted at /srv and grown to the disk's size at boot.
Kernel parameters make the guest break the contract: `rave.noagent`, `rave.noshutdown` (deaf to agent and power button),
`rave.fixedhostkey`, `rave.stealaddress=IP`, `rave.nodhcp`, `rave.nogrow`, `rave.nohotplug`, `rave.noweb`,
`rave.deafweb` (accepts and never answers), `rave.nosshd`, `rave.password` (sshd takes the user's password, which is
its name), `rave.noforward` (sshd refuses remote forwards), `rave.nouser` (the user is `someoneelse`),
`rave.notool=tar,dd` (programs that are missing), `rave.hang` (init does nothing for ever).
`/bin/noise` prints binary without end.
`python -m tests.support.guest_image CACHE` builds it into the folder CACHE and prints the paths.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.guest_files import ETC, INIT, SCRIPTS

CMDLINE = (
    "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable rcupdate.rcu_expedited=1 mitigations=off"
    # What costs an emulated processor time at each boot, and shows nothing of ravebot: about a seventh of a boot.
    " nokaslr no5lvl init_on_alloc=0 cryptomgr.notests"
)
DISK_BYTES = 512 * 1024**2
_MODULES = (
    "virtio_pci",
    "virtio_rng",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_balloon",
    "button",
    "evdev",
    "pvpanic_mmio",
)
_PROGRAMS = ("/usr/sbin/qemu-ga", "/usr/sbin/dropbear", "/usr/bin/dropbearkey", "/usr/sbin/resize2fs", "/usr/bin/dash")
_PACKAGES = "busybox-static, dropbear-bin, qemu-guest-agent, e2fsprogs and dash"
_FOLDERS = (
    *("bin", "dev", "etc/dropbear", "etc/ssh", "home", "lib/modules", "lib64", "proc", "root", "run"),
    *("sbin", "srv", "sys", "tmp", "usr/bin", "usr/sbin", "var/log"),
)
_BUSYBOX = "/usr/bin/busybox"


@dataclass(frozen=True)
class GuestImage:
    """What a machine boots: kernel, initrd and command line directly; `image` is the base of its overlay."""

    kernel: Path
    initrd: Path
    image: Path
    cmdline: str


class GuestImageError(Exception):
    """Something the guest is built from is missing on this host; the message names it."""


def build_guest(cache: Path) -> GuestImage:
    """The guest, built into `cache` unless it is there. Raises GuestImageError, naming what is missing."""
    kernel = _kernel()
    modules = _module_files(kernel)
    programs = [Path(program) for program in (_BUSYBOX, *_PROGRAMS)]
    for program in programs:
        if not program.exists():
            raise GuestImageError(f"{program} is missing: install {_PACKAGES}")
    libraries = _libraries(_PROGRAMS)
    key = _digest([kernel, *modules, *programs, *libraries])
    done = cache / f"guest-{key}"
    if not done.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as work:
            result = Path(work) / "result"
            result.mkdir(mode=0o755)
            shutil.copyfile(kernel, result / "vmlinuz")
            _initramfs(Path(work) / "root", result / "initrd", modules, libraries)
            _disk(Path(work) / "disk.raw", result / "disk.qcow2")
            try:
                result.rename(done)
            except OSError:  # another test run was faster, with the same result
                if not done.exists():
                    raise
    return GuestImage(done / "vmlinuz", done / "initrd", done / "disk.qcow2", CMDLINE)


def _kernel() -> Path:
    kernels = [path for path in Path("/boot").glob("vmlinuz-*-cloud-amd64") if _modules_of(path).exists()]
    if not kernels:
        raise GuestImageError("no cloud kernel in /boot: install linux-image-cloud-amd64")
    return max(kernels, key=lambda path: path.stat().st_mtime)


def _modules_of(kernel: Path) -> Path:
    return Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")


def _module_files(kernel: Path) -> list[Path]:
    """The modules' files in the order in which they must be loaded."""
    found: dict[Path, None] = {}
    for module in _MODULES:
        answer = _output("modprobe", "-S", _modules_of(kernel).name, "--show-depends", module)
        for line in answer.splitlines():
            word, _, rest = line.strip().partition(" ")
            if word == "insmod":
                found[Path(rest.split(" ")[0])] = None
    return list(found)


def _libraries(programs: Iterable[str]) -> list[Path]:
    found = {
        Path(word)
        for program in programs
        for line in _output("ldd", program).splitlines()
        for word in line.split()
        if word.startswith("/")
    }
    return sorted(found)


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(repr((INIT, ETC, SCRIPTS)).encode())
    for file in files:
        facts = file.stat()
        digest.update(f"{file}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _initramfs(root: Path, target: Path, modules: list[Path], libraries: list[Path]) -> None:
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    _install(Path(_BUSYBOX), root / "bin/busybox")
    for applet in _output(_BUSYBOX, "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    for program in _PROGRAMS:
        _install(Path(program), root / program.lstrip("/"))
    for library in libraries:
        _install(library, root / str(library).lstrip("/"))
    order = []
    for module in modules:
        plain = module.name.removesuffix(".xz")
        content = module.read_bytes()
        (root / "lib/modules" / plain).write_bytes(lzma.decompress(content) if module.suffix == ".xz" else content)
        order.append(f"/lib/modules/{plain}\n")
    (root / "etc/modules").write_text("".join(order))
    for name, text in ETC.items():
        (root / "etc" / name).write_text(text)
    for name, text in SCRIPTS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    _output("dropbearkey", "-t", "ed25519", "-f", str(root / "etc/dropbear/fixed_host_key"))
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o755)
    names = [str(path.relative_to(root)) for path in sorted(root.rglob("*"))]
    with target.open("wb") as out:
        subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-D", str(root)],
            input="\n".join([".", *names]).encode(),
            stdout=out,
            check=True,
        )


def _disk(raw: Path, target: Path) -> None:
    with raw.open("wb") as file:
        file.truncate(DISK_BYTES)
    _output("mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", str(raw))
    _output("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(target))


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(source.resolve(), target)
    target.chmod(0o755)


def _output(*command: str) -> str:
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "LC_ALL": "C"}
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    except FileNotFoundError as error:
        raise GuestImageError(f"the program {command[0]} is missing") from error
    except subprocess.CalledProcessError as error:
        raise GuestImageError(f"{command[0]} failed: {error.stderr.strip()[-500:]}") from error


if __name__ == "__main__":
    guest = build_guest(Path(sys.argv[1]).absolute())
    print(f"kernel: {guest.kernel}\ninitrd: {guest.initrd}\nimage: {guest.image}\ncmdline: {guest.cmdline}")
