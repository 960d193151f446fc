"""A provider on a libvirt, and what of the contract is libvirt's own: images, kernels, definitions."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import libvirt
import pytest

from ravebot.config.model import BridgeConfig, LibvirtConfig
from ravebot.errors import ImageError, ProviderError
from ravebot.providers.base import Listing, MachineSpec
from ravebot.providers.libvirt import LibvirtProvider, LibvirtRemains
from tests.integration.provider_contract import SECOND, ProviderBench, ProviderContract


def plain_image(path: Path, size: str = "1G") -> Path:
    """An empty qcow2 image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), size], check=True)
    return path


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that QEMU, which libvirt runs as another user, can get into; pytest's own it can not."""
    folder = Path(tempfile.mkdtemp(prefix="ravebot-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def bridge_of_its_own() -> BridgeConfig:
    """A bridge and subnet that no other test run is likely to have."""
    token = secrets.token_bytes(2)
    return BridgeConfig(name=f"rvb{token.hex()}", subnet=IPv4Network(f"10.{200 + token[0] % 50}.{token[1]}.0/24"))


class LibvirtBench(ProviderBench):
    """Acts behind the provider's back by a connection of its own, `stranger`."""

    def __init__(self, config: LibvirtConfig, folder: Path) -> None:
        super().__init__(folder)
        self.config = config
        self.egress = "none"
        self.subnet = config.bridge.subnet
        self.provider: LibvirtProvider = self.another(self.instance_id)
        self.stranger: Any = libvirt.open(config.uri)
        self._foreign: list[str] = []

    def another(self, instance_id: str, config: LibvirtConfig | None = None) -> LibvirtProvider:
        """A second provider beside the first."""
        return LibvirtProvider(
            config or self.config,
            instance="test",
            instance_id=instance_id,
            egress=self.egress,
            state_dir=self.folder / f"state-{instance_id}",
        )

    def spec(self, knobs: str = "") -> MachineSpec:
        config = self.config
        cmdline = f"{config.cmdline} {knobs}".strip()
        return replace(super().spec(), image=config.image, kernel=config.kernel, initrd=config.initrd, cmdline=cmdline)

    def beside(self, *, apart: bool = True) -> LibvirtBench:
        pool = {"storage_pool": self.folder / "other-disks"} if apart else {}
        return LibvirtBench(self.config.model_copy(update={"bridge": bridge_of_its_own(), **pool}), self.folder)

    def remains(self, instance_id: str) -> LibvirtRemains:
        return LibvirtRemains(self.config.uri, instance_id)

    def machine_names(self) -> set[str]:
        return {domain.name() for domain in self.stranger.listAllDomains()}

    def plant_foreign(self, name: str) -> None:
        kind = "test" if self.stranger.getType() == "TEST" else "qemu"
        self.stranger.defineXML(
            f"<domain type='{kind}'><name>{name}</name><memory unit='MiB'>16</memory>"
            "<os><type arch='x86_64'>hvm</type></os></domain>"
        )
        self._foreign.append(name)

    def lose_definition(self, name: str) -> None:
        self.stranger.lookupByName(name).undefine()

    def suspend(self, name: str) -> None:
        self.stranger.lookupByName(name).suspend()

    def shared(self) -> list[str]:
        found = [*self.stranger.listAllStoragePools(), *self.stranger.listAllNetworks()]
        return [one.name() for one in found if self.instance_id[:8] in one.name()]

    def lose_storage(self) -> None:
        pool = self.stranger.storagePoolLookupByName(f"rave-{self.instance_id}")
        pool.destroy()
        pool.undefine()

    async def file_in(self, name: str, path: str) -> tuple[int, bytes]:
        command = ("sh", "-c", 'stat -c %a "$1"; cat "$1"', "sh", path)
        mode, _, text = (await self.provider.run(name, command, timeout=20 * SECOND)).output.partition("\n")
        return int(mode, 8), text.encode()

    async def authorized(self, name: str, user: str) -> list[str]:
        command = ("sh", "-c", f"cat ~{user}/.ssh/authorized_keys")
        return (await self.provider.run(name, command, timeout=20 * SECOND)).output.splitlines()

    def reconnected(self) -> Any:
        """A new connection behind the provider's back, after libvirt restarted."""
        with suppress(libvirt.libvirtError):
            self.stranger.close()
        return libvirt.open(self.config.uri)

    def clean(self) -> None:
        """`clear`, where no event loop runs."""
        asyncio.run(self.clear())

    async def clear(self) -> None:
        self.stranger = self.reconnected()
        try:
            for name in self._foreign:
                with suppress(libvirt.libvirtError):
                    self.stranger.lookupByName(name).undefine()
            await self.clean_instance(self.instance_id)
            await self.provider.close()
        finally:
            self.stranger.close()

    async def clean_instance(self, instance_id: str) -> None:
        provider = self.another(instance_id)
        with suppress(ProviderError):
            listing = await provider.list()
            for machine in listing.machines:
                await provider.delete(machine.name)
            for volume in (await provider.list()).volumes:
                await provider.delete_volume(volume)
        await provider.close()
        for lookup, name in (
            (self.stranger.networkLookupByName, f"rave-{instance_id[:8]}"),
            (self.stranger.storagePoolLookupByName, f"rave-{instance_id}"),
        ):
            with suppress(libvirt.libvirtError):
                found = lookup(name)
                with suppress(libvirt.libvirtError):
                    found.destroy()
                found.undefine()


class LibvirtContract(ProviderContract):
    """The contract, and what only libvirt's machines have."""

    async def test_a_machine_does_not_start_with_the_host(self, bench: LibvirtBench) -> None:
        spec = bench.spec()
        await bench.provider.open()
        await bench.provider.create(spec)
        assert bench.stranger.lookupByName(spec.name).autostart() == 0

    async def test_an_image_that_can_not_be_a_base_is_refused_by_its_config_key(self, bench: LibvirtBench) -> None:
        await bench.provider.open()
        text = bench.folder / "text.qcow2"
        text.write_text("not an image" * 100)
        leaning = bench.folder / "leaning.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(text), str(leaning), "1G"],
            check=True,
        )
        for image, message in (
            (bench.folder / "missing.qcow2", "provider.image"),
            (text, "provider.image"),
            (leaning, "refers to another file"),
            (plain_image(bench.folder / "large.qcow2", "30G"), "sandbox.disk"),
        ):
            with pytest.raises(ImageError, match=message):
                await bench.provider.create(replace(bench.spec(), image=image))
        assert await bench.provider.list() == Listing(machines=())

    async def test_a_missing_kernel_is_refused_by_its_config_key(self, bench: LibvirtBench) -> None:
        await bench.provider.open()
        missing = bench.folder / "no-kernel"
        with pytest.raises(ImageError, match=r"provider\.kernel"):
            await bench.provider.create(replace(bench.spec(), kernel=missing, initrd=missing))
