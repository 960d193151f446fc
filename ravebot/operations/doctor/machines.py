"""Checks of what machines need: libvirt, the image, disk, memory, KVM."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shlex
import shutil
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import psutil

from ravebot.config.model import Config, LibvirtConfig
from ravebot.errors import ProviderError, RavebotError
from ravebot.images.check import settings
from ravebot.images.pipelines import cage
from ravebot.images.pipelines.room import left_bytes
from ravebot.operations import imagechecks
from ravebot.operations.doctor.finding import Finding, failed, guarded, ok, unknown, warning
from ravebot.providers.libvirt.connection import Connection, Handle
from ravebot.providers.libvirt.disks import image_size
from ravebot.providers.libvirt.probe import probe_kvm
from ravebot.sandboxes.view import in_bytes

_EMULATOR = "qemu-system-x86_64"


@dataclass(frozen=True)
class QemuUser:
    """The user of QEMU's processes, and their groups."""

    uid: int
    groups: frozenset[int]


async def libvirt(config: LibvirtConfig) -> tuple[Finding, QemuUser | None]:
    """Whether libvirt answers, and its version; also the user of QEMU, if libvirt tells."""
    connection = Connection(config.uri, name="doctor", threads=1)
    try:
        version = await connection.call(_version)
        user = await connection.call(_qemu_user)
    except RavebotError as error:
        fix = "start libvirtd (systemctl start libvirtd) and add ravebot's user to the group libvirt"
        return failed("libvirt", f"{config.uri}: {error}", fix), None
    finally:
        await connection.close()
    return ok("libvirt", f"{config.uri}, version {version}"), user


def _version(handle: Handle) -> str:
    number = int(handle.getLibVersion())
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _qemu_user(handle: Handle) -> QemuUser | None:
    """From the label `+64055:+64055` of libvirt's security model `dac`: https://libvirt.org/formatcaps.html"""
    capabilities = ElementTree.fromstring(handle.getCapabilities())  # noqa: S314 - libvirt's own
    label = capabilities.findtext("host/secmodel[model='dac']/baselabel") or ""
    match = re.fullmatch(r"\+(\d+):\+(\d+)", label)
    if match is None:
        return None
    uid, gid = int(match[1]), int(match[2])
    try:
        more = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:  # a user without a name has no more groups
        more = []
    return QemuUser(uid, frozenset({gid, *more}))


def image(config: Config, qemu: QemuUser | None = None) -> Finding:
    path = config.provider.image
    try:
        size = image_size(path)
    except ProviderError as error:
        detail, _, fix = str(error).rpartition(": ")
        return failed("image", detail, f"{fix}; `ravebot image build` makes one")
    if size > config.sandbox.disk:
        detail = f"{path} is {in_bytes(size)}, larger than sandbox.disk"
        return failed("image", detail, "raise sandbox.disk, or use a smaller image")
    if hidden := closed_to_qemu(path, qemu):
        fix = f"chmod o+x {hidden}, or put the image elsewhere"
        return failed("image", f"QEMU's user can't reach {path}: it can't enter {hidden}", fix)
    return ok("image", f"{path}, {in_bytes(size)}")


def named_image(config: Config, name: str, qemu: QemuUser | None = None) -> Finding:
    """One of provider.images."""
    path, what = config.provider.images[name], f"image {name}"
    no_machine = "until then, merge requests that ask for it get no machine"
    try:
        size = image_size(path)
    except ProviderError as error:
        detail, _, fix = str(error).rpartition(": ")
        return failed(what, detail, f"{fix.replace('provider.image', f'provider.images.{name}')}; {no_machine}")
    if size > config.sandbox.disk:
        detail = f"{path} is {in_bytes(size)}, larger than sandbox.disk, which a project gets unless it asks for more"
        return failed(what, detail, "raise sandbox.disk, or use a smaller image")
    if hidden := closed_to_qemu(path, qemu):
        fix = f"chmod o+x {hidden}, or put the image elsewhere; {no_machine}"
        return failed(what, f"QEMU's user can't reach {path}: it can't enter {hidden}", fix)
    return ok(what, f"{path}, {in_bytes(size)}")


def named_image_check(config: Config, name: str) -> Finding:
    """What `ravebot image check` found of one of provider.images."""
    return image_check(settings.for_image(config, config.provider.images[name]), name)


def image_check(config: Config, named: str = "") -> Finding:
    """What `ravebot image check` found the last time, if that was this file with these settings."""
    path, name = config.provider.image, f"image check {named}".rstrip()
    fix = f"as root: ravebot {name}"
    found = imagechecks.latest(config)
    if found is None:
        return unknown(name, f"no result of `ravebot image check` for {path} is kept", fix)
    on = f"{found.at:%Y-%m-%d %H:%M} UTC"
    if changed := found.changed(config):
        return unknown(name, f"{changed} was changed after the check, {on}", fix)
    if found.failed:
        return failed(name, f"{on}: {', '.join(found.failed)} failed", f"{fix}; it says what mends each")
    if found.warnings:
        return warning(name, f"{on}: to look at: {', '.join(found.warnings)}", fix)
    return ok(name, f"{on}: it meets the guest contract")


def closed_to_qemu(path: Path, qemu: QemuUser | None) -> str:
    """The folders above `path` that QEMU can't enter; quoted for a shell. libvirt makes QEMU's user the files' owner.

    If that user is not known, only what all users may do counts.
    """
    there = (folder for folder in path.parents if folder.exists())
    return shlex.join(str(folder) for folder in there if not _may_enter(folder.stat(), qemu))


def _may_enter(folder: os.stat_result, qemu: QemuUser | None) -> bool:
    if qemu is None:
        return bool(folder.st_mode & stat.S_IXOTH)
    if qemu.uid == 0:
        return True
    if qemu.uid == folder.st_uid:
        return bool(folder.st_mode & stat.S_IXUSR)
    return bool(folder.st_mode & (stat.S_IXGRP if folder.st_gid in qemu.groups else stat.S_IXOTH))


def boot_files(config: LibvirtConfig) -> Finding:
    """Kernel and initrd of a direct boot."""
    files = [path for path in (config.kernel, config.initrd) if path is not None]
    unreadable = [str(path) for path in files if not os.access(path, os.R_OK)]
    if unreadable:
        fix = "put them there, or change provider.kernel and provider.initrd"
        return failed("direct boot", f"can't be read: {', '.join(unreadable)}", fix)
    return ok("direct boot", ", ".join(map(str, files)))


def disk(config: Config, qemu: QemuUser | None = None) -> Finding:
    """Whether there is enough space if all sandboxes that may run fill their disks."""
    folder = config.provider.storage_pool
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return failed("storage pool", f"{there} is not a folder", "change provider.storage_pool")
    if hidden := closed_to_qemu(folder / "disk", qemu):
        detail = f"QEMU's user can't reach the disks: it can't enter {hidden}"
        return failed("storage pool", detail, f"chmod o+x {hidden}, or change provider.storage_pool")
    free = shutil.disk_usage(there).free
    wanted = config.sandbox.disk
    if free < wanted:
        detail = f"{in_bytes(free)} free in {there}, one sandbox may fill {in_bytes(wanted)}"
        return failed("storage pool", detail, "free space, lower sandbox.disk, or change provider.storage_pool")
    if free < wanted * config.pool.max_running:
        detail = f"{in_bytes(free)} free in {there}, too little for {config.pool.max_running} sandboxes at once"
        return warning("storage pool", detail, "free space, or lower pool.max_running or sandbox.disk")
    return ok("storage pool", f"{folder}, {in_bytes(free)} free")


def pipeline_images(config: Config, qemu: QemuUser | None = None) -> Finding:
    """Whether images that pipelines built can be checked, kept and booted, and how much room they take."""
    name, kept, folder = "pipeline images", config.provider.pipeline_images, config.pipeline_images
    assert kept is not None
    if lacking := cage.missing(["qemu-img"]):
        return failed(name, f"{', '.join(lacking)} is not installed", "apt-get install qemu-utils util-linux coreutils")
    if why := cage.refused():
        return failed(name, why, "docs/nixos.md, The unit, says how; ravebot's own unit does it already")
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return failed(name, f"{there} is not a folder", "change provider.pipeline_images.folder")
    if hidden := closed_to_qemu(folder / "image", qemu):
        detail = f"QEMU's user can't reach them: it can't enter {hidden}"
        return failed(name, detail, f"chmod o+x {hidden}, or change provider.pipeline_images.folder")
    files = list(folder.glob("*.qcow2")) if folder.is_dir() else []
    size, left = sum(file.stat().st_blocks * 512 for file in files), max(0, left_bytes(there))
    if left < kept.largest:
        detail = f"{in_bytes(left)} may be written in {there}, less than one image may take ({in_bytes(kept.largest)})"
        return warning(name, detail, "free space, or lower provider.pipeline_images.largest")
    unpack = [program for program in ("gzip", "xz", "zstd") if program in cage.missing([program])]
    if unpack:
        detail = f"{', '.join(unpack)} is not installed: disks that are compressed with it can't be used"
        return warning(
            name, detail, f"apt-get install {' '.join('xz-utils' if one == 'xz' else one for one in unpack)}"
        )
    detail = f"{folder}, {len(files)} images, {in_bytes(size)} of {in_bytes(kept.keep)}"
    if cage.closes():
        return ok(name, f"{detail}; the programs that read them open only their own folder, and no socket")
    if cage.user() is None or (config.state_dir.exists() and config.state_dir.stat().st_uid != 0):
        detail += "; the programs that read them run as ravebot's user: one that a file breaks reads what ravebot reads"
        return warning(name, detail, "Debian 13 or another host with util-linux 2.41 and Landlock keeps them from that")
    apart = "without network" if cage.apart() else "with the host's network"
    return ok(name, f"{detail}; the programs that read them are another user, {apart}")


def memory(config: Config) -> Finding:
    """Whether all sandboxes that may run fit into memory."""
    total = int(psutil.virtual_memory().total)
    wanted = config.sandbox.memory
    if total < wanted:
        detail = f"{in_bytes(total)} in all, one sandbox takes {in_bytes(wanted)}"
        return failed("memory", detail, "lower sandbox.memory")
    most = max(wanted, config.limits.memory)
    if total < most:
        detail = f"{in_bytes(total)} in all, and a project may ask for {in_bytes(most)}, which never fits"
        return warning("memory", detail, "set limits.memory to what this host can give to one machine")
    if total < wanted * config.pool.max_running:
        detail = f"{in_bytes(total)} in all, too little for {config.pool.max_running} sandboxes at once"
        return warning("memory", detail, "lower pool.max_running or sandbox.memory; the rest waits in the queue")
    return ok("memory", f"{in_bytes(total)} in all")


async def kvm(config: LibvirtConfig) -> Finding:
    """Whether KVM can boot something: that its device can be opened proves nothing."""
    if config.accelerator == "tcg":
        return warning("kvm", "switched off by provider.accelerator: machines are emulated, which is slow")
    probe = await probe_kvm(shutil.which(_EMULATOR) or _EMULATOR)
    if probe.works:
        return ok("kvm", probe.reason)
    fix = "enable virtualization in the firmware (in a VM: nested virtualization) and load kvm_intel or kvm_amd"
    if config.accelerator == "kvm":
        return failed("kvm", f"does not work: {probe.reason}", fix)
    return warning("kvm", f"does not work, so machines are emulated, which is slow: {probe.reason}", fix)


def ssh_client(config: Config) -> Finding:
    """Whether agents in sandboxes can be reached."""
    found = shutil.which("ssh")
    if found is None or shutil.which("ssh-keygen") is None:
        names = ", ".join(agent.name for agent in config.agents if agent.acp)
        detail = f"OpenSSH's client is not installed: {names} can't be reached in sandboxes"
        return failed("ssh client", detail, "apt-get install openssh-client, then restart ravebot")
    return ok("ssh client", found)


async def check(config: Config) -> AsyncIterator[Finding]:
    """All checks of this module."""
    if config.provider.uri.startswith("qemu:") and shutil.which(_EMULATOR) is None:
        yield failed("qemu", f"{_EMULATOR} is not installed", "apt-get install qemu-system-x86 qemu-utils")
    if any(agent.acp for agent in config.agents):
        yield ssh_client(config)
    found, qemu = await libvirt(config.provider)
    yield found
    yield await guarded("image", asyncio.to_thread(image, config, qemu))
    for name in sorted(config.provider.images):
        yield await guarded(f"image {name}", asyncio.to_thread(named_image, config, name, qemu))
    if config.provider.image.is_file():
        yield await guarded("image check", asyncio.to_thread(image_check, config))
    for name, path in sorted(config.provider.images.items()):
        if path.is_file():
            yield await guarded(f"image check {name}", asyncio.to_thread(named_image_check, config, name))
    if config.provider.kernel is not None:
        yield await guarded("direct boot", asyncio.to_thread(boot_files, config.provider))
    yield await guarded("storage pool", asyncio.to_thread(disk, config, qemu))
    if config.provider.pipeline_images is not None:
        yield await guarded("pipeline images", asyncio.to_thread(pipeline_images, config, qemu))
    yield await guarded("memory", asyncio.to_thread(memory, config))
    yield await guarded("kvm", kvm(config.provider))
