"""Builds an image: packages, the layers' files and scripts, a script of the operator, then file system, disk and qcow2.

mmdebstrap runs in namespaces of its own: when they end, so do all its processes and mounts, and none was ever visible
outside. So the work folder can be removed at any moment: no mount of the host's /dev or /proc can be in it.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import stat
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from pydantic_core import to_json

from ravebot.errors import RavebotError
from ravebot.images import disk, npm, programs, sources, tools, tree
from ravebot.images.recipe import BASE, Recipe

P = ParamSpec("P")
T = TypeVar("T")

SUFFIX = ".qcow2"
# In seconds since 1970: what packages' scripts write instead of today's date, so that it is the same in each build.
_EPOCH = 1767225600
_MARK = "ravebot-step:"
_REMOVALS = (0.1, 0.4, 1.5)  # pauses in seconds after attempts that failed
_HINT = "ravebot-hint:"  # what an install script tells the person who builds
# mmdebstrap repeats the text of hooks, and of those that fail it tells no more than that.
_NOISE = (
    *("I: running --", "I: main() received", "E: command failed: ", "E: setup failed: E: command failed: "),
    "E: mmdebstrap failed to run",
)
# Passed on to the build, so that it fetches packages as the host does.
_APT_SETTINGS = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Force", "Acquire::Check-")
_MIB = 1024**2
_OUT_BYTES = 300 * _MIB  # what the largest preset's file takes


class Progress(Protocol):
    """Hears how a build goes on."""

    def step(self, name: str) -> None:
        """A step begins, and the one before it is over."""

    def detail(self, text: str) -> None:
        """What the step does at the moment."""

    def line(self, text: str) -> None:
        """A line that the operator's script printed."""


class Quiet:
    """Tells nobody."""

    def step(self, name: str) -> None:
        pass

    def detail(self, text: str) -> None:
        pass

    def line(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Built:
    """A finished image, its manifest beside it, and what the operator should know."""

    image: Path
    manifest: Path
    tree_digest: str
    image_bytes: int
    virtual_bytes: int
    seconds: float
    hints: tuple[str, ...]


async def build(
    recipe: Recipe, out: Path, *, force: bool = False, boot_files: bool = False, progress: Progress | None = None
) -> Built:
    """Build the image `out`, which must end with .qcow2; with `boot_files`, its kernel and initrd beside it.

    Needs root and the network, about a minute and 1.5 GB in TMPDIR or /var/tmp. Leaves nothing but a finished image,
    however it ends. Raises ImageBuildFailed when a step fails and RavebotError when it can't begin.
    """
    began = time.monotonic()
    progress = progress or Quiet()
    environment = _environment()
    _check_out(out, force)
    if os.geteuid() != 0:
        raise RavebotError("building an image needs root, for its files' owners and a chroot: run it with sudo")
    tools.check(environment)
    temporary = Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - mkdtemp makes a folder of its own
    _check_room(recipe.work_bytes, temporary, out.parent)
    async with _folder(temporary, "ravebot-image-") as work, _folder(out.parent, f".{out.name}-") as beside:
        job = _Job(recipe, work, {**environment, "TMPDIR": str(work)}, progress)
        return await job.build(out, beside, boot_files, began)


class _Job:
    """One build in its work folder."""

    def __init__(self, recipe: Recipe, work: Path, environment: Mapping[str, str], progress: Progress) -> None:
        self._recipe = recipe
        self._work = work
        self._root = work / "root"
        self._environment = environment
        self._progress = progress
        self._step = ""
        self._hints: list[str] = []
        self._last_lines: deque[str] = deque(maxlen=programs.KEPT_LINES)

    async def build(self, out: Path, beside: Path, boot_files: bool, began: float) -> Built:
        packed = self._work / "npm"
        packed.mkdir()
        if wanted := [package for layer in self._recipe.layers for package in layer.npm]:
            self._begin("packages of npm")
            self._hints += await npm.fetch(wanted, packed)
        self._begin("packages")
        found = sources.read(self._recipe.suite, _codename())
        await self._debootstrap(found)
        await _in_thread(tree.tidy, self._root, found.for_image())
        packages = await _in_thread(tree.packages, self._root)
        tree_digest = await _in_thread(tree.digest, self._root)
        used_bytes = await _in_thread(tree.used_bytes, self._root)
        virtual_bytes = disk.size(used_bytes, self._recipe.size_bytes)
        self._begin("disk")
        raw = await disk.make(self._root, self._work, virtual_bytes, self._environment)
        self._begin("qcow2")
        image = beside / out.name
        await disk.convert(raw, image, self._environment)
        manifest = Path(f"{out}.manifest.json")
        image_bytes = image.stat().st_size
        (beside / manifest.name).write_bytes(
            to_json(
                {
                    "ravebot": version("ravebot"),
                    "suite": self._recipe.suite,
                    "preset": self._recipe.preset,
                    "inputs_digest": self._recipe.digest(),
                    "tree_digest": tree_digest,
                    "files_bytes": used_bytes,
                    "image_bytes": image_bytes,
                    "virtual_bytes": virtual_bytes,
                    "packages": packages,
                },
                indent=2,
            )
            + b"\n"
        )
        if boot_files:
            for name, suffix in (("vmlinuz", "vmlinuz"), ("initrd.img", "initrd")):
                await _in_thread(shutil.copyfile, _inside(self._root, name), beside / f"{out.name}.{suffix}")
        await _in_thread(_publish, beside, out)
        hints = (*self._hints, *_hints(out, found))
        return Built(out, manifest, tree_digest, image_bytes, virtual_bytes, time.monotonic() - began, hints)

    def _begin(self, step: str) -> None:
        self._step = step
        self._last_lines.clear()
        self._progress.step(step)

    async def _debootstrap(self, found: sources.PackageSources) -> None:
        listed = _private(self._work / "sources.list", found.for_build(self._work))
        settings = _private(self._work / "apt.conf", await self._apt_settings())
        logins = _private(self._work / "auth.conf", found.logins)
        await _in_thread(pack, self._recipe, self._work / "files.tar")
        base = BASE.folder
        names = " ".join(self._recipe.all_packages)
        # mmdebstrap does not repeat an update. So a wrong name is told now, and not after minutes.
        found_at_once = (
            'export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; apt-get -qq update --error-on=any'
            f" && apt-get -qq --simulate install {names} >/dev/null"
        )
        command = [
            "mmdebstrap", "--variant=minbase", "--mode=root", "--format=directory", "--architectures=amd64",
            "--aptopt=APT::Install-Recommends \"false\"", f"--aptopt={settings}",
            f"--dpkgopt={base / 'etc/dpkg/dpkg.cfg.d/small'}",
            f"--include={','.join(self._recipe.all_packages)}",
            f"--setup-hook=install -D -m 600 {shlex.quote(str(logins))} \"$1/etc/apt/auth.conf.d/ravebot.conf\"",
            f"--setup-hook=cp {shlex.quote(str(base / 'etc/hostname'))} \"$1/etc/hostname\"",
            f"--setup-hook={found_at_once}",
            f"--essential-hook=cp -r {shlex.quote(str(base / 'etc/initramfs-tools'))} \"$1/etc\"",
            *(f"--customize-hook={hook}" for hook in self._hooks()),
            self._recipe.suite, str(self._root), str(listed),
        ]  # fmt: skip
        # Namespaces: mounts and processes end with this program, and the host's name is not seen.
        apart = [
            "unshare",
            "--mount",
            "--propagation=private",
            "--pid",
            "--mount-proc",
            "--uts",
            "--fork",
            "--kill-child",
        ]
        named = ["/bin/sh", "-c", 'hostname "$1" && shift && "$@"; exit $?', "sh", "sandbox"]
        await programs.run(
            [*apart, *named, *command], self._environment, self._hear, lambda: f"step '{self._step}'", self._last_lines
        )

    def _hooks(self) -> list[str]:
        """Shell commands with the root folder as $1."""
        files = shlex.quote(str(self._work / "files.tar"))
        hooks = [f"echo {_MARK}files", f'tar -C "$1" -xf {files} --no-overwrite-dir --keep-directory-symlink']
        hooks.append(f'cp -r {shlex.quote(str(self._work / "npm"))} "$1/{npm.IN_IMAGE}"')
        scripts = {f"install script of {layer.name}": layer.install_script for layer in self._recipe.layers}
        if self._recipe.script is not None:
            scripts["script"] = self._work / "script"
            (self._work / "script").write_bytes(self._recipe.script)
        for step, script in scripts.items():
            if script is not None:
                run = f'install -m 700 {shlex.quote(str(script))} "$1/tmp/script" && chroot "$1" /tmp/script'
                hooks += [f"echo '{_MARK}{step}'", f'{run} && rm -f "$1/tmp/script"']
        return [*hooks, f"echo {_MARK}clean-up"]

    def _hear(self, line: str) -> bool:
        if line.startswith(_MARK):
            self._begin(line.removeprefix(_MARK))
            return False
        if line.startswith(_NOISE):
            return False
        if line.startswith(_HINT):
            self._hints.append(line.removeprefix(_HINT))
        if self._step == "script":
            self._progress.line(line)
        elif line.startswith("I: "):
            self._progress.detail(line.removeprefix("I: ").rstrip("."))
            return False
        return True

    async def _apt_settings(self) -> str:
        lines: list[str] = []

        def hear(line: str) -> bool:
            lines.append(line)
            return False

        await programs.run(
            ["apt-config", "dump", "--no-empty", "--format", '%f "%v";%n'],
            self._environment,
            hear,
        )
        return "".join(f"{line}\n" for line in lines if line.startswith(_APT_SETTINGS))


def pack(recipe: Recipe, archive: Path) -> None:
    """The layers' files as a tar archive: root's, with modes by their place."""
    with tarfile.open(archive, "w") as tar:
        for layer in recipe.layers:
            for name in layer.files():
                info = tar.gettarinfo(layer.folder / name, name.as_posix())
                info.uid = info.gid = 0
                info.uname = info.gname = "root"
                info.mode = mode(name)
                info.mtime = _EPOCH
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


def _environment() -> dict[str, str]:
    """What programs get: no settings of the person who builds but the proxy's."""
    kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return {
        **kept,
        "PATH": tools.path(os.environ),
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "SOURCE_DATE_EPOCH": str(_EPOCH),
    }


def _codename() -> str:
    import platform

    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian":
        raise RavebotError("an image is built from the host's own Debian package sources, and this host is not Debian")
    return release.get("VERSION_CODENAME", "")


def _check_out(out: Path, force: bool) -> None:
    if out.suffix != SUFFIX:
        raise RavebotError(f"{out}: the image's name must end with {SUFFIX}")
    if not out.parent.is_dir():
        raise RavebotError(f"{out.parent}: there is no such folder")
    if out.is_dir():
        raise RavebotError(f"{out} is a folder")
    if out.exists() and not force:
        raise RavebotError(f"{out} exists: give --force to replace it")


def _check_room(work_bytes: int, temporary: Path, folder: Path) -> None:
    needed = {temporary: work_bytes}
    if temporary.stat().st_dev == folder.stat().st_dev:
        needed[temporary] += _OUT_BYTES
    else:
        needed[folder] = _OUT_BYTES
    for place, size in needed.items():
        if (free := shutil.disk_usage(place).free) < size:
            raise RavebotError(
                f"{place} has {free // _MIB} MiB free, and the build needs {size // _MIB} MiB there"
                + ("; TMPDIR can name another folder" if place == temporary else "")
            )


def _hints(out: Path, found: sources.PackageSources) -> tuple[str, ...]:
    hints = []
    if not any(source.suite.endswith("-security") for source in found.all):
        hints.append("the host's package sources have no security updates, and so the image has none")
    closed = [str(folder) for folder in out.resolve().parents if not folder.stat().st_mode & stat.S_IXOTH]
    if closed:
        hints.append(f"QEMU's user can't reach the image there: chmod o+x {shlex.join(closed)}, or move it")
    return tuple(hints)


def _publish(beside: Path, out: Path) -> None:
    """Move the files to their names, the image last."""
    for file in sorted(beside.iterdir(), key=lambda file: file.name == out.name):
        file.chmod(0o644)
        file.replace(out.parent / file.name)


@asynccontextmanager
async def _folder(place: Path, prefix: str) -> AsyncIterator[Path]:
    """A folder that is removed at the end, also if killed processes write their last into it."""
    folder = Path(tempfile.mkdtemp(dir=place, prefix=prefix))
    try:
        yield folder
    finally:
        for pause in _REMOVALS:
            try:
                await _in_thread(shutil.rmtree, folder)
                break
            except OSError:
                await asyncio.sleep(pause)
        else:
            await _in_thread(shutil.rmtree, folder)


def _private(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def _inside(root: Path, name: str) -> Path:
    """A file of the image whose last part may be a symbolic link in the image."""
    path = root / name
    return root / path.readlink().as_posix().lstrip("/") if path.is_symlink() else path


async def _in_thread(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """In a thread, which is waited for when this is cancelled: it must not write into folders that are removed."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **named))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
