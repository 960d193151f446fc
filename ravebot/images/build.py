"""Builds an image: packages, the layers' files and scripts, a script of the operator, then file system, disk and qcow2.

mmdebstrap runs in namespaces of its own: when they end, so do all its processes and mounts, and none was ever visible
outside. So the work folder can be removed at any moment: no mount of the host's /dev or /proc can be in it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic_core import to_json

from ravebot.errors import ImageNotWritable, RavebotError
from ravebot.images import disk, layers, npm, programs, sources, tools, tree, workspace
from ravebot.images.progress import MARK, Listener, Progress
from ravebot.images.recipe import Recipe

SUFFIX = ".qcow2"
_WORK = "ravebot-image-build-"  # what the names of work folders begin with
# Passed on to the build, so that it fetches packages as the host does.
_APT_SETTINGS = ("acquire::http", "acquire::retries", "acquire::force", "acquire::check-")
_OUT_BYTES = 300 * 1024**2  # what the largest preset's file takes


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

    Needs root and the network, about a minute and 1.5 GB in TMPDIR or /var/tmp. Leaves nothing but a finished image;
    after a kill -9, the next build removes what is left. Raises ImageNotWritable for a wrong `out`, RavebotError when
    it can't begin for another reason, and ImageBuildFailed when a step fails.
    """
    began = time.monotonic()
    progress = progress or Progress()
    environment = _environment()
    _check_out(out, force)
    if not (codename := sources.codename()):
        raise RavebotError("an image is built from the host's own Debian package sources, and this host is not Debian")
    if os.geteuid() != 0:
        raise RavebotError("building an image needs root, for its files' owners and a chroot: run it with sudo")
    tools.check(environment)
    temporary = workspace.temporary_folder()
    workspace.check_mount(temporary)
    await workspace.in_thread(workspace.remove_dead, temporary, _WORK)
    await workspace.in_thread(workspace.remove_dead, out.parent, f".{out.name}-")
    workspace.check_room((temporary, recipe.work_bytes), (out.parent, _OUT_BYTES))
    async with (
        workspace.new_folder(temporary, _WORK) as work,
        workspace.new_folder(out.parent, f".{out.name}-") as beside,
    ):
        job = _Job(recipe, codename, work, {**environment, "TMPDIR": str(work)}, progress)
        return await job.build(out, beside, force, boot_files, began)


class _Job:
    """One build in its work folder."""

    def __init__(
        self, recipe: Recipe, codename: str, work: Path, environment: Mapping[str, str], progress: Progress
    ) -> None:
        self._recipe = recipe
        self._codename = codename
        self._work = work
        self._root = work / "root"
        self._environment = environment
        self._listener = Listener(progress)

    async def build(self, out: Path, beside: Path, force: bool, boot_files: bool, began: float) -> Built:
        packed = self._work / "npm"
        packed.mkdir()
        wanted = [package for layer in self._recipe.layers for package in layer.npm]
        if wanted or self._recipe.npm:
            self._listener.begin("packages of npm")
            self._listener.hints += await npm.fetch(wanted, packed)
            await npm.require(self._recipe.npm, packed)
        self._listener.begin("packages")
        found = sources.read(self._recipe.suite, self._codename)
        await self._debootstrap(found)
        await workspace.in_thread(tree.tidy, self._root, found.for_image())
        packages = await tree.packages(self._root, self._environment)
        tree_digest = await workspace.in_thread(tree.digest, self._root)
        used_bytes = await workspace.in_thread(tree.used_bytes, self._root)
        virtual_bytes = disk.size(used_bytes, self._recipe.size_bytes)
        self._listener.begin("disk")
        raw = await disk.make(self._root, self._work, virtual_bytes, self._environment)
        self._listener.begin("qcow2")
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
                await workspace.in_thread(shutil.copyfile, _inside(self._root, name), beside / f"{out.name}.{suffix}")
        hints = (*self._listener.hints, *await workspace.in_thread(_hints, out, found))
        publish(beside, out, force=force)  # at once: an interrupt comes before it or after it
        return Built(out, manifest, tree_digest, image_bytes, virtual_bytes, time.monotonic() - began, hints)

    async def _debootstrap(self, found: sources.PackageSources) -> None:
        listed = workspace.private(self._work / "sources.list", found.for_build(self._work))
        settings = workspace.private(self._work / "apt.conf", await self._apt_settings())
        logins = workspace.private(self._work / "auth.conf", found.logins)
        await workspace.in_thread(layers.pack, self._recipe.layers, self._work / "files.tar")
        base = layers.BASE.folder
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
        # Mounts and processes end with unshare, which ends with us, whatever ends us; the host's name is not seen.
        apart = [
            *("setpriv", "--pdeathsig", "KILL"),
            *(
                "unshare",
                "--mount",
                "--propagation=private",
                "--pid",
                "--mount-proc",
                "--uts",
                "--fork",
                "--kill-child",
            ),
        ]
        named = ["/bin/sh", "-c", 'hostname "$1" && shift && "$@"; exit $?', "sh", "sandbox"]
        heard = self._listener
        what = [*apart, *named, *command]
        await programs.run(what, self._environment, heard.hear, lambda: f"step '{heard.step}'", heard.last_lines)

    def _hooks(self) -> list[str]:
        """Shell commands with the root folder as $1."""
        files = shlex.quote(str(self._work / "files.tar"))
        hooks = [f"echo {MARK}files", f'tar -C "$1" -xf {files} --no-overwrite-dir --keep-directory-symlink']
        hooks.append(f'cp -r {shlex.quote(str(self._work / "npm"))} "$1/{npm.IN_IMAGE}"')
        scripts = {f"install script of {layer.name}": layer.install_script for layer in self._recipe.layers}
        if self._recipe.npm:
            scripts["programs of npm"] = workspace.private(self._work / "install-npm", npm.INSTALL)
        if self._recipe.script is not None:
            scripts["script"] = self._work / "script"
            (self._work / "script").write_bytes(self._recipe.script)
        for step, script in scripts.items():
            if script is not None:
                run = f'install -m 700 {shlex.quote(str(script))} "$1/tmp/script" && chroot "$1" /tmp/script'
                hooks += [f"echo '{MARK}{step}'", f'{run} && rm -f "$1/tmp/script"']
        return [*hooks, f"echo {MARK}clean-up"]

    async def _apt_settings(self) -> str:
        dump = ["apt-config", "dump", "--no-empty", "--format", '%f "%v";%n']
        return kept_settings(await programs.lines(dump, self._environment))


def kept_settings(lines: Iterable[str]) -> str:
    """Those settings of apt that say how to fetch; their names are in any case, as they were written."""
    return "".join(f"{line}\n" for line in lines if line.lower().startswith(_APT_SETTINGS))


def _environment() -> dict[str, str]:
    """What programs get: no settings of the person who builds but the proxy's."""
    kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return {
        **kept,
        "PATH": tools.path(os.environ),
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "SOURCE_DATE_EPOCH": str(layers.EPOCH),
    }


def _check_out(out: Path, force: bool) -> None:
    if out.suffix != SUFFIX:
        raise ImageNotWritable(f"{out}: the image's name must end with {SUFFIX}")
    if not out.parent.is_dir():
        raise ImageNotWritable(f"{out.parent}: there is no such folder")
    if out.is_dir():
        raise ImageNotWritable(f"{out} is a folder")
    if out.exists() and not force:
        raise _exists(out)


def _hints(out: Path, found: sources.PackageSources) -> tuple[str, ...]:
    from ravebot.operations.doctor.machines import closed_to_qemu  # takes longer to load than all the rest

    hints = []
    if not any(source.suite.endswith("-security") for source in found.all):
        hints.append("the host's package sources have no security updates, and so the image has none")
    if closed := closed_to_qemu(out.resolve(), None):
        hints.append(f"QEMU's user can't reach the image there: chmod o+x {closed}, or move it")
    return tuple(hints)


def publish(beside: Path, out: Path, *, force: bool) -> None:
    """Move the files to their names. Raises ImageNotWritable if another build has taken the image's name meanwhile."""
    image = beside / out.name
    image.chmod(0o644)
    if force:
        image.replace(out)
    else:
        try:
            out.hardlink_to(image)
        except FileExistsError:
            raise _exists(out) from None
        image.unlink()
    for file in beside.iterdir():
        file.chmod(0o644)
        file.replace(out.parent / file.name)


def _exists(out: Path) -> ImageNotWritable:
    return ImageNotWritable(f"{out} exists: give --force to replace it")


def _inside(root: Path, name: str) -> Path:
    """A file of the image whose last part may be a symbolic link in the image."""
    path = root / name
    return root / path.readlink().as_posix().lstrip("/") if path.is_symlink() else path
